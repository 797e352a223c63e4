"""``fmlora report``: what it reads, prints and writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.journal import Journal
from running import command_here

Write = Callable[..., Path]
TABLES = {"tables.md", "tables.tex", "tables.csv"}
FIGURES = {"icons-acc-by-n.svg", "icons-acc-by-n.pdf"}
REPORT = {*TABLES, *FIGURES, "index.html"}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_folders_report_lies_in_it_and_nothing_in_its_runs(grid: Path) -> None:
    before = names(grid)
    done = command_here(["report", grid])
    assert done.code == 0, done.err
    assert "lora [2]" in done.out
    assert names(grid) - before == {f"report/{name}" for name in REPORT}
    assert f"written: {grid}/report/tables.md, " in done.out
    assert f"{grid}/report/index.html, 1 figure beside it (SVG and PDF)" in done.out
    assert command_here(["report", grid]).code == 0  # its own report is no run


def test_nothing_is_written_for_a_run_several_folders_or_a_url(write_run: Write, tmp_path: Path) -> None:
    one, other = write_run("lora", 0, 70.0), write_run("lora", 1, 71.0)
    before = names(tmp_path)
    for folders in ([one], [one, other], [f"file://{one.parent}"]):
        done = command_here(["report", *folders])
        assert done.code == 0, done.err
    assert names(tmp_path) - before <= {f"runs/report/{name}" for name in REPORT}
    assert "70.50 ± 0.71" in command_here(["report", one, other]).out


def test_nothing_is_written_into_a_run_even_if_asked(write_run: Write, tmp_path: Path) -> None:
    run = write_run("lora", 0, 70.0)
    before = names(tmp_path)
    for out in (run, run / "report"):
        done = command_here(["report", run, "--out", out])
        assert done.code == 2 and f"out: found {out}, which is or lies in a run's directory" in done.err
    assert names(tmp_path) == before


def test_out_is_where_everything_is_written(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    before = names(grid)
    done = command_here(["report", grid / "runs", "--out", out])
    assert done.code == 0, done.err
    assert names(out) == REPORT
    assert names(grid) - before == {f"elsewhere/{name}" for name in names(out)}


def test_a_folder_without_the_right_to_write_asks_for_out(grid: Path) -> None:
    (grid / "report").write_text("in the way")
    done = command_here(["report", grid])
    assert done.code == 2
    assert "lora [2]" in done.out
    assert "cannot write" in done.err and "--out" in done.err


def test_a_profile_of_steps_is_drawn_and_anything_else_refused(grid: Path, tmp_path: Path) -> None:
    profile = tmp_path / "steps.json"
    profile.write_text('{"rows": [{"method": "lora", "task": 1, "seconds_per_step": 0.1}]}')
    done = command_here(["report", grid, "--profile", profile, "--out", tmp_path / "out"])
    assert done.code == 0, done.err
    assert names(tmp_path / "out") == REPORT | {"step-time.svg", "step-time.pdf"}
    profile.write_text("{}")
    done = command_here(["report", grid, "--profile", profile])
    assert done.code == 2
    assert done.err.count("\n") == 1 and str(profile) in done.err and "profile steps" in done.err


def test_options_choose_runs_rows_columns_and_metrics(grid: Path) -> None:
    words = ["--where", "method=lora,fmlora", "--where", "n_tasks=5", "--rows", "method", "--columns", "benchmark"]
    done = command_here(["report", grid, *words, "--metrics", "acc"])
    assert done.code == 0, done.err
    assert "finetune" not in done.out
    assert "81.00 ± 1.00" in done.out and "AAA" not in done.out.split("Shared protocol")[0]


def test_mixed_protocols_are_a_mistake_unless_allowed(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("fmlora", 0, 75.0, shared={"backbone": "huge"})
    done = command_here(["report", tmp_path])
    assert done.code == 2
    assert done.err.count("\n") == 1 and "--allow-mixed" in done.err
    allowed = command_here(["report", tmp_path, "--allow-mixed"])
    assert allowed.code == 0
    assert "75.00 †" in allowed.out or "70.00 †" in allowed.out


@pytest.mark.parametrize("where", ["mine", "mine/runs", "."])
def test_an_unfinished_grid_is_marked_by_its_own_plan(write_run: Write, tmp_path: Path, where: str) -> None:
    done_run = write_run("lora", 0, 70.0).name
    grid = tmp_path / "mine"
    grid.mkdir()
    (tmp_path / "runs").rename(grid / "runs")
    place = {"benchmark": "icons", "scenario": "cil", "n_tasks": 5}
    plan = [{"run": name, **place, "method": method} for name, method in ((done_run, "lora"), ("other", "fmlora"))]
    journal = Journal(grid, "mine")
    journal.write("grid", plan=[{**plan[0], "run": "of an earlier start"}])
    journal.write("grid", plan=plan)
    done = command_here(["report", tmp_path / where])
    assert done.code == 0, done.err
    assert "Unfinished: 1 of 2 planned runs are complete; missing: fmlora on icons N=5 (1 of 1)." in done.out


def test_a_broken_result_is_named_at_the_end(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    broken = write_run("lora", 1, 70.0) / "result.json"
    broken.write_text('{"schema": 7}')
    done = command_here(["report", tmp_path])
    assert done.code == 0
    assert f"left out: {broken} has schema 7, expected 1" in done.out
