"""A grid on a Ray cluster of two hosts, which lose their processes, their link and their head."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.journal import Journal
from cluster.plan import load_grid, plan_runs
from hosts import Host, hosts, needs, wait_until, work_folder
from running import REPOSITORY, assert_same_run, events, result
from tiny_benchmark import BACKBONE, write_tiny

pytestmark = pytest.mark.long

PORT = 6399
NOTICE = {  # a lost node is noticed within seconds
    "RAY_health_check_initial_delay_ms": 1000,
    "RAY_health_check_period_ms": 1000,
    "RAY_health_check_timeout_ms": 1000,
    "RAY_health_check_failure_threshold": 3,
}


class Cluster:
    """Ray's head on fa and a worker on fb, each with one core; the grid is started on the head."""

    def __init__(self, work: Path, head: Host, worker: Host):
        self.work, self.head, self.worker = work, head, worker
        (work / "token").write_text("5" * 64)
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": work / "token", **NOTICE}
        self.grid = work / "grid.yaml"
        write_tiny(work / "data")
        options = {
            name.removeprefix("--backbone."): value for name, value in zip(BACKBONE[::2], BACKBONE[1::2], strict=True)
        }
        settings = {"data_root": str(work / "data"), "epochs": 30, "batch_size": 8, "threads": 1, "device": "cpu"}
        settings["backbone"] = options | {"options": json.loads(options["options"])}
        axis = {"benchmark": "icons", "tasks": [3]}
        methods, resources = ["lora", "finetune"], {"cpus": 1}
        values = {
            "benchmarks": [axis],
            "methods": methods,
            "seeds": [0, 1],
            "settings": settings,
            "resources": resources,
        }
        self.grid.write_text(yaml.safe_dump(values))

    def start_head(self) -> None:
        self._ray(self.head, "--head", "--port", PORT, "--include-dashboard=false", "--temp-dir", self.work / "r")

    def start_worker(self) -> None:
        self._ray(self.worker, "--address", f"{self.head.address}:{PORT}")

    def _ray(self, host: Host, *words: object) -> None:
        start = ["ray", "start", *words, "--node-ip-address", host.address, "--num-cpus", 1]
        start += ["--object-store-memory", 100_000_000, "--disable-usage-stats"]
        host.run(start, self.work / f"ray-{host.name}.log", timeout=300, **self.env)

    def start_grid(self, out: Path) -> "subprocess.Popen[bytes]":
        """As `ray submit` starts it: the script alone, copied to the head."""
        script = self.work / "grid.py"
        script.write_bytes((REPOSITORY / "cluster" / "grid.py").read_bytes())
        command = ["python", script, self.grid, "--out", out, "--resume"]
        return self.head.start(command, self.work / f"{out.name}.log", **self.env)

    def runs(self, out: Path) -> list[Path]:
        return [run.folder for run in plan_runs(load_grid(str(self.grid)), out)]

    def trained_on_worker(self, out: Path) -> list[Path]:
        """Runs in the middle: the worker works on them, and their first task is done."""
        return [
            run
            for run in self.runs(out)
            if self.worker.processes(f"--out {run} ") and _tasks(run) >= 1 and not (run / "result.json").exists()
        ]

    def finish(self, grid: "subprocess.Popen[bytes]", out: Path) -> str:
        """What the grid has said, once it has ended well with all its results."""
        try:
            code = grid.wait(1200)
        finally:
            said = (self.work / f"{out.name}.log").read_text()
            if grid.poll() is None:
                grid.kill()
                grid.wait()
                print(said, json.dumps(Journal.read(out), indent=1))
        assert code == 0, said
        assert all(result(run)["status"] == "complete" for run in self.runs(out))
        return said


def _tasks(run: Path) -> int:
    return sum(event["event"] == "task" for event in events(run)) if (run / "events.jsonl").exists() else 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    needs()
    with work_folder() as work, hosts(work) as (head, worker):
        made = Cluster(work, head, worker)
        made.start_head()
        made.start_worker()
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Path:
    """The output of the grid where nothing went wrong."""
    out = cluster.work / "undisturbed"
    said = cluster.finish(cluster.start_grid(out), out)
    assert "tried again" not in said
    return out


