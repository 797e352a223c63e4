"""Who works on a run whose record lies in an object store: there is no lock there that dies with its owner.

A run's leases are the objects lease-1, lease-2, … beside its files. Each is created exclusively: however many try, one
succeeds. Who made the highest one holds the run, and counts in it as long as it lives; at the end it marks it released.
Another may make the next one when it has found the highest released, or has itself watched it stand still for a minute.
Only the watcher's clock counts: no two hosts' clocks are compared. A holder that finds a higher lease than its own was
thought dead, and must stop.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

__all__ = ["Lease"]

_PREFIX = "lease-"


class Lease:
    """The right to work on one run. Its methods raise what the file system does, but for those that say otherwise."""

    def __init__(self, files: Any, folder: str, *, beat: float = 10.0, patience: float = 60.0):
        """Describe the lease; nothing is asked of the store yet.

        Args:
            files: An fsspec file system that caches no listings.
            folder: The run's folder in it.
            beat: Seconds between two counts of a holder.
            patience: Seconds of standing still after which a holder is taken for dead; several times ``beat``.
        """
        self.lost = False
        """Whether another has been seen to hold the run."""
        self._files, self._folder = files, folder
        self._beat, self._patience = beat, patience
        self._owner = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        self._number = self._count = 0
        self._seen, self._since = (0, b""), 0.0
        self._ended = threading.Event()
        self._counting = threading.Thread(target=self._keep, name="lease", daemon=True)

    def alive(self) -> bool:
        """Whether somebody holds the run, as far as can be said: one just seen for the first time counts as alive."""
        number = self._highest()
        seen = number, self._files.cat_file(self._path(number)) if number else b""
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        held = number > 0 and not _read(seen[1]).get("released")
        return held and time.monotonic() - self._since < self._patience

    def take(self) -> bool:
        """Hold the run, once its last holder is out of doubt; False when another is alive, or was quicker."""
        first = None
        while self.alive():
            first = first or self._seen
            if self._seen != first:
                return False
            time.sleep(self._beat / 4)
        self._number = self._seen[0] + 1
        with contextlib.suppress(FileExistsError):  # of another, or made by this very call, whose answer was lost
            self._files.pipe_file(self._path(self._number), self._content(), mode="create")
        if _read(self._files.cat_file(self._path(self._number))).get("owner") != self._owner:
            return False
        self._counting.start()
        return True

    def overtaken(self) -> bool:
        """Whether another holds the run by now."""
        self.lost = self.lost or self._highest() > self._number
        return self.lost

    def release(self) -> None:
        """Let go of the run. Raises nothing: a lease that cannot be marked is as good as released after a while."""
        self._ended.set()
        self._counting.join(self._beat)
        if not self.lost:
            with contextlib.suppress(Exception):
                self._files.pipe_file(self._path(self._number), self._content(released=True))

    def _keep(self) -> None:
        while not self._ended.wait(self._beat) and not self.lost:
            with contextlib.suppress(Exception):  # whatever the store says: the next beat tries again
                self._count += 1
                self._files.pipe_file(self._path(self._number), self._content())
                self.overtaken()

    def _highest(self) -> int:
        try:
            names = [path.rsplit("/", 1)[-1] for path in self._files.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return 0
        numbers = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{_PREFIX}{number}"

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps({"owner": self._owner, "count": self._count, "released": released}).encode()


def _read(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
