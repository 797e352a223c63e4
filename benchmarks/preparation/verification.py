"""`fmlora verify`: every shard read again, against the manifest and the index."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from benchmarks.folder import open_folder
from benchmarks.index import INDEX_FILE, Index
from benchmarks.preparation.images import BrokenImage, check_image
from benchmarks.preparation.manifest import MANIFEST_FILE, counts, parse_manifest
from benchmarks.preparation.progress import ImageProgress
from benchmarks.preparation.records import read_if_there
from benchmarks.preparation.workers import run_jobs
from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError

__all__ = ["Verified", "verify"]

_TOLD = 3
"""Broken images of a shard that are named; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was read."""

    index: Index
    manifest: bool
    """Whether there is a manifest; without one the index alone is the measure."""
    faults: tuple[str, ...]
    """A line for each shard, image or count that is not as it was written, in the order of the shards."""
    rate: float
    """Images a second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _ShardCheck:
    where: str
    number: int
    name: str
    length: int
    sha256: str
    rows: tuple[tuple[str, int, int, int], ...]
    """Key, offset, size and CRC-32 of each image."""


def verify(where: str, *, workers: int | None = None, console: Console) -> Verified:
    """Read all shards in `where`, a path or fsspec URL, and look at every image.

    Args:
        where: The folder of index, manifest and shards.
        workers: Processes; None for one a core where there is enough to do.
        console: Where progress is shown.

    Raises:
        UserError: If index or manifest cannot be read. Faults of shards are no error here, but in the result.
    """
    folder = open_folder(where)
    index = Index.load(folder, check_shards=False)
    content = read_if_there(folder, MANIFEST_FILE)
    faults = (
        list(_against_manifest(index, folder.read(INDEX_FILE), content, folder.where)) if content is not None else []
    )
    if workers is None:
        workers = local_cores() if sum(shard.bytes for shard in index.shards) > 32 << 20 else 1
    by_shard: dict[int, list[str]] = {}
    with ImageProgress(f"verify {index.name}", len(index), console) as progress:
        for number, images, found in run_jobs(_check_shard, _checks(index, where), min(workers, len(index.shards))):
            by_shard[number] = found
            progress.advance(images)
        rate = progress.rate
    faults += [fault for number in sorted(by_shard) for fault in by_shard[number]]
    return Verified(index=index, manifest=content is not None, faults=tuple(faults), rate=rate)


def _against_manifest(index: Index, index_file: bytes, content: bytes, where: str) -> Iterator[str]:
    manifest = parse_manifest(content, f"{where}/{MANIFEST_FILE}")
    files = {INDEX_FILE: (len(index_file), hashlib.sha256(index_file).hexdigest())}
    files |= {shard.name: (shard.bytes, shard.sha256) for shard in index.shards}
    stated = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    for name in sorted(files.keys() | stated.keys()):
        if files.get(name) != stated.get(name):
            yield (
                f"{where}/{INDEX_FILE}: found {name} as {_file(files.get(name))}, expected {_file(stated.get(name))}"
                f" as {MANIFEST_FILE} says"
            )
    for key, found in counts(index).items():
        if found != manifest["counts"].get(key):
            yield f"{where}/{INDEX_FILE}: found other counts of {key} than {MANIFEST_FILE} says"


def _file(entry: tuple[int, str] | None) -> str:
    return f"{entry[0]} bytes with SHA-256 {entry[1][:16]}…" if entry else "no such file"


def _checks(index: Index, where: str) -> Iterator[_ShardCheck]:
    for number, shard in enumerate(index.shards):
        rows = np.flatnonzero(index.shard == number)
        rows = rows[np.argsort(index.offset[rows])]
        yield _ShardCheck(
            where=where,
            number=number,
            name=shard.name,
            length=shard.bytes,
            sha256=shard.sha256,
            rows=tuple(
                (index.keys[row], int(index.offset[row]), int(index.size[row]), int(index.crc32[row])) for row in rows
            ),
        )


def _check_shard(check: _ShardCheck) -> tuple[int, int, list[str]]:
    """The shard's number, how many images it has, and its faults."""
    folder = open_folder(check.where)
    path = f"{folder.where}/{check.name}"
    try:
        content = folder.read(check.name)
    except FileNotFoundError:
        return check.number, len(check.rows), [f"{path}: found no such shard, expected {check.length} bytes"]
    except UserError as error:
        return check.number, len(check.rows), [str(error)]
    faults = [
        f"{path}: sample '{key}' at byte {offset}: {problem}"
        for key, offset, size, crc32 in check.rows
        if (problem := _problem(content[offset : offset + size], size, crc32))
    ]
    if len(faults) > _TOLD:
        faults[_TOLD:] = [f"{path}: {len(faults) - _TOLD} more broken samples"]
    if len(content) != check.length:
        faults.insert(0, f"{path}: found {len(content)} bytes, expected {check.length}")
    elif not faults and hashlib.sha256(content).hexdigest() != check.sha256:
        faults.append(f"{path}: found another SHA-256 than the index says, though every image is whole")
    return check.number, len(check.rows), faults


def _problem(image: bytes, size: int, crc32: int) -> str:
    if len(image) != size:
        return f"found {len(image)} bytes, expected {size}: the shard is truncated"
    if zlib.crc32(image) != crc32:
        return f"found CRC-32 {zlib.crc32(image):08x}, expected {crc32:08x}"
    try:
        check_image(image)
    except BrokenImage as error:
        return f"found {error}"
    return ""
