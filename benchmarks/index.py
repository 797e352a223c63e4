"""The index beside a benchmark's WebDataset shards: where each sample's image lies, and what it shows.

A shard is a plain tar that any WebDataset reader reads from end to end. The index adds random access: for each
sample the shard, the byte range of its image, the class, the domain and the split. From it a task opens only its own
samples, in any order, from any step, without scanning a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from benchmarks.folder import Folder, open_folder
from fmlora_dist.errors import UserError

__all__ = ["COLUMNS", "FORMATS", "INDEX_FILE", "SCHEMA", "SPLITS", "TEST", "TRAIN", "Index", "Shard"]

SCHEMA = 2
INDEX_FILE = "index.json"
SPLITS = ("train", "test")
TRAIN, TEST = 0, 1
FORMATS = ("JPEG", "PNG", "WEBP")
"""Encodings of images, by Pillow's names. Nothing else that Pillow could open: some of its decoders start programs."""

COLUMNS = {
    "shard": ("shard", np.int32),
    "offset": ("offset", np.int64),
    "size": ("size", np.int64),
    "crc32": ("crc32", np.int64),
    "height": ("height", np.int32),
    "width": ("width", np.int32),
    "class": ("label", np.int32),
    "domain": ("domain", np.int32),
    "split": ("split", np.int32),
}
"""The columns by their names in the file: the field of ``Index`` and its type."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file: its name in the benchmark's folder, its length in bytes, and the SHA-256 of its content."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """All samples of a benchmark, by column. The n-th entry of every column describes the n-th sample."""

    name: str
    """Name of the benchmark."""
    image_size: int
    """Height and width of the stored images in pixels; 0 where they differ from image to image."""
    classes: tuple[str, ...]
    """Class names; `label` counts in this order."""
    domains: tuple[str, ...]
    """Domain names; `domain` counts in this order."""
    split_rule: str = "official"
    """Which split into training and test this is: 'official', 'coda:<sha256>', 'random:<seed>', 'folders'."""
    list_order: tuple[int, ...] = ()
    """All class numbers, in the numbering of the split's list where that is another than `classes`; else empty."""
    shards: tuple[Shard, ...]
    """The tar files; `shard` counts in this order."""
    keys: tuple[str, ...]
    """WebDataset keys, unique."""
    shard: NDArray[np.int32]
    """(n,) number of the shard that holds the sample."""
    offset: NDArray[np.int64]
    """(n,) byte at which the encoded image starts inside its shard."""
    size: NDArray[np.int64]
    """(n,) length of the encoded image in bytes."""
    crc32: NDArray[np.int64]
    """(n,) CRC-32 (zlib's) of the encoded image."""
    height: NDArray[np.int32]
    """(n,) height of the decoded image in pixels."""
    width: NDArray[np.int32]
    """(n,) width of the decoded image in pixels."""
    label: NDArray[np.int32]
    """(n,) class number."""
    domain: NDArray[np.int32]
    """(n,) domain number."""
    split: NDArray[np.int32]
    """(n,) 0 for training, 1 for test."""

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content: two indexes agree in it only if they list the same images and splits.

        The shards enter by their hashes, so the pixels count as well as the list.
        """
        digest = hashlib.sha256(_dump(self._header()).encode())
        for field, _ in COLUMNS.values():
            digest.update(np.asarray(getattr(self, field)).astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def split_hash(self) -> str:
        """SHA-256 of what is learned and tested, wherever it lies: classes, and of each image key, CRC-32, class,
        domain and split. Equal for the same images in other shards, or in another order of the source.
        """
        header = [self.name, self.classes, self.domains, self.split_rule, self.list_order, sorted(self.keys)]
        digest = hashlib.sha256(_dump(header).encode())
        by_key = np.array(sorted(range(len(self)), key=self.keys.__getitem__), dtype=np.int64)
        for column in (self.crc32, self.label, self.domain, self.split):
            digest.update(column[by_key].astype("<i8").tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, folder: Path | str | Folder, *, check_shards: bool = True) -> Index:
        """Read and validate the index of the benchmark in `folder`.

        Args:
            folder: The folder that holds `index.json` and the shards: a local path or an fsspec URL.
            check_shards: Also demand that every shard lies in `folder` with exactly the stated length, where one
                listing tells the lengths. Turn it off where only the index is there.

        Raises:
            UserError: If the index is missing, is no valid index, or does not match its shards.
        """
        files = open_folder(folder) if isinstance(folder, (str, Path)) else folder
        path = f"{files.where}/{INDEX_FILE}"
        try:
            text = files.read(INDEX_FILE).decode()
        except FileNotFoundError:
            raise UserError(
                f"{path}: found no such file, expected the index of the shards; prepare the data set"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: found an unreadable file ({error}), expected JSON text; check the file") from None
        index = cls.parse(text, path)
        if check_shards:
            _check_files(files, index.shards)
        return index

    @classmethod
    def parse(cls, text: str, where: str) -> Index:
        """Build an index from its JSON text; `where` names its source in errors.

        Raises:
            UserError: If the text is no valid index, or not the one that was written.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
            _fail(where, "the file", f"invalid JSON ({error})", "a JSON document")
        if not isinstance(document, dict):
            _fail(where, "the file", type(document).__name__, "a JSON object")
        if document.get("schema") != SCHEMA:
            _fail(where, "schema", repr(document.get("schema")), str(SCHEMA))
        samples = _field(document, "samples", dict, where)
        keys = _names(samples, "key", where, "samples.")
        columns = {name: _column(samples, name, len(keys), where) for name in COLUMNS}
        shards = _shards(document, where)
        classes, domains = _names(document, "classes", where), _names(document, "domains", where)
        _check_columns(columns, keys, len(shards), len(classes), len(domains), where)
        index = cls(
            name=_field(document, "name", str, where),
            image_size=_field(document, "image_size", int, where),
            classes=classes,
            domains=domains,
            split_rule=_field(document, "split_rule", str, where),
            list_order=_list_order(document, len(classes), where),
            shards=shards,
            keys=keys,
            **{field: columns[name].astype(kind) for name, (field, kind) in COLUMNS.items()},
        )
        _check_images_inside(index, where)
        if _field(document, "fingerprint", str, where) != index.fingerprint:
            _fail(
                where,
                "fingerprint",
                f"{document['fingerprint'][:16]!r}…",
                f"{index.fingerprint[:16]}…, the hash of the content: the file was changed after it was written",
            )
        return index

    def save(self, folder: Path | str | Folder) -> None:
        """Write `index.json` into `folder`, whole or not at all; equal indexes give equal bytes.

        Raises:
            UserError: If the folder cannot be written.
        """
        samples = {"key": list(self.keys)} | {
            name: _short(getattr(self, field).tolist()) for name, (field, _) in COLUMNS.items()
        }
        header = self._header()
        del header["keys"]
        header = {"schema": header.pop("schema"), "fingerprint": self.fingerprint, **header}
        lines = [f'"{key}":{_dump(value)}' for key, value in header.items()]
        columns = ",\n".join(f'"{key}":{_dump(value)}' for key, value in samples.items())
        text = "{" + ",\n".join(lines) + ',\n"samples":{\n' + columns + "\n}}\n"
        files = open_folder(folder) if isinstance(folder, (str, Path)) else folder
        files.write(INDEX_FILE, text.encode())

    def _header(self) -> dict[str, Any]:
        """All but the columns of numbers."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "image_size": self.image_size,
            "classes": list(self.classes),
            "domains": list(self.domains),
            "split_rule": self.split_rule,
            "list_order": list(self.list_order),
            "shards": [{"name": s.name, "bytes": s.bytes, "sha256": s.sha256} for s in self.shards],
            "keys": list(self.keys),
        }


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _short(values: list[int]) -> list[int] | int:
    """A column in the file: one number stands for a column of the same number all through."""
    return values[0] if values and values.count(values[0]) == len(values) else values


def _fail(where: str, field: str, found: str, expected: str, advice: str = "write the index again") -> NoReturn:
    raise UserError(f"{where}: {field}: found {found}, expected {expected}; {advice}")


def _field(document: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = document.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "nothing" if name not in document else type(value).__name__
        _fail(where, name, found, kind.__name__)
    return value


def _names(document: Mapping[str, Any], name: str, where: str, prefix: str = "") -> tuple[str, ...]:
    values = document.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        _fail(where, prefix + name, "something else", "a list of one or more names")
    if len(set(values)) != len(values):
        seen: set[str] = set()
        twice = next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        _fail(where, prefix + name, f"{twice!r} twice", "each name once")
    return tuple(values)


def _list_order(document: Mapping[str, Any], n_classes: int, where: str) -> tuple[int, ...]:
    values = _field(document, "list_order", list, where)
    if values and not (all(type(value) is int for value in values) and sorted(values) == list(range(n_classes))):
        _fail(where, "list_order", "something else", f"each class number from 0 to {n_classes - 1} once, or nothing")
    return tuple(values)


def _shards(document: Mapping[str, Any], where: str) -> tuple[Shard, ...]:
    shards = []
    for number, entry in enumerate(_field(document, "shards", list, where)):
        field = f"shards[{number}]"
        if not isinstance(entry, dict):
            _fail(where, field, type(entry).__name__, "an object with name, bytes and sha256")
        name, length, digest = (
            _field(entry, key, kind, f"{where}: {field}")
            for key, kind in (("name", str), ("bytes", int), ("sha256", str))
        )
        if name in ("", ".", "..") or name != os.path.basename(name) or "\0" in name:
            _fail(where, f"{field}.name", repr(name), "a file name without a folder")
        if not 0 <= length < 1 << 63:
            _fail(where, f"{field}.bytes", str(length), "a length in bytes")
        if not re.fullmatch("[0-9a-f]{64}", digest):  # it names a file of the cache
            _fail(where, f"{field}.sha256", repr(digest), "64 hexadecimal digits")
        shards.append(Shard(name=name, bytes=length, sha256=digest))
    return tuple(shards)


def _column(samples: Mapping[str, Any], name: str, length: int, where: str) -> NDArray[np.int64]:
    values = samples.get(name)
    if type(values) is int and abs(values) < 1 << 63:
        return np.full(length, values, dtype=np.int64)
    values = _field(samples, name, list, where)
    if len(values) != length:
        _fail(where, f"samples.{name}", f"{len(values)} entries", f"{length}, one for each key")
    try:
        column = np.array(values)
    except (ValueError, OverflowError):  # lists of several lengths
        column = np.array(None)
    if column.shape != (length,) or column.dtype.kind != "i":
        _fail(where, f"samples.{name}", "an entry that is no integer of 64 bits", "integers only")
    return column.astype(np.int64)


def _check_columns(
    columns: Mapping[str, NDArray[np.int64]],
    keys: Sequence[str],
    n_shards: int,
    n_classes: int,
    n_domains: int,
    where: str,
) -> None:
    """Every number must point at something: a shard, a class, a domain, a split."""
    ranges = {
        "shard": (0, n_shards - 1),
        "offset": (0, None),
        "size": (1, None),
        "crc32": (0, (1 << 32) - 1),
        "height": (1, (1 << 31) - 1),
        "width": (1, (1 << 31) - 1),
        "class": (0, n_classes - 1),
        "domain": (0, n_domains - 1),
        "split": (0, len(SPLITS) - 1),
    }
    for name, (low, high) in ranges.items():
        values = columns[name]
        wrong = np.flatnonzero((values < low) | (values > (np.iinfo(np.int64).max if high is None else high)))
        if wrong.size:
            n = int(wrong[0])
            expected = f">= {low}" if high is None else f"{low} to {high}"
            _fail(where, f"samples.{name} of sample {keys[n]!r}", str(values[n]), expected)


def _check_images_inside(index: Index, where: str) -> None:
    """Every image must lie inside its shard."""
    lengths = np.array([shard.bytes for shard in index.shards], dtype=np.int64)
    # size > length - offset, not offset + size > length: the sum may pass 64 bits in a corrupt index.
    outside = np.flatnonzero(index.size > lengths[index.shard] - index.offset)
    if outside.size:
        n = int(outside[0])
        shard = index.shards[index.shard[n]]
        end = int(index.offset[n]) + int(index.size[n])
        _fail(
            where, f"sample {index.keys[n]!r}", f"its image ending at byte {end} of {shard.name}", f"<= {shard.bytes}"
        )


def _check_files(files: Folder, shards: Sequence[Shard]) -> None:
    try:
        sizes = files.sizes()
    except UserError:  # the listing only finds a fault early, and not every server that gives ranges gives lists
        return
    for shard in shards if sizes else ():
        path, found = f"{files.where}/{shard.name}", sizes.get(shard.name)
        if found is None:
            raise UserError(
                f"{path}: found no such shard, expected {shard.bytes} bytes as {INDEX_FILE} says; restore the file"
            )
        if found < shard.bytes:
            raise UserError(
                f"{path}: found a truncated shard that ends at byte {found}, expected {shard.bytes} bytes as"
                f" {INDEX_FILE} says; restore the file"
            )
        if found > shard.bytes:
            raise UserError(
                f"{path}: found {found} bytes, expected {shard.bytes} as {INDEX_FILE} says: the index does not match"
                " its shard; write both again"
            )
