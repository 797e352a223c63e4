"""One trial is one run, each of its processes one of its own, through the same code as ``train.py``.

Run as ``python -m cluster.trial PARENT COMMAND...``, this file becomes COMMAND, and dies with process PARENT.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import yaml

from fmlora_dist import __version__
from fmlora_dist.errors import InUseError, UserError

__all__ = ["Outcome", "Process", "RunFailedError", "Trial", "main", "run_trial", "start_run", "stop_all", "supervise"]

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY = 0.5
"""Seconds between looks at a run's processes and its events."""
_PATIENCE = 3.0
"""Seconds for the other processes of a run to end, once one of them has failed: it may only have lost another."""
_FOLLOWING = (1, -signal.SIGABRT)
"""Exit codes of a process that has lost another: torch raises an error, NCCL's watchdog aborts."""
_MISTAKES = (AttributeError, TypeError, NameError, LookupError, AssertionError, ImportError)
"""Errors of a trial that are ones of the code."""
_ROOM = 2**20
"""Bytes: a disk that has less is full."""


class Trial(TypedDict):
    """What Ray hands to a worker."""

    name: str
    """Name of the run's directory."""
    config: dict[str, Any]
    """The run's config, as nested plain values."""
    out: str
    """Folder or URL of the grid."""
    folder: str
    """The run's directory on this worker, once it is checked out; '' before."""
    cwd: str
    """Where the grid was started: relative paths of the config are meant from there."""
    version: str
    """Of the package, where the grid was started."""
    processes: int
    """Processes of the run; those but the first are in further bundles of the trial's placement group."""
    bundle: dict[str, float]
    """What each of them holds."""
    stall_timeout: float
    """Seconds without an event of the run, after which it is taken for hanging; 0: it is never."""


class Outcome(TypedDict):
    """How a run ended."""

    status: str
    """done, failed, stalled; or, for what another try would not mend: refused (a mistake), busy (another process works
    on it), unfit (no run can work there: another version of the package, or the grid's output is not seen)."""
    exit_code: int
    """Of the process that failed first, as far as that can be told; with a negative code it was ended by a signal."""
    message: str
    """Why, as far as the run itself does not say it."""
    host: str


class Process(Protocol):
    """One of a run's processes, wherever it works."""

    def poll(self) -> int | None:
        """Its exit code, or None while it works."""

    def pause(self, seconds: float) -> None:
        """Wait, no longer than until it ends."""

    def stop(self) -> None:
        """End it and all that it has started."""


class RunFailedError(Exception):
    """Raised to Ray, so that the run is placed again."""


def run_trial(config: dict[str, Any]) -> None:
    """Ray Tune's function for one trial: run it to its end, and report how it ended.

    Raises:
        RunFailedError: the run should be tried again; what it has to say stands in its own directory.
    """
    from ray import tune

    trial: Trial = config["trial"]
    outcome = _tried(trial)
    tune.report(dict(outcome))
    if outcome["status"] in ("failed", "stalled"):
        raise RunFailedError(f"{trial['name']}: {outcome['status']}, exit code {outcome['exit_code']}")


def _tried(trial: Trial) -> Outcome:
    try:
        return _unfit(trial) or _run(trial)
    except Exception as error:  # of this side, not of the run
        message = f"its trial failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        # What is wrong in the code is no better the next time, and should not be hidden by a try that is luckier.
        status = "refused" if isinstance(error, _MISTAKES) else "failed"
        return Outcome(status=status, exit_code=1, message=message, host=socket.gethostname())


def _run(trial: Trial) -> Outcome:
    from cluster.output import open_output  # not for who becomes a run

    try:
        with open_output(trial["out"]).check_out(trial["name"]) as place:
            trial = {**trial, "folder": str(place.folder)}
            if (place.folder / "result.json").exists():  # another grid was quicker
                return _outcome(0)
            try:
                outcome = _work(trial, place.keep)
            except Exception as error:
                if not isinstance(error, UserError):
                    with _log(place.folder) as log:
                        log.write(traceback.format_exc().encode())
                    with contextlib.suppress(Exception):  # the first error is the one to tell
                        place.finish()
                raise
            place.finish()
            return outcome
    except UserError as error:
        return _outcome(error.exit_code, str(error))


def _work(trial: Trial, keep: Callable[[], None]) -> Outcome:
    if trial["processes"] == 1:
        with start_run(trial) as process:
            return supervise(trial, [process], keep)
    from cluster.bundles import Ranks  # needs Ray

    with Ranks(trial) as processes:
        return supervise(trial, processes, keep)


