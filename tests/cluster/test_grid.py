"""Real grids on the local cores: killed, started again, with runs that fail; and the processes behind them."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import cluster.grid
from cluster.journal import Journal
from cluster.launch import run_grid
from cluster.plan import load_grid, plan_runs
from fmlora_dist import __version__
from fmlora_dist.errors import UserError
from running import assert_same_run, checkpoint, events, finished, result, tiny_data
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


def write_grid(file: Path, data: Path, methods: list[Any]) -> None:
    options = dict(zip(BACKBONE[::2], BACKBONE[1::2], strict=True))
    backbone = {name.removeprefix("--backbone."): value for name, value in options.items()}
    settings: dict[str, Any] = {"data_root": str(data), "epochs": 2, "batch_size": 8, "threads": 1}
    settings["backbone"] = backbone | {"options": json.loads(backbone["options"])}
    axis = {"benchmark": "icons", "tasks": [3]}
    values = {"benchmarks": [axis], "methods": methods, "seeds": [0], "settings": settings}
    file.write_text(yaml.safe_dump(values))


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
        assert wait_until(lambda: processes(f"{out}/runs"), 180)
        driver.kill()
        driver.wait()
        assert wait_until(lambda: not processes(f"{out}/runs"), 60)
        assert wait_until(lambda: not processes(scratch), 60)  # Ray's own processes

    # the same folder goes on; the runs that fail are named, and stop nobody
    text = io.StringIO()
    assert run_grid(str(both), out, Console(file=text, width=200)) == 1
    printed = text.getvalue()
    assert "grid both: 2 runs, 0 finished" in printed
    assert "icons N=3 s0 lora: done" in printed
    (failure,) = [line for line in printed.splitlines() if line.startswith("failed:")]
    assert failure.startswith("failed: icons-3-finetune-s0-")
    assert "task 1" in failure
    assert "| lora [1] |" in (out / "report" / "tables.md").read_text()
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
        if wait_until(trained, 120):
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
    printed = [grid.communicate(timeout=300)[0] for grid in grids]
    assert [grid.returncode for grid in grids] == [0, 0], printed
    for run in plan_runs(load_grid(str(file)), out):
        kinds = [(event["event"], event.get("task")) for event in events(run.folder)]
        assert kinds.count(("task", 1)) == kinds.count(("task", 3)) == 1, run.name
    assert all("| lora [" in text or "lora" in text for text in printed)


@pytest.mark.long
def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    file, out = tmp_path / "stopped.yaml", tmp_path / "out"
    write_grid(file, tiny_data(), ["lora"])
    command = [sys.executable, "-m", "fmlora_dist.cli", "grid", str(file), "--out", str(out)]
    grid = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert wait_until(lambda: processes(f"{out}/runs"), 120)
    os.killpg(grid.pid, signal.SIGINT)
    printed, errors = grid.communicate(timeout=60)
    assert grid.returncode == 130
    assert "stopped, 0 of 1 runs are done; start the same command again" in printed
    assert f"fmlora grid {file} --out {out}" in printed and "Traceback" not in printed + errors
    assert wait_until(lambda: not processes(f"{out}/runs"), 20)
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
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk that is soon full")
def test_a_run_whose_disk_is_full_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    file, out = tmp_path / "full.yaml", tmp_path / "out"
    write_grid(file, tiny_data(), ["lora", "frozen"])
    full, other = (run.folder for run in plan_runs(load_grid(str(file)), out))
    full.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", full], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        text = io.StringIO()
        assert run_grid(str(file), out, Console(file=text, width=200)) == 1
        (failure,) = [line for line in text.getvalue().splitlines() if line.startswith("failed:")]
        assert full.name in failure and "cannot be written" in failure and "make room" in failure
        assert result(other)["status"] == "complete"
    finally:
        subprocess.run(["umount", full], check=True)


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

    assert wait_until(runs, 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not runs(), 10)


def test_a_run_whose_trial_is_already_gone_does_not_start() -> None:
    command = [sys.executable, "-m", "cluster.trial", "1", sys.executable, "-c", "print('started')"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "started" not in ended.stdout


def test_grid_py_is_the_command_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.grid.main(["dmo"]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err
