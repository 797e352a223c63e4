"""Whether shards hold what their index says, byte for byte."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np

from benchmarks.folder import Folder, open_folder
from benchmarks.index import Index
from fmlora_dist.errors import UserError

__all__ = ["verify_shards"]


def verify_shards(index: Index, folder: Path | str | Folder) -> None:
    """Compare the SHA-256 of every shard in `folder` with the index's.

    Raises:
        UserError: A shard is missing or differs; names the first image that differs, with its byte offset.
    """
    files = open_folder(folder) if isinstance(folder, (str, Path)) else folder
    for number, shard in enumerate(index.shards):
        path = f"{files.where}/{shard.name}"
        try:
            content = files.read(shard.name)
        except FileNotFoundError:
            raise UserError(f"{path}: found no such shard, expected {shard.bytes} bytes; restore the file") from None
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise UserError(f"{path}: {_blame(index, number, content)}; restore the file, or write both again")


def _blame(index: Index, number: int, content: bytes) -> str:
    """What is wrong with the shard of that number."""
    rows = np.flatnonzero(index.shard == number)
    for row in rows[np.argsort(index.offset[rows])]:
        start, size = int(index.offset[row]), int(index.size[row])
        if zlib.crc32(content[start : start + size]) != index.crc32[row]:
            return (
                f"corrupt at sample '{index.keys[row]}', byte {start}: found {size} bytes with another CRC-32 than the"
                " index says"
            )
    return (
        f"the index does not match its shard: bytes 0 to {len(content)} have another SHA-256 than the index says,"
        " though every image is as it says"
    )