def supervise(trial: Trial, processes: Sequence[Process], keep: Callable[[], None] = lambda: None) -> Outcome:
    """Wait until all processes have ended well, or one has not, or nothing has happened for too long; then end them.

    Args:
        trial: The run.
        processes: All of the run's.
        keep: Called now and then; an error that it raises ends them too.
    """
    events = Path(trial["folder"], "events.jsonl")
    timeout = trial["stall_timeout"]
    seen, since = _size(events), time.monotonic()
    try:
        while True:
            codes = [process.poll() for process in processes]
            if any(codes):
                return _failed(trial, *_cause(processes))
            if None not in codes:
                return _outcome(0)
            size = _size(events)
            if size != seen:
                seen, since = size, time.monotonic()
            if timeout and time.monotonic() - since > timeout:
                message = f"nothing happened for {timeout:g} s (--stall-timeout), so it was ended"
                return Outcome(status="stalled", exit_code=-signal.SIGKILL, message=message, host=socket.gethostname())
            keep()
            processes[codes.index(None)].pause(_LOOK_EVERY)
    finally:
        stop_all(processes)


def stop_all(processes: Sequence[Process]) -> None:
    """End them all, also where one of them cannot be ended."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.stop)


def _cause(processes: Sequence[Process]) -> tuple[int, int]:
    """(number, exit code) of the process that failed by itself, of those that have failed or soon do."""
    until = time.monotonic() + _PATIENCE
    while True:
        codes = [process.poll() for process in processes]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        causes = [(rank, code) for rank, code in failed if code not in _FOLLOWING]
        if causes or None not in codes or time.monotonic() > until:
            return max(causes or failed, key=lambda each: (each[1], -each[0]))
        processes[codes.index(None)].pause(_LOOK_EVERY)


class RunProcess:
    """A process on this machine, the head of a process group of its own. ``with`` ends it."""

    def __init__(self, process: "subprocess.Popen[bytes]"):
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def pause(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "RunProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def start_run(trial: Trial, launched: Mapping[str, str] | None = None) -> RunProcess:
    """One process of the run, which dies with this process; its output goes to the run's log.txt, or log-RANK.txt.

    ``launched`` is what a launcher tells it: RANK, WORLD_SIZE, …; the only one if None.
    """
    # The config goes through the standard input: the worker may be on another machine, and may die at any moment.
    run = ["-m", "fmlora_dist.cli", "run", "--config", "/dev/stdin", "--out", trial["folder"], "--resume"]
    # Ray fixes the number of OpenMP threads by the CPUs of a trial; a run has its own setting, as when started by hand.
    dropped = {"OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | dict(launched or {})
    folder = Path(trial["folder"])
    with contextlib.suppress(OSError):  # the run itself says what is wrong with its directory
        folder.mkdir(parents=True, exist_ok=True)
    with _log(folder, int(environment.get("RANK", 0))) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.trial", str(os.getpid()), sys.executable, *run],
            cwd=trial["cwd"] if os.path.isdir(trial["cwd"]) else None,  # nodes may share nothing
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(_sent(trial["config"]))
    return RunProcess(process)


def _sent(config: Mapping[str, Any]) -> bytes:
    """A config as YAML. (Not as JSON: its 1e-05 is no number in YAML.)"""
    return yaml.safe_dump(dict(config)).encode()


def main(argv: Sequence[str] | None = None) -> None:
    """Become the command that follows the parent's process id."""
    parent, *command = sys.argv[1:] if argv is None else argv
    # Set here and not between fork and exec, where a worker with threads must not run Python; exec keeps it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the trial that started this run is gone")
    os.execv(command[0], command)


def _unfit(trial: Trial) -> Outcome | None:
    """Why no run of the grid can work on this host; None if they can."""
    host = socket.gethostname()
    if trial["version"] != __version__:
        message = (
            f"version: worker {host} has fmlora-dist {__version__}, but the grid was started by {trial['version']}; "
            "install the same version on all nodes"
        )
    else:
        from cluster.output import open_output

        try:
            message = open_output(trial["out"]).unseen()
        except UserError as error:
            message = f"worker {host}: {error}"
    return Outcome(status="unfit", exit_code=UserError.exit_code, message=message, host=host) if message else None


def _outcome(code: int, message: str = "") -> Outcome:
    known = {0: "done", UserError.exit_code: "refused", InUseError.exit_code: "busy"}
    return Outcome(status=known.get(code, "failed"), exit_code=code, message=message, host=socket.gethostname())


def _failed(trial: Trial, rank: int, code: int) -> Outcome:
    """How a run whose process ``rank`` failed has ended. On a full disk neither its log nor its events may say why."""
    outcome = _outcome(
        code, f"its process {rank} failed (exit code {code}); {_log_name(rank)} says why" if rank else ""
    )
    folder = Path(trial["folder"])
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if code > 0 and outcome["status"] != "busy" and free < _ROOM:
        outcome["status"] = "refused"
        outcome["message"] = (
            f"out: {trial['folder']} cannot be written any more: its disk is full ({free} bytes are free); make room, "
            "and start the grid again"
        )
    return outcome


def _log_name(rank: int) -> str:
    return f"log-{rank}.txt" if rank else "log.txt"


def _log(folder: Path, rank: int = 0) -> Any:
    """The log of a process, to append to; nothing where it cannot be opened."""
    try:
        return open(folder / _log_name(rank), "ab")
    except OSError:
        return open(os.devnull, "ab")


def _size(file: Path) -> int:
    # The size and not the time of the last change, which another machine's clock may have written.
    try:
        return file.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    main()