def _assert_same_grid(cluster: Cluster, out: Path, undisturbed: Path) -> None:
    for mine, other in zip(cluster.runs(out), cluster.runs(undisturbed), strict=True):
        assert_same_run(mine, other)


def _log(out: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in Journal.read(out) if line["event"] == event]


def test_a_grid_uses_both_hosts_and_writes_every_result_once(cluster: Cluster, undisturbed: Path) -> None:
    done = _log(undisturbed, "done")
    assert Counter(line["run"] for line in done) == dict.fromkeys([run.name for run in cluster.runs(undisturbed)], 1)
    assert {line["host"] for line in done} == {"fa", "fb"}


def test_a_worker_killed_in_the_middle_of_a_run_costs_no_run(cluster: Cluster, undisturbed: Path) -> None:
    out = cluster.work / "killed"
    grid = cluster.start_grid(out)
    wait_until(lambda: cluster.trained_on_worker(out) or grid.poll() is not None, 600, "a run on the worker")
    (lost,) = cluster.trained_on_worker(out)
    cluster.worker.kill_all()
    cluster.finish(grid, out)
    _assert_same_grid(cluster, out, undisturbed)
    (retry,) = _log(out, "retry")
    assert retry["run"] == lost.name and retry["message"] == "its Ray worker was lost" and retry["host"] == "fb"
    (done,) = [line for line in _log(out, "done") if line["run"] == lost.name]
    assert done["resumed"] and done["host"] == "fa", "it went on from its checkpoint, on the host that was left"
    cluster.start_worker()


def test_a_worker_cut_off_in_the_middle_of_a_run_costs_no_run(cluster: Cluster, undisturbed: Path) -> None:
    out = cluster.work / "cut"
    grid = cluster.start_grid(out)
    wait_until(lambda: cluster.trained_on_worker(out) or grid.poll() is not None, 600, "a run on the worker")
    (lost,) = cluster.trained_on_worker(out)
    cluster.worker.link("down")
    try:
        cluster.finish(grid, out)
    finally:
        cluster.worker.kill_all()
        cluster.worker.link("up")
    _assert_same_grid(cluster, out, undisturbed)
    assert {line["run"] for line in _log(out, "retry")} <= {lost.name}
    told = [line for line in _log(out, "retry") + _log(out, "elsewhere") if line["run"] == lost.name]
    assert any(line["message"] == "its Ray worker was lost" for line in told)
    cluster.start_worker()


def test_after_the_head_was_lost_the_grid_goes_on_and_repeats_nothing(cluster: Cluster, undisturbed: Path) -> None:
    out = cluster.work / "headless"
    grid = cluster.start_grid(out)

    def halfway() -> bool:
        ready = [(run / "result.json").exists() for run in cluster.runs(out)]
        return any(ready) and not all(ready) and grid.poll() is None

    wait_until(halfway, 600, "a finished run")
    cluster.head.kill_all()
    grid.wait(120)
    finished = {run.name: (run / "result.json").stat() for run in cluster.runs(out) if (run / "result.json").exists()}
    assert 1 <= len(finished) < 4, "killed in the middle of the grid"
    cluster.worker.kill_all()  # as when the head's restart starts its workers anew
    before = len(Journal.read(out))
    cluster.start_head()
    cluster.start_worker()
    said = cluster.finish(cluster.start_grid(out), out)
    assert f"4 runs, {len(finished)} finished, {4 - len(finished)} to run" in said and "tried again" not in said
    again = {line["run"] for line in Journal.read(out)[before:] if line["event"] == "start"}
    assert again == {run.name for run in cluster.runs(out)} - finished.keys()
    assert all(
        (out / "runs" / name / "result.json").stat().st_mtime_ns == was.st_mtime_ns for name, was in finished.items()
    )
    _assert_same_grid(cluster, out, undisturbed)
