"""Which shards of an unfinished preparation are finished: a small record of each, in a folder beside the shards."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from benchmarks.folder import Folder, LocalFolder, open_folder
from benchmarks.index import COLUMNS, Shard
from benchmarks.shards import Tar
from fmlora_dist.errors import InUseError, UserError

__all__ = ["RECORDS", "Record", "Records", "Skipped", "read_if_there"]

RECORDS = ".prepare"
"""The folder of the records; it goes when the index is there."""

_PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that is left out."""

    key: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What one finished shard holds, and what was left out of it."""

    tar: Tar
    skipped: tuple[Skipped, ...]


class Records:
    """The records of the preparation in one output folder."""

    def __init__(self, out: str):
        """Name the output folder, a path or URL; nothing is read or written yet."""
        self._folder = open_folder(f"{out.rstrip('/')}/{RECORDS}")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes out, on a disk; the lock dies with its process.

        Raises:
            InUseError: If another process works in the output folder.
            UserError: If the folder cannot be written.
        """
        if not isinstance(self._folder, LocalFolder):
            yield
            return
        folder = Path(self._folder.where)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / "lock", "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise UserError(f"out: found no way to write {folder} ({error.strerror}); choose another --out") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InUseError(
                    f"out: another process is preparing into {folder.parent}; wait for it, or stop it"
                ) from error
            try:
                yield
            finally:
                if not self.begun():
                    self.remove()

    def begun(self) -> bool:
        """Whether a preparation has noted its plan here."""
        return read_if_there(self._folder, _PLAN) is not None

    def begin(self, digest: str, described: dict[str, Any]) -> None:
        """Note the plan; or, where one is noted, demand that it is the same.

        Raises:
            UserError: If it is another; says in what.
        """
        text = read_if_there(self._folder, _PLAN)
        if text is None:
            self._folder.write(_PLAN, json.dumps({"digest": digest, "options": described}, sort_keys=True).encode())
            return
        try:
            noted = json.loads(text)
            if noted["digest"] == digest:
                return
            before = noted["options"]
            changed = [f"{k} {before.get(k)!r}, now {v!r}" for k, v in described.items() if before.get(k) != v]
        except (ValueError, KeyError, TypeError, AttributeError):
            changed = ["a broken note of its plan"]
        raise UserError(
            f"out: found an unfinished preparation in {self._folder.where} with {'; '.join(changed) or 'other images'},"
            " expected the same options and source; give those again, or another --out, or delete that folder to begin"
            " anew"
        )

    def write(self, record: Record) -> None:
        """Note a finished shard, after its bytes are where they belong."""
        tar = record.tar
        columns = {name: values.tolist() for name, values in tar.columns.items()}
        document: dict[str, Any] = {"shard": asdict(tar.shard), "keys": list(tar.keys), "columns": columns}
        document["skipped"] = [asdict(one) for one in record.skipped]
        self._folder.write(f"{tar.shard.name}.json", json.dumps(document, separators=(",", ":")).encode())

    def read(self, names: Sequence[str], sizes: dict[str, int]) -> dict[str, Record]:
        """The records of those of the named shards that are finished and still there.

        Args:
            names: The shards of the plan.
            sizes: Length in bytes of each file in the output folder.
        """
        noted, found = self._folder.sizes(), {}
        for name in names:
            if f"{name}.json" in noted and name in sizes:
                record = _parse(self._folder.read(f"{name}.json"))
                if record is not None and record.tar.shard.bytes == sizes[name]:
                    found[name] = record
        return found

    def remove(self) -> None:
        """Remove the folder with all records.

        Raises:
            UserError: If that is not possible.
        """
        files, path = url_to_fs(self._folder.where)
        try:
            if files.exists(path):
                files.rm(path, recursive=True)
        except Exception as error:  # each protocol's package has errors of its own
            raise UserError(
                f"out: found no way to remove {self._folder.where} ({error}), which nothing needs any more; remove that"
                " folder by hand"
            ) from error


def read_if_there(folder: Folder, name: str) -> bytes | None:
    """A file of a folder; None where the folder or the file is not there."""
    if isinstance(folder, LocalFolder) and not Path(folder.where).is_dir():
        return None
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def _parse(text: bytes) -> Record | None:
    """None for what no ``write`` has written: the shard is made again then."""
    try:
        document = json.loads(text)
        columns = {name: np.array(document["columns"][name], dtype=np.int64) for name in COLUMNS if name != "shard"}
        keys = tuple(document["keys"])
        if any(len(values) != len(keys) for values in columns.values()):
            return None
        tar = Tar(shard=Shard(**document["shard"]), keys=keys, columns=columns)
        return Record(tar=tar, skipped=tuple(Skipped(**one) for one in document["skipped"]))
    except (ValueError, KeyError, TypeError):
        return None
