"""The command line in real processes, forked from one that has imported everything (an import takes seconds)."""

import atexit
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import fmlora_dist.run
import fmlora_dist.watching  # noqa: F401 - so that the forked processes need not import it
from fmlora_dist.cli import main
from fmlora_dist.registry import list_methods
from tiny_benchmark import tiny_arguments, write_tiny

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
list_methods()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float
    cpu: float | None = None
    """Seconds of CPU time until it ended by itself."""


def command(
    argv: Sequence[object],
    *,
    kill_after: float | None = None,
    kill_at_replace: tuple[int, bool] | None = None,
    largest_file: int | None = None,
    folder: Path | None = None,
) -> Done:
    """Run ``fmlora argv…`` in a process of its own.

    Args:
        argv: Its words.
        kill_after: Seconds of its own CPU time, which a busy machine does not shorten, after which it gets SIGKILL.
        kill_at_replace: (n, late): it gets SIGKILL as it puts its n-th file (from 0) in place, before or after that.
        largest_file: Bytes beyond which no file can grow: a full disk, as far as the process can tell.
        folder: Where it runs.
    """
    files = Path(tempfile.mkdtemp(dir=scratch()))
    words = [str(word) for word in argv]
    started = time.perf_counter()
    limits = (kill_after, kill_at_replace, largest_file)
    process = _context().Process(target=_child, args=(words, files, limits, folder, dict(os.environ)))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"still running after two minutes: {words}")
    seconds = time.perf_counter() - started
    assert process.exitcode is not None
    texts = [(files / name).read_text() if (files / name).exists() else "" for name in ("out", "err")]
    cpu = float((files / "cpu").read_text()) if (files / "cpu").exists() else None
    return Done(process.exitcode, *texts, seconds, cpu)


def two_processes(argv: Sequence[object], *, kill_when: Callable[[], bool] | None = None) -> list[Done]:
    """Run ``fmlora argv…`` in two processes that know each other as a launcher's do, and without its slow start.

    As a launcher does, this ends the other process when one fails; with ``kill_when``, both get SIGKILL once it holds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [str(word) for word in argv]
    processes, folders = [], [Path(tempfile.mkdtemp(dir=scratch())) for _ in range(2)]
    started = time.perf_counter()
    for rank, files in enumerate(folders):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(_context().Process(target=_child, args=(words, files, (None, None, None), None, env)))
        processes[-1].start()
    while any(process.is_alive() for process in processes):
        assert time.perf_counter() - started < 600, f"still running after 600 seconds: {words}"
        if any(process.exitcode for process in processes) or (kill_when is not None and kill_when()):
            for process in processes:
                process.kill()
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    return [
        Done(process.exitcode, *((files / name).read_text() for name in ("out", "err")), seconds)
        for process, files in zip(processes, folders, strict=True)
    ]


def command_here(argv: Sequence[object]) -> Done:
    """Run ``fmlora argv…`` in this process: for commands that are refused at once, of which there are many."""
    out, err = io.StringIO(), io.StringIO()
    started = time.perf_counter()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in argv])
    return Done(code, out.getvalue(), err.getvalue(), time.perf_counter() - started)


def run_arguments(out: Path, **fields: object) -> list[str]:
    """``run`` with the tiny benchmark: three tasks of two epochs of four steps, unless ``fields`` say otherwise."""
    return ["run", *tiny_arguments(tiny_data(), out=out, **fields)]


@cache
def scratch() -> Path:
    """A folder for this session's files."""
    folder = Path(tempfile.mkdtemp(prefix="fmlora-tests-"))
    owner = os.getpid()
    # Forked processes inherit the exit handler, and must not take the folder away.
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


@cache
def tiny_data() -> Path:
    """The tiny benchmark's folder."""
    folder = scratch() / "tiny"
    write_tiny(folder)
    return folder


def finished(method: str) -> Path:
    """The directory of an undisturbed run of a method on the tiny benchmark; not to be changed."""
    return _finished(method)[0]


def cpu_seconds(method: str) -> float:
    """CPU time that the process of that run took, from its start to its end."""
    return _finished(method)[1]


@cache
def _finished(method: str) -> tuple[Path, float]:
    out = scratch() / f"finished-{method}"
    done = command(run_arguments(out, method=method))
    assert done.code == 0, done.err
    assert done.cpu is not None
    return out, done.cpu


def result(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "result.json").read_text())
    return loaded


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines() if line]


def checkpoint(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, position) of a run's checkpoint."""
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["position"])  # noqa: SIM118


def assert_same_run(one: Path, other: Path) -> None:
    """The same numbers bit for bit: accuracies, drift, ranks, and every tensor of the final model."""
    for name in ("accuracy_matrix", "drift", "ranks", "complexity", "metrics", "parameters"):
        assert result(one)[name] == result(other)[name], name
    mine, theirs = checkpoint(one)[0], checkpoint(other)[0]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["running"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(word for word in sys.path if word)
    try:
        ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _child(
    argv: list[str],
    files: Path,
    limits: tuple[float | None, tuple[int, bool] | None, int | None],
    folder: Path | None,
    env: dict[str, str] | None = None,
) -> None:
    kill_after, kill_at_replace, largest_file = limits
    os.environ.update(env or {})
    for name, number in (("out", 1), ("err", 2)):
        target = os.open(files / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115 - held until the process ends
    if folder is not None:
        os.chdir(folder)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if kill_at_replace is not None:
        os.replace = _deadly(os.replace, *kill_at_replace)  # type: ignore[assignment]
    if kill_after is not None:
        threading.Thread(target=_die_after, args=(kill_after,), daemon=True).start()
    code = main(argv)
    (files / "cpu").write_text(str(time.process_time()))
    sys.exit(code)


def _die_after(seconds: float) -> None:
    while time.process_time() < seconds:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def _deadly(replace: Callable[..., None], at: int, late: bool) -> Callable[..., None]:
    calls = iter(range(10**9))

    def replace_and_die(*words: Any) -> None:
        dies = next(calls) == at
        if not dies or late:
            replace(*words)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    return replace_and_die
