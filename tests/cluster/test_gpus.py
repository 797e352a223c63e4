"""Grids on GPUs that only Ray believes in: who may see which, who shares one, and who waits."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.journal import Journal
from cluster.plan import load_grid, plan_runs
from hosts import Host, needs, work_folder
from running import result, tiny_data
from tiny_benchmark import BACKBONE

pytestmark = pytest.mark.long

GPUS, PORT = 2, 6407
_PLACEMENT_GROUPS = """
import json, ray
ray.init(log_to_driver=False, logging_level="CRITICAL")
print(json.dumps([list(group["bundles"].values()) for group in ray.util.placement_group_table().values()]))
"""


@dataclass(frozen=True)
class Process:
    """What a process of a run was told."""

    run: Path
    environment: dict[str, str] = field(hash=False)

    @property
    def gpus(self) -> list[str]:
        return [word for word in self.environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]


class Head:
    """A Ray head with two GPUs and more cores than any grid here needs, so that GPUs alone are scarce."""

    def __init__(self, work: Path, host: Host):
        self.work, self.host = work, host
        (work / "token").write_text("5" * 64)
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": work / "token"}
        start = ["ray", "start", "--head", "--node-ip-address", host.address, "--port", PORT, "--temp-dir", work / "r"]
        start += ["--num-cpus", 16, "--num-gpus", GPUS, "--object-store-memory", 100_000_000]
        host.run(
            [*start, "--include-dashboard=false", "--disable-usage-stats"], work / "ray.log", timeout=300, **self.env
        )
        self.env |= {"RAY_ADDRESS": f"{host.address}:{PORT}"}

    def write_grid(self, name: str, methods: list[Any]) -> Path:
        options = dict(zip(BACKBONE[::2], BACKBONE[1::2], strict=True))
        backbone: dict[str, Any] = {word.removeprefix("--backbone."): value for word, value in options.items()}
        backbone["options"] = json.loads(backbone["options"])
        settings = {"data_root": str(tiny_data()), "epochs": 2, "batch_size": 8, "device": "cpu", "backbone": backbone}
        values = {"benchmarks": [{"benchmark": "icons", "tasks": [3]}], "methods": methods, "seeds": [0]}
        file = self.work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values | {"settings": settings}))
        return file

    def grid(self, file: Path, out: Path) -> tuple[int, str, list[dict[int, Process]]]:
        """(exit code, what it said, the runs' processes that worked at once, at many moments)."""
        log = self.work / f"{out.name}.log"
        grid = self.host.start(["python", "-m", "fmlora_dist.cli", "grid", file, "--out", out], log, **self.env)
        seen: list[dict[int, Process]] = []
        before: dict[int, Process] = {}
        while grid.poll() is None:
            now = self._processes(out)
            # Who is in two looks was there all the time between them.
            seen.append({pid: process for pid, process in now.items() if pid in before})
            before = now
            time.sleep(0.2)
        return grid.returncode, log.read_text(), seen

    def placement_groups(self) -> list[list[dict[str, float]]]:
        """The bundles of each one that there ever was."""
        log = self.work / "groups.log"
        return json.loads(self.host.run(["python", "-c", _PLACEMENT_GROUPS], log, **self.env).splitlines()[-1])

    def _processes(self, out: Path) -> dict[int, Process]:
        found = {}
        for pid in self.host.processes("-m fmlora_dist.cli run", f"--out {out}/runs/"):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            except OSError:
                continue  # it has just ended
            if "--out" in words:
                run = Path(words[words.index("--out") + 1])
                found[pid] = Process(run, dict(text.split("=", 1) for text in variables if "=" in text))
        return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    needs()
    with work_folder() as work, Host("gpus", work, {}) as host:
        yield Head(work, host)


def test_runs_share_gpus_by_fractions_and_a_run_on_several_has_a_process_on_each(head: Head) -> None:
    half = ("frozen", "lora", "sdlora", "finetune", "inflora")
    methods: list[Any] = [{"name": name, "resources": {"gpus": 0.5}} for name in half]
    file, out = head.write_grid("shared", [*methods, {"name": "fmlora", "resources": {"gpus": 2}}]), head.work / "out"
    by_method = {run.config.method.name: run.folder for run in plan_runs(load_grid(str(file)), out)}
    code, said, seen = head.grid(file, out)
    assert code == 0 and not [event for event in Journal.read(out) if event["event"] in ("retry", "failed")], said
    processes: dict[Path, dict[int, Process]] = defaultdict(dict)
    for together in seen:
        for pid, process in together.items():
            processes[process.run][pid] = process

    # A half each: one id each, two runs a GPU at most, and no GPU without a run while others wait.
    for name in half:
        (process,) = processes[by_method[name]].values()
        assert len(process.gpus) == 1
        assert result(by_method[name])["world_size"] == 1
    assert {gpu for name in half for process in processes[by_method[name]].values() for gpu in process.gpus} == {
        "0",
        "1",
    }
    most = 0
    for together in seen:
        used: dict[str, Fraction] = defaultdict(Fraction)
        for process in together.values():
            used[process.gpus[0]] += 1 if process.run == by_method["fmlora"] else Fraction(1, 2)
        assert all(share <= 1 for share in used.values()), together
        most = max(most, len(together))
    assert most == 2 * GPUS, "as many runs at once as there are halves, and the fifth waits"

    # Two GPUs: one placement group, a process in each bundle, each with a GPU of its own.
    ranks = sorted(processes[by_method["fmlora"]].values(), key=lambda process: process.environment["RANK"])
    assert [process.environment["RANK"] for process in ranks] == ["0", "1"]
    assert {process.environment["WORLD_SIZE"] for process in ranks} == {"2"}
    assert sorted(gpu for process in ranks for gpu in process.gpus) == ["0", "1"]
    assert result(by_method["fmlora"])["world_size"] == 2
    groups = head.placement_groups()
    assert [group for group in groups if len(group) > 1] == [[{"CPU": 1.0, "GPU": 1.0}] * 2], groups


def test_a_run_on_more_gpus_than_there_are_is_refused_before_anything_starts(head: Head) -> None:
    file, out = head.write_grid("large", ["frozen", {"name": "fmlora", "resources": {"gpus": 3}}]), head.work / "none"
    before = len(head.placement_groups())
    code, said, seen = head.grid(file, out)
    assert code == 2, said
    assert "resources: a run asks for 3 CPUs and 3 GPUs in 3 processes, but there are never more than" in said
    assert "2 GPUs" in said and "Traceback" not in said
    assert not any(seen) and not list((out / "runs").iterdir())
    assert len(head.placement_groups()) == before
    assert {event["event"] for event in Journal.read(out)} <= {"grid"}
