"""Where a grid's record lies: a folder that all nodes share, or an object store behind a URL.

In a folder the runs work themselves, and their own locks hold. Behind a URL the record is the store's: a run works in
a folder of its worker, its files are fetched before and put back while it works, and a lease stands for the lock. The
grid's own process reads a copy, and what it writes there is put into the store. Runs know nothing of it.
"""

import contextlib
import itertools
import re
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from cluster.carry import Carried, Copy, insist
from cluster.lease import Lease
from cluster.servant import scratch_folder
from fmlora_dist.errors import InUseError, UserError

__all__ = ["CheckedOut", "ObjectStore", "Output", "open_output"]

_LOG = "events.jsonl"
_EVERY = 5.0
"""Seconds between two looks at what runs have written into a store."""


class CheckedOut:
    """A run's directory on the worker that has it; here it is the record itself."""

    def __init__(self, folder: Path):
        self.folder = folder

    def keep(self) -> None:
        """To be called now and then while the run works. Raises ``UserError`` when it must stop."""

    def finish(self) -> None:
        """To be called when the run's processes have ended, and before anybody is told. Raises ``UserError``."""


class Output:
    """A grid's record in a folder that all nodes share."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        """The record, or a copy of it."""
        self.where = str(self.folder)
        """Path or URL, for users and workers."""

    @contextmanager
    def opened(self) -> Iterator["Output"]:
        """For the grid's own process: ``folder`` is there, with all results. Raises ``UserError``."""
        yield self

    def begin(self) -> str:
        """Name of the grid's event log in ``folder``. Raises ``UserError`` where a grid could not work."""
        return _LOG

    def refresh(self, running: Collection[str], ended: Collection[str]) -> None:
        """Take in the news of runs, those of ``ended`` ones at once; give out what was written into ``folder``."""

    def update(self, runs: Collection[str]) -> None:
        """The same for these runs, at once and for certain. Raises ``UserError``."""

    def busy(self, run: str) -> bool:
        """Whether a process works on the run at this moment. Raises ``UserError`` where that cannot be told."""
        from fmlora_dist.record import RunDirectory  # imports torch, which trials do without

        return RunDirectory(self.folder / "runs" / run).busy

    def set_result_aside(self, run: str) -> Path | None:
        """Rename a run's result, so that it counts as not complete; gives its new path. Raises ``UserError``."""
        from fmlora_dist.record import RunDirectory

        return RunDirectory(self.folder / "runs" / run).set_result_aside()

    def unseen(self) -> str:
        """Why this worker cannot work on the grid's runs; '' if it can."""
        if (self.folder / "runs").is_dir():  # the grid has made it before it started anything
            return ""
        return (
            f"out: worker {socket.gethostname()} does not see {self.folder / 'runs'}; expected a folder that all nodes "
            "share, such as an NFS mount; choose another --out"
        )

    @contextmanager
    def check_out(self, run: str) -> Iterator[CheckedOut | Carried]:
        """The run's directory on this worker, until its processes have ended. Raises ``InUseError``."""
        yield CheckedOut(self.folder / "runs" / run)

    @contextmanager
    def beside(self, run: str) -> Iterator[CheckedOut]:
        """Where a process of a run that is checked out elsewhere writes its log. It raises nothing."""
        yield CheckedOut(self.folder / "runs" / run)


class _Beside(CheckedOut):
    """A folder that is put into a store from time to time. What cannot be put is lost: it is a log."""

    def __init__(self, copy: Copy):
        super().__init__(copy.folder)
        self._copy, self._next = copy, 0.0

    def keep(self) -> None:
        if time.monotonic() >= self._next:
            self.finish()
            self._next = time.monotonic() + 4 * _EVERY

    def finish(self) -> None:
        with contextlib.suppress(Exception):
            self._copy.push()


