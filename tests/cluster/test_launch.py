"""Plans: what is counted, where times come from, and what is said without them; nothing is started."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.estimate import Profile, estimate, load_profile
from cluster.journal import Journal
from cluster.launch import Cluster, Options, print_plan, run_grid
from cluster.plan import PlannedRun, load_grid, plan_runs
from fmlora_dist.errors import UserError

ROWS = [
    {"method": "lora", "task": 1, "seconds_per_step": 1.0},
    {"method": "lora", "task": 5, "seconds_per_step": 2.0, "images_per_second": 9},
]


def write_grid(folder: Path, *, methods: str = "[lora]", seeds: str = "[0, 1]", more: str = "") -> str:
    file = folder / "mine.yaml"
    axis = "[{benchmark: icons_mini, tasks: [5, 10]}]"
    file.write_text(f"benchmarks: {axis}\nmethods: {methods}\nseeds: {seeds}\nsettings: {{threads: 1}}\n{more}")
    return str(file)


def finish(run: PlannedRun, seconds: float) -> None:
    run.folder.mkdir(parents=True)
    config = run.config
    result = {"schema": 1, "status": "complete", "benchmark": config.benchmark, "n_tasks": config.tasks, "seed": 0}
    result |= {"method": config.method.name, "metrics": {"acc": 1.0}, "seconds": {"total": seconds}}
    (run.folder / "result.json").write_text(json.dumps(result))


def plan(name: str, out: Path, cluster: Cluster | None = None, **options: Any) -> str:
    text = io.StringIO()
    console = Console(file=text, width=200)
    assert print_plan(name, out, console, Options(**options), cluster or Cluster(cpus=2)) == 0
    return text.getvalue()


def test_a_plan_without_times_counts_and_says_why(tmp_path: Path) -> None:
    text = plan(write_grid(tmp_path), tmp_path / "out")
    assert "grid mine: 4 runs, 0 done, 4 to run" in text
    assert "no makespan: no run of lora is done yet, and no --profile was given" in text
    assert not (tmp_path / "out").exists()


def test_a_plan_takes_the_times_of_finished_runs(tmp_path: Path) -> None:
    name, out = write_grid(tmp_path), tmp_path / "out"
    runs = plan_runs(load_grid(name), out)
    finish(runs[0], 100.0)
    text = plan(name, out)
    assert "4 runs, 1 done, 3 to run" in text
    assert "what is left on 1 node of 2 cores: 3:20 simulated" in text, "N = 10 as long as N = 5 while none is done"
    assert "the whole grid on 1 node of 2 cores: 3:20 simulated, longest first (6:40 one after the other)" in text
    finish(next(run for run in runs if run.config.tasks == 10), 300.0)
    assert "the whole grid on 1 node of 2 cores: 6:40 simulated" in plan(name, out)
    Journal(out, "mine").write("done", run=runs[0].name, seconds=110.0, resumed=False)
    assert "(13:40 one after the other)" in plan(name, out), "with the start of its process, where that was watched"


def test_a_plan_multiplies_a_profiles_steps(tmp_path: Path) -> None:
    name, file = write_grid(tmp_path, seeds="[0]"), tmp_path / "profile.json"
    file.write_text(json.dumps({"rows": ROWS, "device": "cpu"}))
    (five, ten) = plan_runs(load_grid(name), tmp_path)
    assert five.steps is not None and len(five.steps) == 5
    found = estimate([five, ten], {}, load_profile(file))
    assert found.seconds[five.name] == pytest.approx(
        sum(n * seconds for n, seconds in zip(five.steps, (1.0, 1.25, 1.5, 1.75, 2.0), strict=True))
    )
    assert found.reason == ""
    assert "times from the profile" in plan(name, tmp_path / "out", profile=file)
    text = plan(write_grid(tmp_path, methods="[lora, frozen]"), tmp_path / "out", profile=file)
    assert "no makespan: the profile has no row of frozen" in text


def test_the_papers_steps_are_counted_without_its_data() -> None:
    runs = plan_runs(load_grid("paper"), Path("out"), check=False)
    steps = {run.config.benchmark: sum(run.steps or []) for run in runs if run.config.scenario == "cil"}
    assert steps["cifar100"] == 10 * 40 * 20
    assert steps["domainnet"] == 5 * 641 * 5
    one = Profile.model_validate({"rows": [{"method": "lora", "task": 1, "seconds_per_step": 0.5}]})
    found = estimate([run for run in runs if run.config.method.name == "lora"], {}, one)
    assert found.reason == "" and len(found.seconds) == 35


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "has no field 'rows'"),
        ('{"rows": []}', "rows: "),
        ('{"rows": [{}]}', "rows.0.method"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=r"p\.json") as caught:
        load_profile(tmp_path / "p.json")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_simulated_cluster_that_is_too_small_is_refused(tmp_path: Path) -> None:
    name = write_grid(tmp_path, more="resources: {gpus: 4}")
    with pytest.raises(UserError, match=r"4 x .* of icons_mini-5-lora-s0-.* does not fit the nodes"):
        plan(name, tmp_path / "out", Cluster(nodes=4, gpus=0))
    assert "4 runs, 0 done" in plan(name, tmp_path / "out", Cluster()), "of which no size was told"
    for run in plan_runs(load_grid(name), tmp_path / "out"):
        finish(run, 10.0)
    with pytest.raises(UserError, match=r"does not fit the nodes \(2 nodes of 1 GPUs\)"):
        plan(name, tmp_path / "out", Cluster(nodes=2, gpus=1))
    assert "on 2 nodes of 4 GPUs: 0:20 simulated" in plan(name, tmp_path / "out", Cluster(nodes=2, gpus=4))


def test_an_unknown_tracker_or_one_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    from cluster.track import check_trackers

    with pytest.raises(UserError, match="unknown 'wandbb': did you mean 'wandb'"):
        check_trackers(["wandbb"])
    name, options = write_grid(tmp_path), Options(trackers=["wandbb"])
    for start in (run_grid, lambda *given: print_plan(*given, Cluster())):
        with pytest.raises(UserError, match="unknown 'wandbb'"):
            start(name, tmp_path / "out", Console(file=io.StringIO()), options)
    assert not (tmp_path / "out").exists(), "before anything is written"
