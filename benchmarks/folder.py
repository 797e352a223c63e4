"""A folder of shards, on a local disk or behind any fsspec URL: whole files, byte ranges, and one listing.

A local fault is reported at once. A remote one (a stall, a reset, a short answer, a server that ignores the range or
answers 5xx, a shard that changes under the reader) is tried again, each time after twice the pause, and then reported.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from fsspec.asyn import reset_lock
from fsspec.core import url_to_fs

from fmlora_dist.errors import UserError

__all__ = ["Descriptor", "Folder", "LocalFolder", "RemoteFolder", "open_folder"]

OPEN_FILES = 64
"""Descriptors that a folder keeps open; each costs one of the process's, of which there are often 1,024."""

_WHOLE_FILE = 10
"""How many times longer a whole file may take than a range."""

# Fsspec asks this of whoever forks: its thread is not in the child, and its lock may have been closed at the time.
os.register_at_fork(after_in_child=reset_lock)


class Folder(Protocol):
    """What a local and a remote folder have in common. Several threads may use one."""

    where: str
    """Path or URL, as errors name it."""

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the folder until now, those of failed tries too."""

    def read(self, name: str) -> bytes:
        """A whole file. Raises ``FileNotFoundError`` if there is none, ``UserError`` if it cannot be read."""

    def read_range(self, name: str, start: int, size: int, crc32: int) -> bytes:
        """Exactly `size` bytes from byte `start` on, whose CRC-32 must be `crc32`. Raises ``UserError``."""

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file, whole or not at all; makes the folder if it is not there. Raises ``UserError``."""

    def sizes(self) -> dict[str, int]:
        """Length in bytes of each file, from one listing; empty where there is no folder, or no lengths are listed.

        Raises:
            UserError: If the folder cannot be listed, so that nobody knows what it holds.
        """

    def close(self) -> None:
        """Give back what is open; the folder can still be used."""


def open_folder(where: Path | str) -> Folder:
    """The folder at a local path or an fsspec URL. Raises ``UserError`` if nothing installed reads such a URL."""
    text = str(where).removeprefix("file://")
    return RemoteFolder(text) if "://" in text else LocalFolder(text)


