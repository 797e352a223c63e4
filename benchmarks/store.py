"""The encoded images of a benchmark, each by its own byte range and checked against the index."""

from __future__ import annotations

import os
import zlib
from functools import lru_cache
from pathlib import Path

from benchmarks.folder import OPEN_FILES, Descriptor, Folder, LocalFolder, open_folder
from benchmarks.index import Index, Shard

__all__ = ["Store"]


class Store:
    """Reads the images that an index lists. Several threads may use it, and so may processes forked from this one."""

    def __init__(self, folder: Path | str | Folder, index: Index, cache_dir: Path | None = None):
        """Describe the store; nothing is read yet.

        Args:
            folder: Folder of the shards: a path, an fsspec URL, or an opened folder (with tries and times of its own).
            index: The benchmark's index.
            cache_dir: Keeps what was read from a remote folder, for later runs and for other processes too. It grows
                up to the length of the shards. Not used for a local folder.

        Raises:
            UserError: If nothing installed reads such a URL.
        """
        self.folder = open_folder(folder) if isinstance(folder, (str, Path)) else folder
        self._index = index
        self._cache = None if cache_dir is None or isinstance(self.folder, LocalFolder) else _Cache(cache_dir)

    @property
    def where(self) -> str:
        """Path or URL of the shards, as errors name it."""
        return self.folder.where

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the folder until now, those of failed tries too and those from the cache not."""
        return self.folder.bytes_read

    def read(self, row: int) -> bytes:
        """The encoded image of an index row.

        Raises:
            UserError: If the shard is missing, too short, corrupt or cannot be reached; names it and the byte.
        """
        index = self._index
        shard = index.shards[index.shard[row]]
        start, size, crc32 = int(index.offset[row]), int(index.size[row]), int(index.crc32[row])
        if self._cache is not None:
            kept = self._cache.get(shard, start, size)
            if kept is not None and zlib.crc32(kept) == crc32:
                return kept
        content = self.folder.read_range(shard.name, start, size, crc32)
        if self._cache is not None:
            self._cache.put(shard, start, content)
        return content

    def close(self) -> None:
        """Give back what is open; the store can still be used."""
        self.folder.close()
        if self._cache is not None:
            self._cache.close()


class _Cache:
    """Parts of shards on the local disk: for each shard one sparse file by the name of its SHA-256.

    No list says which parts are there. The caller checks what it gets against the CRC-32 of the index, and so a part
    that was never written, or half written by a process that was killed, is just no part. What other processes write
    in the same place is the same.
    """

    def __init__(self, folder: Path):
        self._folder = Path(folder)
        self._full = False
        self._descriptors = lru_cache(OPEN_FILES)(self._open)

    def get(self, shard: Shard, start: int, size: int) -> bytes | None:
        try:
            return self._descriptors(shard.sha256).read(start, size)
        except OSError:
            return None

    def put(self, shard: Shard, start: int, content: bytes) -> None:
        if not self._full:
            try:
                self._descriptors(shard.sha256).write(start, content)
            except OSError:  # No room, no permission or no disk: go on without.
                self._full = True

    def close(self) -> None:
        self._descriptors.cache_clear()

    def _open(self, name: str) -> Descriptor:
        self._folder.mkdir(parents=True, exist_ok=True)
        return Descriptor(self._folder / name, os.O_RDWR | os.O_CREAT)
