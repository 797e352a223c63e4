"""Which tables there are, and any other grouping."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.errors import UserError
from fmlora_dist.report import Column, Grouping, Planned, make_report, read_runs, select
from fmlora_dist.report.contents import Report

Write = Callable[..., Path]


def titles(found: Report) -> list[str]:
    return [table.title for table in found.tables]


STORED = {"parameters": {"stored": [1000]}}
"""A field of runs whose costs are known, so that they have a table of costs."""


def parts(drs: bool, tokens: int, **fields: object) -> dict[str, dict[str, object]]:
    return {"method": {"name": "fmlora", "rank": 16, "drs": drs, "prompt_tokens": tokens, **fields}}


def test_benchmarks_have_the_papers_tables_and_others_one_of_their_own(write_run: Write, tmp_path: Path) -> None:
    for benchmark in ("domainnet", "cub200", "icons", "cifar100", "imagenet_r", "photos"):
        write_run("lora", 0, 70.0, benchmark=benchmark, **STORED)
    found = make_report(read_runs([tmp_path]))
    assert [title for title in titles(found) if "cost" not in title] == [
        "Table 1: ImageNet-R",
        "Table 2: CIFAR100 and CUB200",
        "Table 3: DomainNet",
        "icons",
        "photos",
    ]
    assert titles(found)[1] == "Table 5: cost, ImageNet-R"
    assert "cost, icons" in titles(found)


def test_the_parts_of_fmlora_have_a_table_and_stay_out_of_the_comparison(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    for acc, drs, tokens in ((71.0, False, 0), (72.0, True, 0), (73.0, False, 10), (74.0, True, 10)):
        write_run("fmlora", 0, acc, recipe=parts(drs, tokens))
    write_run("fmlora", 0, 70.5, recipe=parts(False, 0, task_rank=4))
    write_run("fmlora", 0, 60.0, n_tasks=10, recipe=parts(True, 10))  # alone in its column: no ablation there
    comparison, ablation = make_report(read_runs([tmp_path])).tables
    assert [(row.label, row.cells[0].text) for row in comparison.rows] == [("lora", "70.00"), ("fmlora", "74.00")]
    assert ablation.title == "parts of FM-LoRA, icons"
    assert [(row.label, row.cells[0].text) for row in ablation.rows] == [
        ("F-LoRA, rank 4", "70.50"),
        ("F-LoRA, rank 16", "71.00"),
        ("F-LoRA + DRS", "72.00"),
        ("F-LoRA + DMP, rank 16", "73.00"),
        ("F-LoRA + DRS + DMP", "74.00"),
    ]
    assert [head.group for head in ablation.heads] == ["icons N=5", "icons N=5"]


def test_an_ablation_alone_has_no_table_of_methods(write_run: Write, tmp_path: Path) -> None:
    for tokens in (0, 10):
        write_run("fmlora", 0, 70.0, recipe=parts(True, tokens), **STORED)
    found = make_report(read_runs([tmp_path]))
    assert titles(found) == ["parts of FM-LoRA, icons", "cost, icons"]
    assert [[row.label for row in table.rows] for table in found.tables] == [["F-LoRA + DRS", "F-LoRA + DRS + DMP"]] * 2


def test_variants_with_the_same_parts_are_rows_by_what_differs(write_run: Write, tmp_path: Path) -> None:
    for acc, rank in ((70.0, 16), (71.0, 4)):
        write_run("fmlora", 0, acc, recipe=parts(True, 10, rank=rank))
    (table,) = make_report(read_runs([tmp_path])).tables
    assert [row.label for row in table.rows] == ["fmlora, rank=4", "fmlora, rank=16"]


def test_cost_is_by_benchmark_and_number_of_tasks_in_readable_units(write_run: Write, tmp_path: Path) -> None:
    for seed in range(2):
        for n_tasks in (5, 10):
            write_run(
                "lora",
                seed,
                70.0,
                n_tasks=n_tasks,
                shared={"train_images": 600},
                parameters={"trainable": [4000, 2000], "stored": [5000, 7500]},
                steps=[30, 10],
                seconds={"train": 8.0, "data": 1.0},
                peak_memory_bytes=2**29,
            )
    (_, table) = make_report(read_runs([tmp_path])).tables
    assert [row.section for row in table.rows] == ["icons N=5", "icons N=10"]
    assert [(head.title, cell.text) for head, cell in zip(table.heads, table.rows[0].cells, strict=True)] == [
        ("trained (k)", "2.0"),
        ("stored (k)", "7.5"),
        ("growth (k/task)", "2.50"),
        ("step (ms)", "200.0 ± 0.0"),
        ("images/s", "200.0 ± 0.0"),
        ("peak (MiB)", "512 ± 0"),
    ]


def test_costs_that_seeds_differ_in_have_a_spread(write_run: Write, tmp_path: Path) -> None:
    for seed, stored in enumerate((10_000, 12_000)):
        write_run("inflora", seed, 70.0, parameters={"stored": [stored]})
    (_, table) = make_report(read_runs([tmp_path])).tables
    assert [cell.text for cell in table.rows[0].cells] == ["11.0 ± 1.4"]


def test_equal_figures_have_equal_marks_and_times_none(write_run: Write, tmp_path: Path) -> None:
    for method, acc, seconds in (("lora", 70.001, 8.0), ("sdlora", 70.004, 4.0), ("fmlora", 60.0, 2.0)):
        write_run(method, 0, acc, shared={"train_images": 600}, steps=[10] * 5, seconds={"train": seconds})
    accuracies, costs = make_report(read_runs([tmp_path])).tables
    assert [row.cells[0].mark for row in accuracies.rows] == ["best", "best", "second"]
    assert len(costs.rows) == 3
    assert {cell.mark for row in costs.rows for cell in row.cells} == {""}


def test_less_is_better_in_costs(write_run: Write, tmp_path: Path) -> None:
    for method, stored in (("lora", 10), ("sdlora", 30), ("fmlora", 20)):
        write_run(method, 0, 70.0, parameters={"stored": [stored * 1000]})
    (_, table) = make_report(read_runs([tmp_path])).tables
    assert {row.label: row.cells[0].mark for row in table.rows} == {"lora": "best", "fmlora": "second", "sdlora": ""}


def test_where_accuracies_come_from_has_a_table_in_which_movement_is_neither_good_nor_bad(
    write_run: Write, tmp_path: Path
) -> None:
    for method, new, old in (("lora", 90.0, 40.0), ("fmlora", 80.0, 60.0), ("frozen", 70.0, 65.0)):
        metrics = {"acc": (new + old) / 2, "aaa": 50.0, "forgetting": new - old, "bwt": old - new}
        matrix = [[new], [old, new]]
        write_run(method, 0, 0.0, n_tasks=2, metrics=metrics, accuracy_matrix=matrix, drift=[0.0, 0.1 * new])
    (_, table) = make_report(read_runs([tmp_path])).tables
    assert (table.title, table.rows[0].section) == ("learning and forgetting, icons", "icons N=2")
    assert [head.title for head in table.heads] == ["Learning", "Forgetting", "Drift"]
    found = {row.label: [(cell.text, cell.mark) for cell in row.cells] for row in table.rows}
    assert found == {
        "lora": [("90.00", "best"), ("50.00", "second"), ("9.000", "")],
        "fmlora": [("80.00", "second"), ("20.00", "best"), ("8.000", "")],
        "frozen": [("70.00", ""), ("5.00", ""), ("7.000", "")],
    }


def test_any_grouping_has_rows_columns_and_metrics_by_name(write_run: Write, tmp_path: Path) -> None:
    for rank in (4, 16):
        for lr in (0.1, 0.01):
            recipe = {"method": {"name": "lora", "rank": rank}, "train": {"lr": lr}}
            write_run("lora", 0, 70.0 + rank + lr, recipe=recipe)
    grouping = Grouping(rows=["method.rank"], columns=["train.lr"], metrics=["acc"])
    (table,) = make_report(read_runs([tmp_path]), grouping).tables
    assert [head.title for head in table.heads] == ["train.lr=0.01 Acc", "train.lr=0.1 Acc"]
    assert [(row.label, [cell.text for cell in row.cells]) for row in table.rows] == [
        ("rank=4", ["74.01", "74.10"]),
        ("rank=16", ["86.01", "86.10"]),
    ]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["acc", "forgetting"], "Accuracies in %, one seed"),
        (["drift"], "Drift and weight change as fractions, one seed"),
        (["stored"], "Costs as said, one seed"),
        (["acc", "drift", "stored"], "Accuracies in %, drift and weight change as fractions, costs as said, one seed"),
        (["bwt"], "No finished run has these figures."),
    ],
)
def test_a_table_of_chosen_metrics_says_their_units(
    write_run: Write, tmp_path: Path, metrics: list[str], said: str
) -> None:
    write_run("lora", 0, 65.0, n_tasks=2, accuracy_matrix=[[90.0], [40.0, 90.0]], drift=[0.0, 0.1], **STORED)
    (table,) = make_report(read_runs([tmp_path]), Grouping(metrics=metrics)).tables
    assert table.seeds.startswith(said)


def test_a_grouping_never_averages_methods_or_recipes(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("fmlora", 0, 80.0)
    (table,) = make_report(read_runs([tmp_path]), Grouping(rows=["epochs"])).tables
    assert [(row.label, row.cells[0].text) for row in table.rows] == [
        ("epochs=3, method=fmlora", "80.00"),
        ("epochs=3, method=lora", "70.00"),
    ]


def test_where_keeps_the_runs_that_fit(grid: Path) -> None:
    runs = select(read_runs([grid]), ["method=lora,fmlora", "n_tasks=5"])
    assert {(run.method, run.column.n_tasks) for run in runs.runs} == {("lora", 5), ("fmlora", 5)}


@pytest.mark.parametrize(
    ("conditions", "grouping", "message"),
    [
        (["method"], {}, "--where: found 'method', expected FIELD=VALUE"),
        (["metod=lora"], {}, "--where: no run has a field 'metod': did you mean 'method'?"),
        (["method=sdlora"], {}, "--where: no run has method=sdlora; there are: finetune, fmlora, frozen, joint, lora"),
        ([], {"rows": ["method.ranc"]}, "--rows: no run has a field 'method.ranc': did you mean 'method.rank'?"),
        ([], {"columns": ["n_task"]}, "--columns: no run has a field 'n_task': did you mean 'n_tasks'?"),
        ([], {"metrics": ["ac"]}, "--metrics: unknown 'ac': did you mean 'acc'?"),
    ],
)
def test_mistakes_name_the_option_and_the_nearest(
    grid: Path, conditions: list[str], grouping: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_report(select(read_runs([grid]), conditions), Grouping(**grouping))
    assert message in str(caught.value)


def test_an_unfinished_grid_is_marked_and_its_cells_are_there_empty(write_run: Write, tmp_path: Path) -> None:
    done = write_run("lora", 0, 70.0)
    plan = [Planned(done.name, Column("icons", "cil", 5), "lora"), Planned("x", Column("icons", "cil", 10), "lora")]
    plan += [Planned(f"f{seed}", Column("icons", "cil", 5), "fmlora") for seed in range(2)]
    found = make_report(read_runs([tmp_path], plan))
    assert found.progress == (
        "Unfinished: 1 of 4 planned runs are complete; missing: fmlora on icons N=5 (2 of 2), lora on icons N=10 (1 of "
        "1)."
    )
    assert {row.label: [cell.text for cell in row.cells] for row in found.tables[0].rows} == {
        "lora": ["70.00", "50.00", "–", "–"],
        "fmlora": ["–", "–", "–", "–"],
    }
    assert make_report(read_runs([tmp_path], plan[:1])).progress == ""
