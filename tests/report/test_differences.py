"""Methods against each other: in each column, and over several benchmarks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.report import make_report, read_runs
from fmlora_dist.report.contents import Report

Write = Callable[..., Path]


def report(folder: Path) -> Report:
    return make_report(read_runs([folder]))


def compared(found: Report, table: int = 0) -> dict[tuple[str, str], tuple[str, float, int]]:
    return {(d.row, d.where): (d.other, round(d.result.mean, 6), d.result.n) for d in found.differences[table]}


def test_each_method_is_paired_with_the_best_other_one_over_common_seeds(write_run: Write, tmp_path: Path) -> None:
    for seed, (one, two, three) in enumerate([(80.0, 70.0, 60.0), (82.0, 75.0, 60.0), (81.0, 74.0, 60.0)]):
        for method, acc in (("fmlora", one), ("lora", two), ("finetune", three), ("joint", 99.0)):
            write_run(method, seed, acc)
    write_run("fmlora", 3, 90.0)  # no other method has this seed
    found = compared(report(tmp_path))
    assert found["fmlora", "icons N=5 Acc"] == ("lora", 8.0, 3)
    assert found["lora", "icons N=5 Acc"] == ("fmlora", -8.0, 3)
    assert found["finetune", "icons N=5 Acc"] == ("fmlora", -21.0, 3)
    assert not any(row == "joint" for row, _ in found)


def test_variants_of_a_method_are_no_rivals_of_each_other(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        for variant, acc in (("default", 80.0), ("official", 82.0)):
            write_run("sdlora", seed, acc, recipe={"method": {"name": "sdlora", "variant": variant}})
        write_run("fmlora", seed, 75.0)
    found = {row: other for (row, where), (other, *_) in compared(report(tmp_path)).items() if where.endswith("Acc")}
    one, two = "sdlora, variant=default", "sdlora, variant=official"
    assert found == {one: "fmlora", two: "fmlora", "fmlora": two}


def test_variants_of_one_method_alone_are_compared_with_each_other(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        for rank, acc in ((4, 80.0), (8, 82.0)):
            write_run("lora", seed, acc, recipe={"method": {"name": "lora", "rank": rank}})
    found = {row: other for (row, where), (other, *_) in compared(report(tmp_path)).items() if where.endswith("Acc")}
    assert found == {"lora, rank=4": "lora, rank=8", "lora, rank=8": "lora, rank=4"}


def test_a_line_gives_difference_interval_and_both_ps(write_run: Write, tmp_path: Path) -> None:
    for seed, better in enumerate((7.0, 8.0, 9.0)):
        write_run("fmlora", seed, 70.0 + better)
        write_run("lora", seed, 70.0)
    ((_, (grid,)),) = report(tmp_path).sections()
    interval = "+5.52 to +10.48"  # 8 ± 4.3027 · 1 / √3
    assert grid.lines[0].texts == (
        "lora",
        "icons N=5 Acc",
        "fmlora",
        "-8.00",
        "-10.48 to -5.52",
        "0.2500",
        "0.2500",
        "3",
    )
    assert grid.lines[1].texts == ("fmlora", "icons N=5 Acc", "lora", "+8.00", interval, "0.2500", "0.2500", "3")
    assert [line.minor for line in grid.lines[:2]] == [True, False]


def test_seeds_are_common_only_with_the_same_class_order(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        write_run("fmlora", seed, 80.0)
        write_run("lora", seed, 70.0, order_seed=9)
    assert report(tmp_path).differences[0] == []


def test_one_seed_says_that_nothing_can_be_said(write_run: Write, tmp_path: Path) -> None:
    for seed in range(2):
        write_run("fmlora", seed, 80.0)
        write_run("lora", seed, 70.0)
    ((_, beside),) = report(tmp_path).sections()
    assert [note for grid in beside for note in grid.notes] == [
        "Fewer than 3 common seeds: nothing can be said about whether a difference is real."
    ]
    assert [line for grid in beside for line in grid.lines] == []


def test_benchmarks_are_blocks_and_task_counts_averaged(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        for method, better in (("fmlora", 1.0), ("lora", 0.0)):
            write_run(method, seed, 70.0 + better * (1 + seed))
            write_run(method, seed, 60.0 + better * (3 + seed), n_tasks=10)
            write_run(method, seed, 50.0 + better * 6, benchmark="cub200")
    (acc, aaa) = report(tmp_path).pooled
    assert (acc.measure.name, aaa.measure.name) == ("acc", "aaa")
    assert acc.blocks == ["cub200", "icons"]
    best = next(each for each in acc.differences if each.row == "fmlora")
    assert best.leads
    assert best.result.n == 6
    assert best.result.mean == pytest.approx((3.0 + 6.0) / 2)  # icons: 2, 3 and 4 over both task counts
    assert best.result.p == best.result.smallest_p == 2.0**-5
    assert acc.ranking is None


def test_scenarios_and_cuts_of_the_same_images_are_one_block(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        for method, acc in (("fmlora", 80.0), ("lora", 70.0)):
            write_run(method, seed, acc)
            write_run(method, seed, acc, benchmark="icons_mini")
            write_run(method, seed, acc, scenario="dil", n_tasks=6)
    assert report(tmp_path).pooled == []


def test_a_seed_that_lacks_a_number_of_tasks_is_no_pair(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        for method, better in (("fmlora", 1.0), ("lora", 0.0)):
            write_run(method, seed, 70.0 + better)
            if seed or method == "lora":
                write_run(method, seed, 60.0 + 9 * better, n_tasks=10)
            write_run(method, seed, 50.0 + 5 * better, benchmark="cub200")
    best = next(each for each in report(tmp_path).pooled[0].differences if each.row == "fmlora")
    assert best.result.n == 5, "three of cub200, two of icons"
    assert best.result.mean == pytest.approx(5.0), "without the seed that has but the 1.0 of five tasks"


def test_three_methods_on_two_benchmarks_are_ranked_and_incomplete_ones_named(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        for method, acc in (("fmlora", 80.0), ("sdlora", 75.0), ("lora", 70.0)):
            write_run(method, seed, acc)
            write_run(method, seed, acc, benchmark="cub200")
        write_run("finetune", seed, 40.0)
    found = report(tmp_path)
    assert found.pooled[0].ranking is not None
    assert found.pooled[0].ranking.ranks == {"fmlora": 1.0, "sdlora": 2.0, "lora": 3.0}
    assert found.pooled[0].left_out == ["finetune"]
    grids = {grid.title: grid for grid in found.overall()}
    assert grids["Ranks over all benchmarks, Acc"].lines[0].texts == ("fmlora", "1.00")
    assert "left out: finetune" in grids["Differences over all benchmarks, Acc"].notes[0]


def test_one_benchmark_is_not_pooled(grid: Path) -> None:
    assert report(grid).pooled == []
