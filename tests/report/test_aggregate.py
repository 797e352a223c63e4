"""Reading runs, and their figures over seeds."""

import json
import statistics
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmlora_dist.errors import UserError
from fmlora_dist.report import make_report
from fmlora_dist.report.aggregate import read_runs
from fmlora_dist.report.latex import to_latex
from fmlora_dist.report.markdown import to_markdown
from fmlora_dist.report.measures import spread
from fmlora_dist.report.plain import to_csv
from result_files import write_whole

Write = Callable[..., Path]


def test_mean_and_sample_std_are_those_of_the_seeds(write_run: Write, tmp_path: Path) -> None:
    values = [71.25, 69.5, 74.125]
    for seed, acc in enumerate(values):
        write_run("lora", seed, acc)
    found = spread(read_runs([tmp_path]).runs, "acc")
    assert found is not None
    assert found == pytest.approx((statistics.mean(values), statistics.stdev(values), 3))


def test_one_seed_has_no_std_and_an_undefined_metric_no_figure(write_run: Write, tmp_path: Path) -> None:
    write_run("joint", 0, 80.0, None)
    runs = read_runs([tmp_path]).runs
    assert spread(runs, "acc") == (80.0, None, 1)
    assert spread(runs, "aaa") is None
    assert spread([], "acc") is None


def test_what_was_learned_and_moved_is_read_and_joint_training_has_neither(write_run: Write, tmp_path: Path) -> None:
    matrix = [[90.0], [50.0, 80.0], [40.0, 60.0, 70.0]]
    traces = {"n_tasks": 3, "drift": [0.0, 0.125, 0.25], "weight_change": [0.5, 0.75, 0.625]}
    write_run("lora", 0, 56.67, accuracy_matrix=matrix, **traces)
    write_run("joint", 0, 80.0, None, accuracy_matrix=matrix[-1:], n_tasks=3, drift=[0.0])
    lora, joint = sorted(read_runs([tmp_path]).runs, key=lambda run: run.method, reverse=True)
    names = ("learning", "drift", "weight_change")
    assert [lora.figure(name) for name in names] == [80.0, 0.25, 0.625]
    assert [joint.figure(name) for name in names] == [None, None, None]


def test_a_seed_that_was_run_twice_counts_once(write_run: Write, tmp_path: Path) -> None:
    for seed, acc in ((0, 70.0), (0, 72.0), (1, 75.0)):
        write_run("lora", seed, acc)
    found = spread(read_runs([tmp_path]).runs, "acc")
    assert found is not None
    assert (found.mean, found.n) == (73.0, 2)


def test_a_run_is_read_once_however_its_folder_is_named(write_run: Write, tmp_path: Path) -> None:
    folder = write_run("lora", 0, 70.0)
    assert len(read_runs([tmp_path, folder, folder / "result.json", folder / ".." / folder.name]).runs) == 1


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [([[50.0]] * 6, "more than n_tasks 5"), ([[50.0] * 6], "more than n_tasks 5"), ([[170.0]], "between 0 and 100")],
)
def test_accuracies_that_cannot_be_are_no_result(
    write_run: Write, tmp_path: Path, matrix: list[list[float]], reason: str
) -> None:
    write_run("lora", 0, 70.0, n_tasks=5, accuracy_matrix=matrix)
    found = read_runs([tmp_path])
    assert found.runs == [] and reason in found.broken[0][1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "schema 'list'"),
        ("[" * 100_000, "is no JSON"),
        ('{"schema": 2}', "schema 2, expected 1"),
        ('{"schema": 1, "status": "running"}', "status 'running'"),
        ('{"schema": 1, "status": "complete"}', "no valid 'benchmark'"),
    ],
)
def test_a_broken_result_is_named_and_left_out(write_run: Write, tmp_path: Path, text: str, reason: str) -> None:
    write_run("lora", 0, 70.0)
    broken = write_run("lora", 1, 71.0) / "result.json"
    broken.write_text(text)
    runs = read_runs([tmp_path])
    assert [run.seed for run in runs.runs] == [(0, 0)]
    assert [file for file, _ in runs.broken] == [broken]
    assert reason in runs.broken[0][1]


def test_a_result_without_accuracy_is_broken(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0, metrics={"acc": None})
    assert "metrics.acc" in read_runs([tmp_path]).broken[0][1]


ODD = (None, "x", "", [], [[]], {}, {"a": [1]}, float("nan"), float("inf"), -1, 10**400, True, 0.5)


@given(st.data())
def test_whatever_a_result_holds_it_is_read_or_named_and_the_tables_are_made(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        runs = [write_whole(Path(folder), "fmlora", seed, 70.0, n_tasks=3) / "result.json" for seed in range(2)]
        result = json.loads(runs[0].read_text())
        for _ in range(data.draw(st.integers(1, 3))):
            place = result
            while True:
                key = data.draw(st.sampled_from([*place] if isinstance(place, dict) else range(len(place))))
                if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans())):
                    break
                place = place[key]
            place[key] = deepcopy(data.draw(st.sampled_from(ODD)))  # the next change may go into it
        runs[0].write_text(json.dumps(result))
        found = read_runs([folder])
        assert len(found.runs) + len(found.broken) == 2
        assert all(reason and "\n" not in reason for _, reason in found.broken)
        report = make_report(found, allow_mixed=True)
        assert "fmlora" in to_markdown(report) + to_latex(report) + to_csv(report)


def test_a_folder_that_does_not_exist_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])


def test_nothing_is_written_into_a_run_directory(write_run: Write, tmp_path: Path) -> None:
    folder = write_run("lora", 0, 70.0)
    before = {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())}
    read_runs([tmp_path])
    assert {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())} == before
    assert json.loads((folder / "result.json").read_text())["seed"] == 0
