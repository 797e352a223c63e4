"""Every form of a report holds the same numbers and marks."""

import csv
import html
import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fmlora_dist.errors import UserError
from fmlora_dist.report import make_report, print_report, read_runs, write_report
from fmlora_dist.report.aggregate import Column, Run, Runs
from fmlora_dist.report.contents import Report
from fmlora_dist.report.latex import to_latex
from fmlora_dist.report.markdown import to_markdown
from fmlora_dist.report.plain import to_csv, to_data

Write = Callable[..., Path]
METHODS = ["finetune", "lora", "sdlora", "fmlora", "joint", "a_new|one*"]
Cells = list[tuple[str, str]]


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Some methods on some benchmarks, task counts and seeds, with any accuracies; often with holes."""
    places = st.tuples(
        st.sampled_from(METHODS),
        st.sampled_from(["imagenet_r", "cifar100", "cub200", "icons"]),
        st.sampled_from([5, 10]),
        st.integers(0, 3),
    )
    runs = []
    for method, benchmark, n_tasks, seed in draw(st.lists(places, min_size=1, max_size=24, unique=True)):
        accuracy = st.floats(0, 100)
        figures = {name: draw(accuracy) for name in ("acc", "acc_samples", "aaa_samples")}
        runs.append(
            Run(
                folder=Path(f"{benchmark}-{n_tasks}-{method}-{seed}"),
                column=Column(benchmark, "cil", n_tasks),
                method=method,
                seed=(seed, seed),
                metrics=figures | {"aaa": None if method == "joint" else draw(accuracy)},
                cost={"stored": draw(st.none() | st.integers(1, 10**9)), "step_seconds": draw(st.floats(1e-4, 10))},
                shared={"backbone": "vit_base_patch16_224.augreg2_in21k_ft_in1k", "n_tasks": n_tasks},
                shared_hash=f"{benchmark}{n_tasks}",
                recipe={"epochs": 3},
                recipe_hash="same",
            )
        )
    return make_report(Runs(runs))


def expected(report: Report) -> list[Cells]:
    return [[(cell.text, cell.mark) for row in table.rows for cell in row.cells] for table in report.tables]


def figures(text: str) -> list[str]:
    """The numbers of a cell."""
    return re.findall(r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?", text)


def from_markdown(text: str) -> list[Cells]:
    found: list[Cells] = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        table = part.split("\n\n")[1]
        cells = [re.split(r"(?<!\\) \| ", line.strip("| "))[1:] for line in table.splitlines()[2:]]
        unmarked = {"**": "best", "<u": "second"}
        flat = [cell for line in cells if any(cell.strip() for cell in line) for cell in line]
        found.append([(re.sub(r"\*\*|</?u>", "", cell), unmarked.get(cell[:2], "")) for cell in flat])
    return found


def from_latex(text: str) -> list[Cells]:
    found: list[Cells] = []
    for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.split(r"\midrule", 1)[1].splitlines() if " & " in line]
        cells = [cell for line in lines for cell in line.removesuffix(r" \\").split(" & ")[1:]]
        marks = {r"\textbf": "best", r"\underline": "second"}
        parsed = []
        for cell in cells:
            command = re.match(r"(\\textbf|\\underline)\{(.*)\}$", cell)
            plain = (
                (command[2] if command else cell)
                .replace(r"$\pm$", "±")
                .replace(r"\slash{}", "/")
                .replace("--", "–")
                .replace("$-$", "-")
            )
            parsed.append((plain, marks[command[1]] if command else ""))
        found.append(parsed)
    return found


def from_csv(text: str) -> list[list[tuple[list[str], str]]]:
    """(mean and std, mark) of each cell, by table."""
    tables: dict[str, list[tuple[list[str], str]]] = {}
    for line in csv.DictReader(StringIO(text)):
        if not line["against"] and line["table"] != "all":
            pair = [value for value in (line["mean"], line["std"]) if value]
            tables.setdefault(line["table"], []).append((pair, line["mark"]))
    return [*tables.values()]


@given(reports())
def test_markdown_latex_csv_and_the_pages_data_hold_the_same_cells(report: Report) -> None:
    cells = expected(report)
    assert from_markdown(to_markdown(report)) == cells
    assert from_latex(to_latex(report)) == cells
    plain = [[(figures(text.split(" (n=")[0]), mark) for text, mark in table] for table in cells]
    assert from_csv(to_csv(report)) == plain
    data = json.loads(json.dumps(to_data(report)))
    assert [[(c["text"], c["mark"]) for row in t["rows"] for c in row["cells"]] for t in data["tables"]] == cells


@given(reports())
def test_what_stands_beside_is_the_same_in_all_forms_too(report: Report) -> None:
    grids = [grid for _, beside in report.sections() for grid in beside] + report.overall()
    lines = [line.texts for grid in grids for line in grid.lines]
    markdown, latex = to_markdown(report), to_latex(report)
    beside = [part for part in markdown.split("\n\n") if re.match(r"\| method \| (column|average)", part)]
    in_markdown = [re.split(r"(?<!\\) \| ", line[2:-2]) for part in beside for line in part.splitlines()[2:]]
    assert [[_unescaped(text) for text in line] for line in in_markdown] == [[*line] for line in lines]
    parts = re.findall(r"\\endhead\n(.*?)\\bottomrule", latex, re.DOTALL)
    in_latex = [line.removesuffix(r" \\").split(" & ") for part in parts for line in part.splitlines()]
    assert [figures(_bare(" ".join(line[3:]))) for line in in_latex if len(line) > 2] == [
        figures(" ".join(line[3:])) for line in lines if len(line) > 2
    ]
    against = [line["difference"] for line in csv.DictReader(StringIO(to_csv(report))) if line["against"]]
    compared = [each for found in report.differences for each in found]
    compared += [each for pooled in report.pooled for each in pooled.differences]
    published = [line for table in report.tables for row in table.rows for cell in row.cells for line in cell.published]
    assert sorted(against) == sorted(
        [each.result.texts[0] for each in compared] + [line.difference_text for line in published]
    )


def _unescaped(text: str) -> str:
    plain = re.sub(r"\\([|*])", r"\1", html.unescape(text))
    return plain[1:-1] if plain.startswith("*") and plain.endswith("*") and len(plain) > 1 else plain


def _bare(text: str) -> str:
    return text.replace("$-$", "-").replace(r"\color{gray}", "")


def test_the_terminal_holds_the_same_numbers(grid: Path, tmp_path: Path) -> None:
    report = make_report(read_runs([grid]))
    console = Console(width=240, record=True, file=StringIO())
    print_report(report, console)
    shown = console.export_text()
    table = shown[: shown.index("Accuracies in")]
    numbers = [number for text, _ in expected(report)[0] for number in re.findall(r"\d+\.\d\d", text)]
    assert re.findall(r"\d+\.\d\d\b", table) == numbers


@pytest.mark.parametrize("width", [50, 60, 100])
def test_a_narrow_terminal_has_the_columns_below_each_other_and_no_figure_is_broken(grid: Path, width: int) -> None:
    report = make_report(read_runs([grid]))
    console = Console(width=width, record=True, file=StringIO())
    print_report(report, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    lines = [re.split(r"\s*│\s*", line) for line in shown[: shown.index("Accuracies in")].splitlines() if "│" in line]
    cells = [cell for line in lines for cell in line[2:-1]]
    table = report.tables[0]
    assert sorted(cells) == sorted(cell.text for row in table.rows for cell in row.cells)
    parts = shown[: shown.index("Accuracies in")].count("┏")
    assert parts == {50: 4, 60: 2, 100: 1}[width], "Acc and AAA of one column stay together where they fit"


def test_markdown_marks_best_in_bold_and_second_underlined(grid: Path) -> None:
    lines = to_markdown(make_report(read_runs([grid]))).splitlines()
    assert "| fmlora [3] | **81.00 ± 1.00** | **85.00 ± 0.00** | – | – |" in lines
    assert "| *joint (upper bound)* [5] | 91.00 ± 1.00 | n/a | – | – |" in lines
    assert any(line.startswith("| lora [2] | <u>71.00 ± 1.00</u> |") for line in lines)


def test_every_form_is_written_and_names_what_it_left_out(grid: Path, write_run: Write) -> None:
    (write_run("lora", 7, 1.0) / "result.json").write_text("{")
    folder = grid / "new" / "report"
    written = write_report(make_report(read_runs([grid])), folder)
    assert [path.name for path in written][:3] == ["tables.md", "tables.tex", "tables.csv"]
    assert sorted(folder.iterdir()) == sorted(written)
    assert all("icons-5-lora-s7" in path.read_text() for path in written[:2])
    first = next(csv.DictReader(written[2].read_text().splitlines()))
    assert {name: value for name, value in first.items() if value} == {
        "table": "icons",
        "row": "finetune",
        "column": "icons N=5",
        "metric": "acc",
        "mean": "41.00",
        "std": "1.00",
        "n_seeds": "3",
    }


def test_an_unfinished_grid_says_so_in_every_form(write_run: Write, tmp_path: Path) -> None:
    from fmlora_dist.report import Planned

    write_run("lora", 0, 70.0)
    report = make_report(read_runs([tmp_path], [Planned("x", Column("icons", "cil", 5), "fmlora")]))
    assert report.progress.startswith("Unfinished: 0 of 1 planned runs are complete")
    assert report.progress in to_markdown(report)
    assert report.progress in to_latex(report)
    assert to_data(report)["progress"] == report.progress


def test_a_folder_that_cannot_be_written_is_named(grid: Path) -> None:
    (grid / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*--out"):
        write_report(make_report(read_runs([grid])), grid / "file")
