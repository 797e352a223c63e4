"""The deepspeed launcher, as a user starts it, with two processes on this machine."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from running import REPOSITORY, scratch


def launch(script: Path, *words: object) -> subprocess.Popen[str]:
    """Start ``deepspeed --num_accelerators 2`` where there is neither a compiler nor ninja, nor a built extension."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    empty = scratch() / "empty"
    empty.mkdir(exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DS_", "TORCH_EXTENSIONS"))}
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    env |= {"PATH": str(empty), "TORCH_EXTENSIONS_DIR": str(empty), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    return subprocess.Popen(
        [*launcher, "--master_port", str(port), str(script), *map(str, words)],
        env=env,
        cwd=scratch(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(
    launched: "subprocess.Popen[str]", *, timeout: float = 300, kill_when: Callable[[], bool] | None = None
) -> tuple[int, str, str]:
    """(exit code, output, errors) of a launch; with ``kill_when``, all its processes get SIGKILL once it holds."""
    left = timeout
    while True:
        wait = left if kill_when is None else 0.02
        try:
            out, err = launched.communicate(timeout=wait)
            return launched.returncode, out, err
        except subprocess.TimeoutExpired:
            left -= wait
            if left <= 0 or (kill_when is not None and kill_when()):
                os.killpg(launched.pid, signal.SIGKILL)
                if left <= 0:
                    raise
                kill_when, left = None, 30
