"""Where the bytes of a data set's files lie, and how they are read from there, in whatever process."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import IO, NoReturn

from fmlora_dist.errors import UserError

__all__ = ["DEFLATED", "MAX_FILE", "STORED", "Place", "checked_name", "read_place", "refuse"]

MAX_FILE = 1 << 30
"""Bytes: no file of a data set is longer, so a longer one is a mistake or an attack."""
STORED, DEFLATED = 0, 8
"""Zip's compression methods that are read."""

_LOCAL = struct.Struct("<4s22xHH")  # zip's header before a member's bytes: signature, lengths of name and extra field


@dataclass(frozen=True)
class Place:
    """Where the bytes of one file lie."""

    path: str
    """The file on disk: the file itself, or the archive that holds it."""
    size: int
    """Length of the content in bytes."""
    kind: str = "file"
    """'file' (all of `path`), 'tar', 'zip', or 'stream' (a compressed tar, which only a pass can read)."""
    offset: int = 0
    """Byte of `path` (of the uncompressed tar for 'stream') at which it starts; for 'zip' that of its header."""
    packed: int = 0
    """For 'zip': length as stored, in bytes."""
    method: int = STORED
    """For 'zip': how it is compressed."""
    crc32: int = 0
    """For 'zip': checksum of the content."""


def read_place(place: Place) -> bytes:
    """The bytes at a place that is no 'stream'.

    Raises:
        UserError: If they are broken, have changed since they were listed, or are too many for a file of a data set.
    """
    if place.size > MAX_FILE:
        refuse(place.path, f"a file of {place.size} bytes", f"at most {MAX_FILE}", "remove it")
    try:
        with open(place.path, "rb") as file:
            if place.kind == "zip":
                content = _unzip(file, place)
            else:
                file.seek(place.offset)
                content = file.read(place.size + 1 if place.kind == "file" else place.size)
    except OSError as error:
        refuse(place.path, f"an unreadable file ({error.strerror or error})", "one to read", "check it")
    if len(content) != place.size:
        refuse(place.path, f"another length at byte {place.offset} than when it was listed", f"{place.size} bytes")
    return content


def _unzip(file: IO[bytes], place: Place) -> bytes:
    """Never more than the declared size comes out, whatever the member holds."""
    file.seek(place.offset)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size or header[:4] != b"PK\3\4":
        refuse(place.path, f"no member at byte {place.offset}", "the one that its directory names")
    _, name_length, extra_length = _LOCAL.unpack(header)
    file.seek(place.offset + _LOCAL.size + name_length + extra_length)
    content = file.read(min(place.packed, MAX_FILE))
    if place.method == DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, place.size + 1)
        except zlib.error as error:
            refuse(place.path, f"a broken member at byte {place.offset} ({error})", f"{place.size} bytes")
    if zlib.crc32(content) != place.crc32:
        refuse(place.path, f"a member at byte {place.offset} with another checksum", f"{place.crc32:08x}")
    return content


def checked_name(name: str, where: str) -> str:
    """The name without `.` parts; '' for hidden files and folders."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    bad = ""
    if name.startswith("/") or name[1:3] in (":/", ":\\"):
        bad = "an absolute path"
    elif ".." in parts:
        bad = "'..'"
    elif "\\" in name or "\0" in name:
        bad = "a backslash or NUL"
    elif not name.isascii() and name.encode(errors="replace").decode() != name:
        bad = "bytes that are no UTF-8"
    if bad:
        refuse(where, f"{bad} in the name {name!r}", "relative paths inside the source")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)


def refuse(where: str, found: str, expected: str, advice: str = "download it again from its authors") -> NoReturn:
    """Raise the ``UserError`` about a file of the source."""
    raise UserError(f"{where}: found {found}, expected {expected}; {advice}")
