"""``fmlora compare``: what differs between two runs."""

import json
from pathlib import Path

import pytest

from fmlora_dist.report.compare import Differing, compare_runs
from result_files import write_whole
from running import command_here


def parts(one: Path, other: Path) -> dict[str, Differing]:
    return {part.part: part for part in compare_runs(one, other)}


def test_a_run_differs_from_itself_in_nothing(tmp_path: Path) -> None:
    run = write_whole(tmp_path, "lora", 0, 70.0)
    assert [part for part in compare_runs(run, run) if part.fields or part.note] == []


def test_config_metrics_and_matrix_are_compared_field_by_field(tmp_path: Path) -> None:
    one = write_whole(tmp_path, "fmlora", 0, 70.0, n_tasks=5)
    other = write_whole(tmp_path, "fmlora", 0, 75.0, n_tasks=5, method={"rank": 8})
    found = parts(one, other)
    assert found["config"].fields == {"method.rank": (16, 8)}
    assert found["recipe"].fields == {}  # said by the config
    assert found["shared protocol"].fields == {}
    first, second = (json.loads((run / "result.json").read_text()) for run in (one, other))
    assert found["metrics"].fields["acc"] == (first["metrics"]["acc"], second["metrics"]["acc"])
    assert found["accuracy matrix"].note.startswith(
        "15 cells differ, the first after task 1 on task 1, most after task"
    )
    last = zip(first["accuracy_matrix"][-1], second["accuracy_matrix"][-1], strict=True)
    assert [*found["accuracy matrix"].fields.values()] == [*last]
    assert next(iter(found["accuracy matrix"].fields)) == "after task 5 on task 1"


def test_one_cell_of_the_matrix_is_enough(tmp_path: Path) -> None:
    one = write_whole(tmp_path, "lora", 0, 70.0, n_tasks=5)
    other = tmp_path / "other"
    other.mkdir()
    result = json.loads((one / "result.json").read_text())
    result["accuracy_matrix"][3][1] += 1.0
    (other / "result.json").write_text(json.dumps(result))
    found = parts(one, other)["accuracy matrix"]
    assert found.note.startswith("1 cells differ, the first after task 4 on task 2, most after task 4 on task 2:")
    assert found.fields == {}


def test_runs_of_different_lengths_and_joint_ones_can_be_compared(tmp_path: Path) -> None:
    five, joint = (write_whole(tmp_path, name, 0, 70.0, n_tasks=5) for name in ("lora", "joint"))
    ten = write_whole(tmp_path, "lora", 0, 70.0, n_tasks=10)
    other = write_whole(tmp_path, "joint", 1, 70.0, n_tasks=5)
    assert parts(five, ten)["accuracy matrix"].note == "5 and 10 rows of different lengths"
    assert list(parts(joint, other)["accuracy matrix"].fields) == [f"after task 5 on task {t}" for t in range(1, 6)]


def test_a_run_that_is_not_complete_is_compared_by_its_config(tmp_path: Path) -> None:
    done = write_whole(tmp_path, "lora", 0, 70.0)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    config = json.loads((done / "result.json").read_text())["config"]
    (unfinished / "config.yaml").write_text(json.dumps(config | {"seed": 3}))
    found = parts(done, unfinished)
    assert found["config"].fields == {"seed": (0, 3)}
    assert found["result"].note == f"not complete: {unfinished}"


def test_the_command_prints_what_differs_and_what_is_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    one = write_whole(tmp_path, "fmlora", 0, 70.0)
    other = write_whole(tmp_path, "fmlora", 1, 70.0)
    done = command_here(["compare", one, other])
    assert done.code == 0, done.err
    row = next(line for line in done.out.splitlines() if " seed " in line)
    assert [word for word in row.split() if word not in "│┃"] == ["seed", "0", "1", "+1"]
    assert "equal: shared protocol, recipe, parameters, versions" in done.out


def test_recipes_that_differ_as_the_configs_do_are_not_called_equal(tmp_path: Path) -> None:
    done = command_here(["compare", write_whole(tmp_path, "lora", 0, 70.0), write_whole(tmp_path, "inflora", 0, 70.0)])
    assert done.code == 0, done.err
    assert "recipe: differs only in what the config says" in done.out
    (equal,) = [line for line in done.out.splitlines() if line.startswith("equal: ")]
    assert "shared protocol" in equal and "recipe" not in equal


@pytest.mark.parametrize("content", [None, "{", '{"schema": 2}'])
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None) -> None:
    run = write_whole(tmp_path, "lora", 0, 70.0)
    other = tmp_path / "other"
    other.mkdir()
    if content:
        (other / "result.json").write_text(content)
    done = command_here(["compare", run, other])
    assert done.code == 2
    assert str(other) in done.err and done.err.count("\n") == 1
