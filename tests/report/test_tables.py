"""The model of a table: rows, columns, marks and notes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.errors import UserError
from fmlora_dist.report import make_report, read_runs
from fmlora_dist.report.tables import Table

Write = Callable[..., Path]


def comparison(folder: Path) -> Table:
    return make_report(read_runs([folder])).tables[0]


def cells(table: Table) -> dict[str, list[tuple[str, str]]]:
    return {row.label: [(cell.text, cell.mark) for cell in row.cells] for row in table.rows}


def test_rows_are_methods_with_the_bounds_last_and_columns_acc_and_aaa(grid: Path) -> None:
    table = comparison(grid)
    assert [row.name for row in table.rows] == [
        "finetune",
        "lora",
        "fmlora",
        "frozen (lower bound)",
        "joint (upper bound)",
    ]
    assert [head.title for head in table.heads] == [
        "icons N=5 Acc",
        "icons N=5 AAA",
        "icons N=10 Acc",
        "icons N=10 AAA",
    ]


def test_columns_are_in_order_of_benchmark_and_number_of_tasks(write_run: Write, tmp_path: Path) -> None:
    for n_tasks in (10, 5, 20):
        write_run("lora", 0, 70.0, n_tasks=n_tasks)
    assert [head.group for head in comparison(tmp_path).heads[::2]] == [f"icons N={n}" for n in (5, 10, 20)]


def test_best_and_second_are_marked_and_bounds_do_not_compete(grid: Path) -> None:
    found = cells(comparison(grid))
    assert found["fmlora"][0] == ("81.00 ± 1.00", "best")
    assert found["lora"][0] == ("71.00 ± 1.00", "second")
    assert found["lora"][2] == ("61.00 ± 1.00", "best")
    assert found["finetune"][0] == ("41.00 ± 1.00", "")
    assert {mark for label in ("frozen", "joint") for _, mark in found[label]} == {""}


def test_cells_without_runs_and_without_the_metric_are_visibly_empty(grid: Path) -> None:
    found = cells(comparison(grid))
    assert [text for text, _ in found["fmlora"][2:]] == ["–", "–"]
    assert [text for text, _ in found["joint"]] == ["91.00 ± 1.00", "n/a", "–", "–"]


def test_the_number_of_seeds_stands_in_the_cells_only_where_it_differs(grid: Path, write_run: Write) -> None:
    assert not any("(n=" in text for row in cells(comparison(grid)).values() for text, _ in row)
    assert comparison(grid).seeds.endswith("over 3 seeds.")
    write_run("sdlora", 0, 75.0)
    found = cells(comparison(grid))
    assert found["sdlora"][0] == ("75.00 (n=1)", "second")
    assert found["lora"][0] == ("71.00 ± 1.00 (n=3)", "")


def test_one_seed_invents_no_std(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    table = comparison(tmp_path)
    assert cells(table) == {"lora": [("70.00", ""), ("50.00", "")]}
    assert "one seed" in table.seeds


def test_equal_methods_are_both_the_best(write_run: Write, tmp_path: Path) -> None:
    for method, acc in (("lora", 70.0), ("fmlora", 70.0), ("sdlora", 60.0)):
        write_run(method, 0, acc)
    found = cells(comparison(tmp_path))
    assert [found[name][0][1] for name in ("lora", "fmlora", "sdlora")] == ["best", "best", "second"]


def test_recipes_of_one_method_are_rows_of_their_own_by_size(write_run: Write, tmp_path: Path) -> None:
    for seed, rank in enumerate((16, 4)):
        write_run("lora", seed, 70.0 + seed, recipe={"method": {"name": "lora", "rank": rank}})
    found = cells(comparison(tmp_path))
    assert [(label, texts[0][0]) for label, texts in found.items()] == [
        ("lora, rank=4", "71.00"),
        ("lora, rank=16", "70.00"),
    ]


def test_a_cell_knows_the_runs_behind_it(write_run: Write, tmp_path: Path) -> None:
    folders = [write_run("lora", seed, 70.0) for seed in range(2)]
    write_run("lora", 0, 70.0, n_tasks=10)
    (row,) = comparison(tmp_path).rows
    assert [run.folder for run in row.cells[0].runs] == folders
    assert len(row.runs) == 3
    assert row.cells[0].runs[0].load()["metrics"]["acc"] == 70.0


def test_protocol_and_recipes_stand_below(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("lora", 0, 60.0, n_tasks=10, recipe={"epochs": 9})
    write_run("fmlora", 0, 60.0, recipe={"method": {"name": "fmlora", "candidates": [2, 4], "drs": False}})
    assert comparison(tmp_path).notes()[1:] == [
        "Shared protocol: benchmark icons, backbone tiny, split 0123456789ab",
        "icons N=5: n tasks 5",
        "icons N=10: n tasks 10",
        "All rows: train.lr 0.001",
        "[1] lora: icons N=5: rank 16, epochs 3; icons N=10: rank 16, epochs 9",
        "[2] fmlora: candidates 2/4, drs false, epochs 3",
    ]


def test_nothing_to_compare_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        comparison(tmp_path)
