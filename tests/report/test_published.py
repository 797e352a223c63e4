"""Published numbers beside ours, like for like."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.registry import list_methods
from fmlora_dist.report import Column, Planned, make_report, read_runs
from fmlora_dist.report.published import Published, published, published_lines
from result_files import BACKBONE

Write = Callable[..., Path]
METRICS = {"acc": 50.0, "aaa": 60.0, "acc_samples": 80.0, "aaa_samples": 84.0}


def found(write_run: Write, folder: Path, measure: str = "acc", **fields: object) -> list[Published]:
    facts: dict[str, object] = {"benchmark": "imagenet_r", "shared": {"backbone": BACKBONE}, "metrics": METRICS}
    write_run("sdlora", 0, 0.0, **(facts | fields))
    runs = read_runs([folder]).runs
    return published(runs[0], runs, measure)


def test_the_metric_of_the_publications_code_is_compared(write_run: Write, tmp_path: Path) -> None:
    first = found(write_run, tmp_path)[0]
    assert "SD-LoRA (ICLR 2025) Table 2" in first.source
    assert (first.text, first.metric) == ("79.15 ± 0.20", "acc_samples")
    assert (first.ours_text, first.difference_text, first.reason) == ("80.00", "+0.85", "")


def test_aaa_is_compared_likewise(write_run: Write, tmp_path: Path) -> None:
    first = found(write_run, tmp_path, "aaa")[0]
    assert (first.text, first.ours_text, first.difference_text) == ("83.01 ± 0.42", "84.00", "+0.99")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"shared": {"backbone": "vit_base_patch16_224.augreg_in21k"}}, f"its backbone is {BACKBONE}; ours vit_base"),
        ({"shared": {"backbone": BACKBONE, "tested_on": "validation"}}, "ours is measured on validation data"),
        ({"metrics": {"acc": 50.0}}, "ours has no Acc (samples)"),
        ({"shared": {"backbone": BACKBONE, "excluded_domains": ["quickdraw"]}}, "ours is without quickdraw"),
    ],
)
def test_what_is_not_alike_is_not_compared_and_says_why(
    write_run: Write, tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    first = found(write_run, tmp_path, **fields)[0]
    assert first.reason.startswith(reason)
    assert (first.ours, first.difference, first.difference_text) == (None, None, "")


def test_a_publication_that_does_not_say_which_mean_is_not_compared(write_run: Write, tmp_path: Path) -> None:
    reasons = {line.source: line.reason for line in found(write_run, tmp_path)}
    assert "is not established" in reasons["LibContinual reproduce/sd_lora/README.md, reproduction"]


def test_other_benchmarks_and_other_measures_have_none(write_run: Write, tmp_path: Path) -> None:
    assert found(write_run, tmp_path, "forgetting") == []
    write_run("sdlora", 0, 0.0, benchmark="icons")
    runs = read_runs([tmp_path / "runs" / "icons-5-sdlora-s0-1"]).runs
    assert published(runs[0], runs, "acc") == []


def test_a_cell_whose_runs_are_still_planned_has_them_too(write_run: Write, tmp_path: Path) -> None:
    write_run("sdlora", 0, 80.0, benchmark="imagenet_r")
    planned = [Planned("x", Column("imagenet_r", "cil", n), "inflora") for n in (5, 10)]
    report = make_report(read_runs([tmp_path], planned))
    row = next(row for row in report.tables[0].rows if row.label == "inflora")
    assert [cell.runs for cell in row.cells] == [[]] * 4 and all(cell.published for cell in row.cells)
    lines = [line for cell in row.cells for line in cell.published]
    assert {(line.reason, line.ours, line.difference) for line in lines} == {("no run of ours is finished", None, None)}
    sdlora = next(row for row in report.tables[0].rows if row.label == "sdlora")
    assert [bool(cell.published) for cell in sdlora.cells] == [True, True, False, False], "N = 10 is not planned of it"


def test_they_stand_beside_the_table_with_their_sources(write_run: Write, tmp_path: Path) -> None:
    found(write_run, tmp_path)
    ((_, grids),) = make_report(read_runs([tmp_path])).sections()
    grid = next(grid for grid in grids if grid.title == "Published numbers, ImageNet-R")
    assert grid.lines[0].texts == (
        "sdlora",
        "imagenet_r N=5",
        "Acc (samples)",
        "79.15 ± 0.20",
        "80.00",
        "+0.85",
        "(1)",
    )
    assert not grid.lines[0].faint
    assert any(line.faint for line in grid.lines)
    assert grid.notes[1].startswith("(1) SD-LoRA (ICLR 2025) Table 2")


def test_every_line_of_the_file_can_be_read() -> None:
    lines = published_lines()
    assert len(lines) == 95
    for line in lines:
        assert line["source"] and line["acc_mean"]
        assert all(0 < float(line[name]) < 100 for name in ("acc_mean", "acc_std", "aaa_mean", "aaa_std") if line[name])
        assert {line["acc_metric"], line["aaa_metric"]} <= {"", "acc", "aaa", "acc_samples", "aaa_samples"}
        assert int(line["n_tasks"]) > 1
    assert {"finetune", "inflora", "sdlora"} <= {line["method"] for line in lines} & set(list_methods())
