"""Ray, up while a grid works: quiet, on this machine's own address, and with a scratch folder that goes away again."""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError

__all__ = ["ray_cluster", "scratch_folder"]

_OBJECT_STORE = 100_000_000
"""Bytes of shared memory that Ray sets aside; the runs pass nothing through it."""
_PREFIX = "fmlora-ray-"
_OWNER = "owner.lock"
_YOUNG = 60.0
"""Seconds in which the owner of a new scratch folder has surely locked it."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_worker_niceness": "0",  # by Ray's own 15, a run would get next to nothing beside what the user does meanwhile
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run that asks for no GPU sees none
    "RAY_ENABLE_AUTO_CONNECT": "0",  # nothing starts Ray again once it was stopped
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
}


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for Ray's state, gone afterwards. Its path is short, since Ray's sockets lie in it.

    Who is ended by SIGKILL leaves it behind; the next one to come removes it. A lock tells whether its owner lives.
    """
    base = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp")
    _remove_stale(base)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        with open(folder / _OWNER, "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with (
            contextlib.suppress(OSError),
            open(folder / _OWNER) as owner,
        ):  # not another user's, nor one just being made
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(owner.fileno()).st_mtime > _YOUNG:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_cluster(scratch: Path, console: Console) -> Iterator[None]:
    """Ray, up and quiet: that at RAY_ADDRESS, or one of this machine's own.

    Raises:
        UserError: it does not start.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {}
    if address == "local":
        # Ray runs what anybody sends to its ports: only holders of this throw-away token may, and only from here.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(scratch / "ray"),
            "include_dashboard": False,
            "num_cpus": local_cores(),
            "object_store_memory": _OBJECT_STORE,
        }
    with console.status("starting Ray"):
        import ray
        from ray._raylet import Config  # type: ignore[attr-defined]  # of the compiled part

        Config.initialize("")  # what Ray read of the environment when somebody first imported it holds no longer
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(f"cluster: Ray does not start at '{address}': {error}") from error
    before = signal.signal(signal.SIGTERM, _interrupt)  # over Ray's own, which prints a stack
    try:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
