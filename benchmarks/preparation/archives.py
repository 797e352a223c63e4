"""Archives, tar and zip, compressed or not: their members' places, and passes over those that can only be passed over.

Archives are untrusted: whatever could lead out of them (absolute paths, `..`, links, devices) is refused.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.preparation.places import DEFLATED, MAX_FILE, STORED, Place, checked_name, refuse
from fmlora_dist.errors import UserError

__all__ = ["ARCHIVES", "is_archive", "list_archive", "naming", "read_pass"]

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""Suffixes of the archives that are read, in any case."""

_MAX_RATIO = 100  # a compressed archive that grows more than that holds no images
# Lists in a compressed tar are kept when it is listed, since each would cost a pass; bytes of one, and of all.
_KEPT_FILE, _KEPT = 8 << 20, 128 << 20
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\x00", "lzma"))


def list_archive(path: Path, kept: dict[str, bytes]) -> Iterator[tuple[str, Place]]:
    """Names and places of an archive's files; contents of small ones of a compressed tar go into `kept`."""
    with naming(path):
        if path.name.lower().endswith(".zip"):
            yield from _zip(path)
        elif not _compression(path):
            yield from _tar(path)
        else:
            yield from _compressed_tar(path, kept)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Whatever a broken archive makes its reader stumble over becomes an error that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refuse(str(path), f"a broken archive ({type(error).__name__}: {error})", "one that can be read to its end")


def _zip(path: Path) -> Iterator[tuple[str, Place]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = checked_name(member.orig_filename, str(path))
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR if member.is_dir() else 0):  # hidden ones are refused, too
                refuse(str(path), f"member {member.orig_filename!r} that is a link or device", "regular files")
            if member.is_dir() or not name:
                continue
            if member.flag_bits & 1:
                refuse(str(path), f"member '{name}' encrypted", "members without a password", "decrypt it")
            if member.compress_type not in (STORED, DEFLATED):
                refuse(str(path), f"member '{name}' in compression {member.compress_type}", "stored or deflated")
            yield (
                name,
                Place(
                    path=str(path),
                    size=member.file_size,
                    kind="zip",
                    offset=member.header_offset,
                    packed=member.compress_size,
                    method=member.compress_type,
                    crc32=member.CRC,
                ),
            )


def _tar(path: Path) -> Iterator[tuple[str, Place]]:
    with tarfile.open(path, "r:") as tar:
        for member, name in _members(tar, path):
            yield name, Place(path=str(path), size=member.size, kind="tar", offset=member.offset_data)


def _compressed_tar(path: Path, kept: dict[str, bytes]) -> Iterator[tuple[str, Place]]:
    seen, most, room = 0, (1 << 30) + _MAX_RATIO * path.stat().st_size, _KEPT
    for member, name, file in read_pass(path):
        seen += member.size
        if member.size > MAX_FILE or seen > most:
            refuse(str(path), f"member '{name}' of {member.size} bytes, {seen} in all", f"at most {MAX_FILE}, {most}")
        if not name.lower().endswith(_IMAGES) and member.size <= min(_KEPT_FILE, room):
            kept[name] = file.read()
            room -= member.size
        yield name, Place(path=str(path), size=member.size, kind="stream", offset=member.offset_data)


def read_pass(path: Path | str) -> Iterator[tuple[tarfile.TarInfo, str, IO[bytes]]]:
    """All files of a compressed tar, each readable until the next is asked for; to the end, for gzip's checksum."""
    compression = _compression(path)
    if not compression:
        refuse(str(path), "an archive that was replaced", "the one that was listed")
    with _open_compressed(path, compression) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        for member, name in _members(tar, path):
            file = tar.extractfile(member)
            assert file is not None  # _members gives regular files only
            yield member, name, file


def _members(tar: tarfile.TarFile, path: Path | str) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Regular files and their names; anything but folders beside them is refused."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
        name = checked_name(member.name, str(path))
        if member.isdir():
            continue
        if not member.isreg() or member.sparse is not None:  # hidden ones are refused, too
            refuse(str(path), f"member {member.name!r} that is a link, device or sparse file", "regular files")
        if name:
            yield member, name
    # tarfile takes a broken header for the end; only zeros follow the true one.
    rest = cast(IO[bytes], tar.fileobj)
    if isinstance(rest, io.IOBase):  # a stream is there already
        rest.seek(tar.offset)
    while block := rest.read(1 << 20):
        if block.count(0) != len(block):
            refuse(str(path), "a broken header after its last readable member", "an archive whole to its end")


def _compression(path: Path | str) -> str:
    """Which compression the file's first bytes name; '' for none."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((name for magic, name in _MAGIC if start.startswith(magic)), "")


def _open_compressed(path: Path | str, compression: str) -> IO[bytes]:
    opener: Any = {"gzip": gzip, "bz2": bz2, "lzma": lzma}[compression]
    return cast(IO[bytes], opener.open(path, "rb"))


def is_archive(name: str) -> bool:
    """Whether a file's name says that it is an archive."""
    return name.lower().endswith(ARCHIVES)
