"""Real grids on the local cores: killed, started again, with runs that fail; and the processes behind them."""

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import cluster.grid
from cluster.journal import Journal
from cluster.launch import Options, run_grid
from cluster.plan import load_grid, plan_runs
from fmlora_dist import __version__
from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError
from running import assert_same_run, checkpoint, command_here, events, finished, result, tiny_data
from tiny_benchmark import BACKBONE, tiny_arguments, write_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")


def processes(part: str) -> list[int]:
    """Process ids whose command line holds ``part``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if part.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue  # it has just ended
    return found


def wait_until(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def write_grid(file: Path, data: Path, methods: list[Any], **more: object) -> None:
    options = dict(zip(BACKBONE[::2], BACKBONE[1::2], strict=True))
    backbone = {name.removeprefix("--backbone."): value for name, value in options.items()}
    settings: dict[str, Any] = {"data_root": str(data), "epochs": 2, "batch_size": 8, "threads": 1}
    settings["backbone"] = backbone | {"options": json.loads(backbone["options"])}
    axis = {"benchmark": "icons", "tasks": [3]}
    values = {"benchmarks": [axis], "methods": methods, "seeds": [0], "settings": settings}
    file.write_text(yaml.safe_dump(values | more))


def test_a_grid_is_killed_goes_on_reports_a_failure_and_skips_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, both, good = tmp_path / "data", tmp_path / "out", tmp_path / "both.yaml", tmp_path / "good.yaml"
    write_tiny(data)
    write_grid(good, data, ["lora"])
    diverges = {"name": "finetune", "settings": {"train": {"lr": 1e30, "optimizer": "sgd"}}}
    write_grid(both, data, ["lora", diverges])

    # kill -9 of the driver leaves no run behind
    # (and its scratch folder, which nobody can remove then, is ours; short, since sockets lie in it)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as scratch:
        command = [sys.executable, "-m", "fmlora_dist.cli", "grid", str(good), "--out", str(out)]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": scratch})
        assert wait_until(lambda: processes(f"{out}/runs"), 600)
        driver.kill()
        driver.wait()
        assert wait_until(lambda: not processes(f"{out}/runs"), 300)
        assert wait_until(lambda: not processes(scratch), 300)  # Ray's own processes

    # the same folder goes on; the runs that fail are named, and stop nobody
    text = io.StringIO()
    assert run_grid(str(both), out, Console(file=text, width=200)) == 1
    printed = text.getvalue()
    assert "grid both: 2 runs, 0 finished" in printed
    assert "icons N=3 s0 lora: done" in printed
    (failure,) = [line for line in printed.splitlines() if line.startswith("failed:")]
    assert failure.startswith("failed: icons-3-finetune-s0-")
    assert "task 1" in failure and "tried again" not in printed
    assert "| lora [2] |" in (out / "report" / "tables.md").read_text()
    assert not processes(f"{out}/runs")

    # all finished: Ray does not start
    text = io.StringIO()
    monkeypatch.setitem(sys.modules, "cluster.place", None)  # cannot be imported any more
    assert run_grid(str(good), out, Console(file=text, width=200)) == 0
    assert "1 finished, 0 to run" in text.getvalue()

    # by hand, the same run writes the same numbers
    (run,) = plan_runs(load_grid(str(good)), out)
    command = [sys.executable, "-m", "fmlora_dist.cli", "run", *tiny_arguments(data, method="lora", seed=0)]
    subprocess.run([*command, "--out", str(tmp_path / "hand")], check=True, stdout=subprocess.DEVNULL)
    by_grid, by_hand = (json.loads((f / "result.json").read_text()) for f in (run.folder, tmp_path / "hand"))
    assert by_grid["accuracy_matrix"] == by_hand["accuracy_matrix"]


@pytest.mark.long
def test_faults_of_single_runs_are_mended_or_reported_and_the_others_go_on(tmp_path: Path) -> None:
    file, out = tmp_path / "faulty.yaml", tmp_path / "out"
    methods: list[Any] = ["lora", "sdlora", {"name": "fmlora", "prompt_tokens": 1_000_000_000}]
    if two := len(os.sched_getaffinity(0)) >= 2:
        methods.append({"name": "frozen", "resources": {"processes": 2}})
    write_grid(file, tiny_data(), methods)
    by_method = {run.config.method.name: run for run in plan_runs(load_grid(str(file)), out)}
    killed, corrupt = by_method["lora"].folder, by_method["sdlora"].folder
    corrupt.mkdir(parents=True)
    (corrupt / "result.json").write_text('{"schema": 1, "status"')

    def trained() -> bool:
        if not (killed / "checkpoint.safetensors").exists():
            return False
        position = checkpoint(killed)[1]
        return (position["task"], position["epoch"]) > (1, 0)

    def kill_once() -> None:
        if wait_until(trained, 600):
            for pid in processes(str(killed)):
                os.kill(pid, signal.SIGKILL)

    killer, text = threading.Thread(target=kill_once), io.StringIO()
    killer.start()
    assert run_grid(str(file), out, Console(file=text, width=200)) == 1
    killer.join()
    printed, log = text.getvalue(), Journal.read(out)

    # killed: tried again from its checkpoint, and ends as if nothing had happened
    (retry,) = [event for event in log if event["event"] == "retry"]
    assert retry["run"] == killed.name and "signal 9 (out of memory?" in retry["message"]
    starts = [event for event in events(killed) if event["event"] == "start"]
    assert len(starts) == 2 and starts[1]["resumed_at"] != starts[0]["resumed_at"]
    assert_same_run(killed, finished("lora"))
    # a corrupt result: set aside, said so, repeated
    assert "its result.json cannot be read; it is now result.json.broken-1, and the run is repeated" in printed
    assert (corrupt / "result.json.broken-1").exists() and result(corrupt)["status"] == "complete"
    # out of memory: reported once, with a hint, and not tried again
    (failure,) = [line for line in printed.splitlines() if line.startswith("failed:")]
    assert "fmlora" in failure and "out of memory: " in failure and "use a smaller --batch-size" in failure
    # figures for trackers lie beside each run that worked
    assert list((killed / "tensorboard").glob("events.out.tfevents.*"))
    kinds = [event["event"] for event in log]
    assert kinds[:2] == ["set_aside", "grid"] and kinds[-1] == "end"
    assert kinds.count("done") == (3 if two else 2) and kinds.count("failed") == 1
    if two:
        assert result(by_method["frozen"].folder)["world_size"] == 2


@pytest.mark.long
def test_two_grids_over_one_folder_share_the_runs_and_do_none_twice(tmp_path: Path) -> None:
    file, out = tmp_path / "shared.yaml", tmp_path / "out"
    write_grid(file, tiny_data(), ["lora", "frozen", "sdlora"])
    command = [sys.executable, "-m", "fmlora_dist.cli", "grid", str(file), "--out", str(out)]
    grids = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [grid.communicate(timeout=900)[0] for grid in grids]
    assert [grid.returncode for grid in grids] == [0, 0], printed
    for run in plan_runs(load_grid(str(file)), out):
        kinds = [(event["event"], event.get("task")) for event in events(run.folder)]
        assert kinds.count(("task", 1)) == kinds.count(("task", 3)) == 1, run.name
    assert not any("tried again" in text for text in printed)
    assert all("lora [" in text for text in printed), "each shows the table of all runs"


@pytest.mark.long
def test_in_a_terminal_there_is_a_live_table_and_ctrl_c_stops_the_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    file, out = tmp_path / "stopped.yaml", tmp_path / "out"
    write_grid(file, tiny_data(), ["lora"])
    command = [sys.executable, "-m", "fmlora_dist.cli", "grid", str(file), "--out", str(out), "--retries", "1"]
    terminal, inner = pty.openpty()
    take = "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    take += "signal.signal(signal.SIGINT, signal.SIG_DFL); "  # which shells' background jobs, we among them, may ignore
    take += "os.execv(sys.argv[1], sys.argv[1:])"
    grid = subprocess.Popen(
        [sys.executable, "-c", take, *command],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"},
        start_new_session=True,
    )
    os.close(inner)
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while part := os.read(terminal, 4096):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    assert wait_until(lambda: b"1 running" in shown and processes(f"{out}/runs"), 600), shown.decode()
    os.write(terminal, b"\x03")  # Ctrl-C, as it is typed: every process of the terminal hears it
    code = grid.wait(300)
    reader.join()
    os.close(terminal)
    printed = shown.decode()
    assert code == 130, printed
    assert all(title in printed for title in ("images/s", "accuracy", "time left", "icons N=3 s0", "1 running"))
    assert "stopped, 0 of 1 runs are done; start the same command again" in printed
    assert f"fmlora grid {file} --out {out} --retries=1" in printed and "Traceback" not in printed
    assert wait_until(lambda: not processes(f"{out}/runs"), 120)
    assert Journal.read(out)[-1]["event"] == "stop"


@pytest.mark.long
def test_a_worker_with_another_version_stops_the_grid_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    write_grid(file, tiny_data(), ["lora"])
    monkeypatch.setattr("cluster.place.__version__", "0.0.1")
    with pytest.raises(UserError, match=f"has fmlora-dist {__version__}, but the grid was started by 0.0.1"):
        run_grid(str(file), tmp_path / "out", Console(quiet=True))


@pytest.mark.long
def test_the_longest_run_starts_first(tmp_path: Path) -> None:
    file, profile, out = tmp_path / "some.yaml", tmp_path / "profile.json", tmp_path / "out"
    write_grid(file, tiny_data(), ["frozen", "lora"], resources={"cpus": local_cores()})  # one after the other
    rows = [{"method": name, "task": 1, "seconds_per_step": seconds} for name, seconds in (("frozen", 1), ("lora", 2))]
    profile.write_text(json.dumps({"rows": rows}))
    frozen, lora = (run.name for run in plan_runs(load_grid(str(file)), out))
    assert run_grid(str(file), out, Console(quiet=True), Options(profile=profile)) == 0
    happened = [(event["event"], event["run"]) for event in Journal.read(out) if "run" in event]
    assert happened == [("start", lora), ("done", lora), ("start", frozen), ("done", frozen)]


@contextmanager
def disk(place: Path, options: str) -> Iterator[None]:
    """A disk of its own, mounted there."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk")
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.long
def test_a_run_whose_disk_is_full_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    file, out = tmp_path / "full.yaml", tmp_path / "out"
    write_grid(file, tiny_data(), ["lora", "frozen"])
    full, other = (run.folder for run in plan_runs(load_grid(str(file)), out))
    with disk(full, "size=16k"):
        text = io.StringIO()
        assert run_grid(str(file), out, Console(file=text, width=200)) == 1
        (failure,) = [line for line in text.getvalue().splitlines() if line.startswith("failed:")]
        assert full.name in failure and "cannot be written" in failure and "make room" in failure
        assert result(other)["status"] == "complete" and "tried again" not in text.getvalue()