class ObjectStore(Output):
    """A grid's record behind an fsspec URL."""

    def __init__(self, url: str, *, beat: float = 10.0, patience: float = 60.0):
        """``beat`` and ``patience`` are a lease's. Raises ``UserError`` for a URL that nothing installed reads."""
        self.where = url.rstrip("/")
        self._files, self._root = _connect(self.where)
        self._times = {"beat": beat, "patience": patience}
        self._leases: dict[str, Lease] = {}
        self._next = 0.0

    @contextmanager
    def opened(self) -> Iterator["Output"]:
        with scratch_folder() as scratch:
            self._copy = Copy(self._files, self._root, scratch / "copy")
            self.folder = self._copy.folder
            try:
                self._exchange(())
            except Exception as error:  # each file system has errors of its own
                raise self._failed(error) from error
            try:
                yield self
            finally:
                with contextlib.suppress(Exception):
                    self._copy.push()

    def begin(self) -> str:
        # Nobody can append to an object, so each start of a grid has a log of its own.
        names = (f"events-{number}.jsonl" if number > 1 else _LOG for number in itertools.count(1))
        try:
            if _exclusive(self._files):
                name = next(name for name in names if self._create(name))
                if not self._create(name):
                    return name
        except NotImplementedError:
            pass
        except Exception as error:
            raise self._failed(error) from error
        raise UserError(
            f"{self.where}: found no way to create objects exclusively, without which two grids might do the same run; "
            "expected s3://, gs:// or abfs:// with a package and a server that can, or a folder that all nodes share"
        )

    def refresh(self, running: Collection[str], ended: Collection[str]) -> None:
        if ended or time.monotonic() >= self._next:
            with contextlib.suppress(Exception):  # there is a next time, and `update` says what is wrong
                self._exchange({*running, *ended})
            self._next = time.monotonic() + _EVERY

    def update(self, runs: Collection[str]) -> None:
        insist(lambda: self._exchange(runs), self._failed)

    def busy(self, run: str) -> bool:
        return insist(self._leases.setdefault(run, self._lease(run)).alive, self._failed)

    def set_result_aside(self, run: str) -> Path | None:
        aside = super().set_result_aside(run)
        if aside:
            insist(self._copy.push, self._failed)
            insist(lambda: self._files.rm_file(f"{self._root}/runs/{run}/result.json"), self._failed)
        return aside

    def unseen(self) -> str:
        with contextlib.suppress(PermissionError):
            if self._files.exists(f"{self._root}/{_LOG}"):
                return ""
        return (
            f"out: worker {socket.gethostname()} does not see the grid's files at {self.where}; expected a URL that "
            "all nodes reach by their own settings and credentials; give them access, or choose another --out"
        )

    @contextmanager
    def check_out(self, run: str) -> Iterator[CheckedOut | Carried]:
        lease = self._lease(run)
        if not lease.take():
            raise InUseError(f"another process works on {self.where}/runs/{run}; wait for it, or stop it")
        try:
            with scratch_folder() as scratch:
                copy = Copy(self._files, f"{self._root}/runs/{run}", scratch / run)
                copy.fetch()
                yield Carried(copy, lease, self._failed)
        finally:
            lease.release()

    @contextmanager
    def beside(self, run: str) -> Iterator[CheckedOut]:
        with scratch_folder() as scratch:
            yield _Beside(Copy(self._files, f"{self._root}/runs/{run}", scratch / run))

    def _exchange(self, runs: Collection[str]) -> None:
        def wanted(name: str) -> bool:
            *folders, file = name.split("/")
            if file.startswith("result.json") or (not folders and file.startswith("events")):
                return True
            return file in (_LOG, "log.txt") and folders[-1:] != [] and folders[-1] in runs

        self._copy.extend(wanted)
        self._copy.push()

    def _create(self, name: str) -> bool:
        try:
            self._files.pipe_file(f"{self._root}/{name}", b"", mode="create")
        except FileExistsError:
            return False
        return True

    def _lease(self, run: str) -> Lease:
        return Lease(self._files, f"{self._root}/runs/{run}", **self._times)

    def _failed(self, error: Exception) -> UserError:
        found = f"{type(error).__name__}: {error}"[:300]
        return UserError(f"{self.where}: found {found}; check the URL, your credentials and the connection")


def open_output(where: Path | str) -> Output:
    """The output at a path or an fsspec URL. Raises ``UserError`` for a URL that nothing installed reads."""
    text = str(where).removeprefix("file://")
    return ObjectStore(text) if re.match(r"[a-z][a-z0-9+.-]+:/", text) else Output(Path(text))


def _connect(url: str) -> tuple[Any, str]:
    """The file system behind a URL, which caches no listings, and the path in it."""
    if not re.match(r"[^/]+://[^/]", url):
        raise UserError(f"found '{url}', expected a folder, or a URL such as s3://bucket/paper; correct it")
    try:
        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(
            f"{url}: found no installed package that opens it ({error}); install it with pip, or choose a folder"
        ) from None
    except Exception as error:
        raise UserError(f"{url}: found a URL that fsspec does not open ({error}); correct it") from None
    return files, root.rstrip("/")


def _exclusive(files: Any) -> bool:
    """Whether the file system itself creates exclusively: fsspec's way for all looks first, and then writes."""
    if files.async_impl:
        return type(files)._pipe_file is not AsyncFileSystem._pipe_file
    return type(files).pipe_file is not AbstractFileSystem.pipe_file
