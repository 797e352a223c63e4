"""Reading runs, and their figures over seeds."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.errors import UserError
from fmlora_dist.report.aggregate import read_runs
from fmlora_dist.report.measures import spread

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
    ("text", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "schema 'list'"),
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


def test_a_folder_that_does_not_exist_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])


def test_nothing_is_written_into_a_run_directory(write_run: Write, tmp_path: Path) -> None:
    folder = write_run("lora", 0, 70.0)
    before = {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())}
    read_runs([tmp_path])
    assert {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())} == before
    assert json.loads((folder / "result.json").read_text())["seed"] == 0
