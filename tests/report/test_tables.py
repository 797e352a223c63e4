"""The comparison table and its forms."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fmlora_dist.errors import UserError
from fmlora_dist.report import print_report, read_runs, write_report
from fmlora_dist.report.tables import Comparison, comparison, to_csv, to_markdown

Write = Callable[..., Path]


@pytest.fixture
def grid(write_run: Write, tmp_path: Path) -> Path:
    """Three seeds of three rivals and both bounds; fmlora's second task count is not done yet."""
    for seed in range(3):
        for method, acc in (("fmlora", 80.0), ("lora", 70.0), ("finetune", 40.0), ("frozen", 60.0)):
            write_run(method, seed, acc + seed, acc + 5)
            if method != "fmlora":
                write_run(method, seed, acc - 10 + seed, acc, n_tasks=10)
        write_run("joint", seed, 90.0 + seed, None)
    return tmp_path


def cells(table: Comparison) -> dict[str, list[tuple[str, str]]]:
    return {row.label: [(cell.text, cell.mark) for cell in row.cells] for row in table.rows}


def test_rows_are_methods_with_the_bounds_last_and_columns_acc_and_aaa(grid: Path) -> None:
    table = comparison(read_runs([grid]))
    assert [row.name for row in table.rows] == [
        "finetune",
        "lora",
        "fmlora",
        "frozen (lower bound)",
        "joint (upper bound)",
    ]
    assert table.heads() == ["icons N=5 Acc", "icons N=5 AAA", "icons N=10 Acc", "icons N=10 AAA"]


def test_best_and_second_are_marked_and_bounds_do_not_compete(grid: Path) -> None:
    found = cells(comparison(read_runs([grid])))
    assert found["fmlora"][0] == ("81.00 ± 1.00", "best")
    assert found["lora"][0] == ("71.00 ± 1.00", "second")
    assert found["lora"][2] == ("61.00 ± 1.00", "best")
    assert found["finetune"][0] == ("41.00 ± 1.00", "")
    assert {mark for label in ("frozen", "joint") for _, mark in found[label]} == {""}


def test_cells_without_runs_and_without_the_metric_are_visibly_empty(grid: Path) -> None:
    found = cells(comparison(read_runs([grid])))
    assert [text for text, _ in found["fmlora"][2:]] == ["–", "–"]
    assert [text for text, _ in found["joint"]] == ["91.00 ± 1.00", "n/a", "–", "–"]


def test_the_number_of_seeds_stands_in_the_cells_only_where_it_differs(grid: Path, write_run: Write) -> None:
    assert "(n=" not in to_markdown(comparison(read_runs([grid])), read_runs([grid]))
    assert comparison(read_runs([grid])).seeds.endswith("over 3 seeds.")
    write_run("sdlora", 0, 75.0)
    found = cells(comparison(read_runs([grid])))
    assert found["sdlora"][0] == ("75.00 (n=1)", "second")
    assert found["lora"][0] == ("71.00 ± 1.00 (n=3)", "")


def test_one_seed_invents_no_std(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    table = comparison(read_runs([tmp_path]))
    assert cells(table) == {"lora": [("70.00", ""), ("50.00", "")]}
    assert "one seed" in table.seeds


def test_equal_methods_are_both_the_best(write_run: Write, tmp_path: Path) -> None:
    for method, acc in (("lora", 70.0), ("fmlora", 70.0), ("sdlora", 60.0)):
        write_run(method, 0, acc)
    found = cells(comparison(read_runs([tmp_path])))
    assert [found[name][0][1] for name in ("lora", "fmlora", "sdlora")] == ["best", "best", "second"]


def test_recipes_of_one_method_are_rows_of_their_own(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("lora", 1, 71.0, recipe={"method": {"name": "lora", "rank": 4}})
    found = cells(comparison(read_runs([tmp_path])))
    assert {label: texts[0][0] for label, texts in found.items()} == {"lora, rank=16": "70.00", "lora, rank=4": "71.00"}


def test_protocol_and_recipes_stand_below(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("lora", 0, 60.0, n_tasks=10, recipe={"epochs": 9})
    write_run("fmlora", 0, 60.0, recipe={"method": {"name": "fmlora", "candidates": [2, 4], "drs": False}})
    notes = list(filter(None, comparison(read_runs([tmp_path])).notes()))
    assert notes[1:] == [
        "Shared protocol: benchmark icons, backbone tiny, split 0123456789ab",
        "icons N=5: n tasks 5",
        "icons N=10: n tasks 10",
        "All rows: train.lr 0.001",
        "[1] lora: icons N=5: rank 16, epochs 3; icons N=10: rank 16, epochs 9",
        "[2] fmlora: candidates 2/4, drs false, epochs 3",
    ]


def test_terminal_markdown_and_csv_hold_the_same_numbers(grid: Path, tmp_path: Path) -> None:
    runs = read_runs([grid])
    table = comparison(runs)
    figures = sorted(re.findall(r"\d+\.\d\d", "".join(cell.text for row in table.rows for cell in row.cells)))
    console = Console(width=200, record=True, quiet=False, file=open(tmp_path / "terminal", "w"))  # noqa: SIM115
    print_report([grid], console)
    assert sorted(re.findall(r"\d+\.\d\d\b", console.export_text())) == figures
    assert sorted(re.findall(r"\d+\.\d\d\b", to_markdown(table, runs))) == figures
    assert sorted(re.findall(r"\d+\.\d\d\b", to_csv(table))) == figures


def test_markdown_marks_best_in_bold_and_second_underlined(grid: Path) -> None:
    runs = read_runs([grid])
    lines = to_markdown(comparison(runs), runs).splitlines()
    assert "| fmlora [3] | **81.00 ± 1.00** | **85.00 ± 0.00** | – | – |" in lines
    assert "| *joint (upper bound)* [5] | 91.00 ± 1.00 | n/a | – | – |" in lines
    assert any(line.startswith("| lora [2] | <u>71.00 ± 1.00</u> |") for line in lines)


def test_write_report_writes_both_files_and_names_what_it_left_out(grid: Path, write_run: Write) -> None:
    (write_run("lora", 7, 1.0) / "result.json").write_text("{")
    folder = grid / "new" / "report"
    written = write_report(read_runs([grid]), folder)
    assert sorted(folder.iterdir()) == sorted(written)
    assert "icons-5-lora-s7" in written[0].read_text()
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert rows[0] == {
        "method": "finetune",
        "bound": "",
        "benchmark": "icons",
        "scenario": "cil",
        "n_tasks": "5",
        "metric": "acc",
        "mean": "41.00",
        "std": "1.00",
        "n_seeds": "3",
        "mark": "",
    }


def test_nothing_to_compare_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        comparison(read_runs([tmp_path]))


def test_a_folder_that_cannot_be_written_is_named(grid: Path) -> None:
    (grid / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        write_report(read_runs([grid]), grid / "file")
