"""Files carried between a local folder and an object store: a store replaces an object whole, and appends nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cluster.lease import Lease
from fmlora_dist.errors import InUseError, UserError

__all__ = ["Carried", "Copy", "insist"]

T = TypeVar("T")

_EVERY = 10.0
"""Seconds between two rounds in which a run's changed files are put into the store."""
_GIVE_UP = 300.0
"""Seconds for which a store may fail until a run is stopped: its checkpoints would be lost with its worker."""
_PAUSES = (1.0, 4.0, 16.0, 60.0)
"""Seconds between tries, where there is nothing else to do."""


class Copy:
    """A local folder, and the same in a store. What was once carried is carried again only when it has changed."""

    def __init__(self, files: Any, root: str, folder: Path):
        """``files`` is an fsspec file system that caches no listings, ``root`` the path in it."""
        self.folder = folder
        self._files, self._root = files, root
        self._carried: dict[str, tuple[int, int]] = {}
        folder.mkdir()

    def fetch(self) -> None:
        """Get all files of a run but its leases, whole; not those in folders below it."""
        for name in self._sizes():
            if "/" not in name and not name.startswith("lease-"):
                self._files.get_file(f"{self._root}/{name}", str(self.folder / name))
                self._carried[name] = _stamp(self.folder / name)

    def extend(self, wanted: Callable[[str], bool]) -> None:
        """Get what the wanted files have more than the local ones: they only ever grow."""
        sizes = {name: size for name, size in self._sizes().items() if wanted(name)}
        spans = [(name, have, sizes[name]) for name in sizes if (have := _stamp(self.folder / name)[1]) < sizes[name]]
        if not spans:
            return
        names, starts, ends = map(list, zip(*spans, strict=True))
        paths = [f"{self._root}/{name}" for name in names]
        for name, content in zip(names, self._files.cat_ranges(paths, starts, ends, on_error="raise"), strict=True):
            path = self.folder / str(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(content)
            self._carried[str(name)] = _stamp(path)

    def push(self) -> None:
        """Put what has changed here, config first and result last: a result is only ever seen after its checkpoint."""
        found = [path for path in self.folder.rglob("[!.]*") if path.is_file() and not path.is_symlink()]
        for path in sorted(found, key=lambda path: (path.name == "result.json", path.name != "config.yaml", path)):
            name, stamp = path.relative_to(self.folder).as_posix(), _stamp(path)
            if self._carried.get(name) != stamp:
                self._files.put_file(str(path), f"{self._root}/{name}")
                self._carried[name] = stamp

    def _sizes(self) -> dict[str, int]:
        found = self._files.find(self._root, detail=True)
        return {name[len(self._root) + 1 :]: int(entry["size"]) for name, entry in found.items()}


class Carried:
    """A run's directory on a worker, whose record is in a store: what changes is put there, while the lease holds."""

    def __init__(self, copy: Copy, lease: Lease, failed: Callable[[Exception], UserError]):
        """``failed`` says that the store cannot be written, and why."""
        self.folder = copy.folder
        self._copy, self._lease, self._failed = copy, lease, failed
        self._next, self._good = 0.0, time.monotonic()

    def keep(self) -> None:
        """Raises ``InUseError`` when another has the run now, ``UserError`` when the store has failed for too long."""
        if self._lease.lost:
            self._stop()
        if time.monotonic() < self._next:
            return
        try:
            self._put()
            self._good = time.monotonic()
        except UserError:
            raise
        except Exception as error:  # each file system has errors of its own
            if time.monotonic() - self._good > _GIVE_UP:
                raise self._failed(error) from error
        self._next = time.monotonic() + _EVERY

    def finish(self) -> None:
        """Raises likewise."""
        insist(self._put, self._failed)

    def _put(self) -> None:
        if self._lease.overtaken():
            self._stop()
        self._copy.push()

    def _stop(self) -> None:
        raise InUseError(f"another process has taken {self.folder.name} over: this one was thought dead")


def insist(work: Callable[[], T], failed: Callable[[Exception], UserError]) -> T:
    """Do some work with a store, if need be several times. Raises what ``failed`` makes of the last error."""
    pauses = iter(_PAUSES)
    while True:
        try:
            return work()
        except UserError:
            raise
        except Exception as error:
            pause = next(pauses, None)
            if pause is None or isinstance(error, PermissionError):
                raise failed(error) from error
            time.sleep(pause)


def _stamp(path: Path) -> tuple[int, int]:
    """(time of the last change, length in bytes); zeros where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