@pytest.mark.long
def test_a_grid_whose_whole_disk_is_full_reports_every_run(tmp_path: Path) -> None:
    file, out = tmp_path / "full.yaml", tmp_path / "out"
    write_grid(file, tiny_data(), ["lora", "frozen"])
    with disk(out, "size=64k"):
        (out / "filling").write_bytes(bytes(48 * 2**10))  # room for folders and files, and for nothing in them
        text = io.StringIO()
        assert run_grid(str(file), out, Console(file=text, width=200)) == 1
        failures = [line for line in text.getvalue().splitlines() if line.startswith("failed:")]
        assert len(failures) == 2 and all("make room" in failure for failure in failures), text.getvalue()
        assert "tried again" not in text.getvalue()


@pytest.mark.long
def test_a_folder_that_is_read_only_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "ro"):
        done = command_here(["grid", "demo", "--out", tmp_path / "disk" / "out"])
        assert done.code == 2
        assert (
            done.err
            == f"fmlora: error: out: cannot write to {tmp_path}/disk/out: Read-only file system; choose another --out\n"
        )


def test_a_run_dies_with_its_trial() -> None:
    marker = f"import time; time.sleep(600) # {time.time_ns()}"
    trial = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'cluster.trial', str(os.getpid()), sys.executable, '-c', sys.argv[1]]\n"
        "subprocess.Popen(command, start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", trial, marker])

    def runs() -> list[int]:
        return [pid for pid in processes(marker) if pid != process.pid]

    assert wait_until(runs, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not runs(), 60)


def test_a_run_whose_trial_is_already_gone_does_not_start() -> None:
    command = [sys.executable, "-m", "cluster.trial", "1", sys.executable, "-c", "print('started')"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "started" not in ended.stdout


def test_grid_py_is_the_command_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.grid.main(["dmo"]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err