class LocalFolder:
    """A folder on a disk."""

    def __init__(self, path: Path | str):
        self.where = str(path)
        self._path = Path(path)
        self._count = _Counter()
        # Each entry is closed when the cache and the last thread that reads from it let go of it.
        self._descriptors = lru_cache(OPEN_FILES)(lambda name: Descriptor(self._path / name, os.O_RDONLY))

    @property
    def bytes_read(self) -> int:
        return self._count.total

    def read(self, name: str) -> bytes:
        if not self._path.is_dir():
            raise UserError(f"{self.where}: found no such folder, expected one with {name}; check the path")
        try:
            content = (self._path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"{self._path / name}: found an unreadable file ({error.strerror}); check the file"
            ) from None
        self._count.add(len(content))
        return content

    def read_range(self, name: str, start: int, size: int, crc32: int) -> bytes:
        try:
            content = self._descriptors(name).read(start, size)
        except OSError as error:
            problem: str | None = f"an unreadable file ({error.strerror})"
        else:
            self._count.add(len(content))
            problem = _problem(content, size, crc32)
        if problem:
            raise UserError(
                f"{self._path / name}: byte {start}: found {problem}, expected {size} bytes as the index says;"
                " restore the shard"
            )
        return content

    def write(self, name: str, content: bytes) -> None:
        path = self._path / name
        temporary = path.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(
                f"{path}: found no way to write {len(content)} bytes ({error.strerror}); choose another folder, or make"
                " room"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        found = {}
        try:
            listing = os.scandir(self._path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unlisted(self.where, error) from None
        with listing as entries:
            for entry in entries:
                if entry.is_file():
                    found[entry.name] = entry.stat().st_size
        return found

    def close(self) -> None:
        self._descriptors.cache_clear()


class RemoteFolder:
    """A folder behind an fsspec URL."""

    def __init__(self, url: str, *, tries: int = 4, pause: float = 0.5, timeout: float = 60.0):
        """Describe the folder; nothing is asked of the server yet.

        Args:
            url: Such as ``s3://bucket/icons``.
            tries: How often a file or range is asked for before its fault is reported.
            pause: Seconds before the second try; each further pause is twice the one before.
            timeout: Seconds until a range that has not come counts as stalled; ten times that for a whole file. For
                fsspec's asynchronous file systems (http, s3, gs, abfs); the others have limits of their own, or none.

        Raises:
            UserError: If the URL's protocol is unknown or its package is not installed.
        """
        self.where = url.rstrip("/")
        self._tries, self._pause, self._timeout = tries, pause, timeout
        self._count = _Counter()
        self._files: tuple[int, Any, str] | None = None
        self._connect()

    @property
    def bytes_read(self) -> int:
        return self._count.total

    def read(self, name: str) -> bytes:
        return self._retried(name, "", lambda content: None)

    def read_range(self, name: str, start: int, size: int, crc32: int) -> bytes:
        try:
            return self._retried(
                name,
                f"bytes {start} to {start + size - 1}: ",
                lambda content: _problem(content, size, crc32),
                start=start,
                end=start + size,
            )
        except FileNotFoundError:
            raise UserError(f"{self.where}/{name}: found no such shard; restore it, or write the index again") from None

    def write(self, name: str, content: bytes) -> None:
        def put() -> bytes:
            files, root = self._connect()
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{name}", content)
            return b""

        self._attempt(f"{self.where}/{name}: ", put, lambda content: None, "that files can be written to this URL")

    def sizes(self) -> dict[str, int]:
        files, root = self._connect()
        try:
            listing = files.ls(root, detail=True, **self._within(files, _WHOLE_FILE))
        except FileNotFoundError:
            return {}
        except Exception as error:  # PermissionError, or whatever a protocol's package has in its place
            raise _unlisted(self.where, error) from error
        return {
            entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["size"]
            for entry in listing
            if entry.get("type") == "file" and isinstance(entry.get("size"), int)
        }

    def close(self) -> None:
        self._files = None

    def _connect(self) -> tuple[Any, str]:
        """The file system and the folder's path in it. A forked process gets its own, as fsspec demands."""
        if self._files is None or self._files[0] != os.getpid():
            try:
                files, root = url_to_fs(self.where)
            except ImportError as error:
                raise UserError(
                    f"{self.where}: found no installed package that reads {self.where.split('://')[0]}:// ({error});"
                    " install it with pip"
                ) from None
            except ValueError as error:
                raise UserError(
                    f"{self.where}: found a URL that fsspec does not know ({error}), expected one such as s3://, gs://,"
                    " hf:// or https://; correct the URL"
                ) from None
            self._files = os.getpid(), files, root.rstrip("/")
        return self._files[1:]

    def _retried(self, name: str, span: str, check: Callable[[bytes], str | None], **limits: int) -> bytes:
        def get() -> bytes:
            files, root = self._connect()
            # A synchronous file system would otherwise read ahead, megabytes for each image.
            options = self._within(files, 1 if limits else _WHOLE_FILE) or {"cache_type": "none"}
            content: bytes = files.cat_file(f"{root}/{name}", **limits, **options)
            self._count.add(len(content))
            return content

        sound = "that the shards are those of the index" if limits else "the URL"
        return self._attempt(f"{self.where}/{name}: {span}", get, check, sound)

    def _attempt(self, what: str, ask: Callable[[], bytes], check: Callable[[bytes], str | None], sound: str) -> bytes:
        """What `ask` gives, asked for again until nothing is wrong with it; `sound` is what the user should check."""
        problem: str | None = None
        for number in range(self._tries):
            if number:
                time.sleep(self._pause * 2 ** (number - 1))
            try:
                content = ask()
                problem = check(content)
            except FileNotFoundError:
                raise
            except PermissionError as error:
                raise UserError(f"{what}found no permission ({error}); check your credentials") from error
            except (TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
                problem = "no answer in time"
            except Exception as error:  # Each protocol's package has errors of its own.
                problem = _told(error)
            if problem is None:
                return content
        raise UserError(f"{what}found {problem}, in {self._tries} tries; check the connection, and {sound}")

    def _within(self, files: Any, times: int) -> dict[str, Any]:
        """The option that bounds a call's seconds, where the file system has one."""
        return {"timeout": self._timeout * times} if files.async_impl else {}


class Descriptor:
    """An open file, closed with the last reference to it, so that no thread closes what another reads from.

    Its number is its own, since whoever took that alone would hold no reference.
    """

    def __init__(self, path: Path, flags: int):
        self._number = os.open(path, flags | os.O_CLOEXEC, 0o666)

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from byte `start` on. Raises ``OSError``."""
        return os.pread(self._number, size, start)

    def write(self, start: int, content: bytes) -> None:
        """Put the content, or the part of it that there is room for, at byte `start`. Raises ``OSError``."""
        os.pwrite(self._number, content, start)

    def __del__(self) -> None:
        if hasattr(self, "_number"):  # it has none where the file could not be opened
            os.close(self._number)


class _Counter:
    """A sum to which threads add, each in a place of its own: without a lock, which a fork could leave closed."""

    def __init__(self) -> None:
        self._by_thread: dict[int, int] = {}

    def add(self, n: int) -> None:
        thread = threading.get_ident()
        self._by_thread[thread] = self._by_thread.get(thread, 0) + n

    @property
    def total(self) -> int:
        return sum(list(self._by_thread.values()))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _unlisted(where: str, error: Exception) -> UserError:
    return UserError(
        f"{where}: found no way to list this folder ({_told(error)}), expected the names of its files; check your"
        " permissions there"
    )


def _problem(content: bytes, size: int, crc32: int) -> str | None:
    """What is wrong with the bytes, or None."""
    if len(content) > size:
        return f"{len(content)} bytes in place of {size} (a server that ignores the byte range)"
    if len(content) < size:
        return f"{len(content)} bytes in place of {size} (a truncated shard)"
    if zlib.crc32(content) != crc32:
        return f"{size} bytes with another CRC-32 than the index says (a corrupt or another shard)"
    return None
