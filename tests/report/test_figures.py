"""Figures: what is drawn, that it shows the runs' own numbers, and that its files are the same every time."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from fmlora_dist.errors import UserError
from fmlora_dist.report import make_report, read_profile, read_runs, write_report
from fmlora_dist.report.drawing import Drawing, drawn_alike, panels, styles, task_ticks
from fmlora_dist.report.figures import draw
from fmlora_dist.report.layouts import ORDER, Grouping
from fmlora_dist.report.tables import BOUNDS
from fmlora_dist.report.traces import read_rows
from result_files import write_whole

Write = Callable[..., Path]
PROFILE = [{"method": "lora", "task": task, "seconds_per_step": 0.02 * task} for task in (5, 1)]


def drawn(folder: Path, profile: list[dict[str, Any]] | None = None) -> dict[str, Drawing]:
    report = make_report(read_runs([folder]))
    return {drawing.name: drawing for drawing in draw(read_rows(report), report.pooled, profile or [])}


@pytest.fixture(scope="module")
def rich(rich_grid: Path) -> dict[str, Drawing]:
    return drawn(rich_grid, PROFILE)


def results(folder: Path, **wanted: Any) -> list[dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*/result.json"))]
    return [result for result in found if all(result[name] == value for name, value in wanted.items())]


def panel(drawing: Drawing, title: str) -> Axes:
    (axes,) = [axes for axes in drawing.figure.axes if axes.get_title(loc="left") == title]
    return axes


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_every_figure_that_there_is_data_for_is_drawn(rich: dict[str, Drawing]) -> None:
    icons = ("curves", "acc-by-n", "prompts", "ranks", "drift", "drift-prompts", "weights", "stored", "step-time")
    one = ("curves", "drift", "weights", "stored", "step-time", "matrix-3")
    wanted = {f"icons-{name}" for name in (*icons, "matrix-3", "matrix-5")}
    assert {*rich} == wanted | {f"cifar100-{name}" for name in one} | {"step-time"}


def test_a_figure_without_data_is_not_drawn(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    assert drawn(tmp_path) == {}
    write_run("lora", 0, 60.0, n_tasks=10)
    assert [*drawn(tmp_path)] == ["icons-acc-by-n"]
    write_run("inflora", 0, 60.0, n_tasks=10, drift=[0.0], ranks=[8, 8], complexity=[1.0], accuracy_matrix=[[50.0]])
    assert [*drawn(tmp_path)] == ["icons-curves", "icons-acc-by-n"]


def test_without_a_run_of_no_prompts_drift_is_not_split_by_them(tmp_path: Path) -> None:
    for m in (1, 10):
        write_whole(tmp_path, "fmlora", 0, 60, benchmark="icons", n_tasks=5, method={"prompt_tokens": m})
    assert "icons-prompts" in drawn(tmp_path)
    assert "icons-drift-prompts" not in drawn(tmp_path)


def test_domain_incremental_runs_have_figures_of_their_own(tmp_path: Path) -> None:
    for scenario in ("cil", "dil"):
        write_whole(tmp_path, "lora", 0, 60, benchmark="icons", n_tasks=5, scenario=scenario)
    found = drawn(tmp_path)
    assert {"icons-curves", "icons-dil-curves"} <= {*found}
    assert found["icons-dil-curves"].block == "icons (dil)"


def test_a_benchmarks_name_leads_no_file_out_of_its_folder(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 50.0, benchmark="icons", accuracy_matrix=[[50.0], [40.0, 50.0]], n_tasks=2)
    file = next(tmp_path.glob("runs/*/result.json"))
    file.write_text(file.read_text().replace('"icons"', '"../../a b/&x"'))
    assert {*drawn(tmp_path)} == {"_a_b_x-curves", "_a_b_x-matrix-2"}


def test_methods_over_three_benchmarks_have_a_critical_difference_diagram(write_run: Write, tmp_path: Path) -> None:
    for benchmark in ("a", "b", "c"):
        for method, acc in (("lora", 50.0), ("inflora", 60.0), ("fmlora", 70.0)):
            write_run(method, 0, acc, acc, benchmark=benchmark)
    diagram = drawn(tmp_path)["ranks-acc"].figure.axes[0]
    x = {text.get_text(): position for text in diagram.texts for position in [text.get_position()[0]]}
    assert {"lora", "inflora", "fmlora", "critical difference"} <= {*x}
    assert [line[0] for line in (list(each.get_xdata()) for each in diagram.lines) if len(line) == 3] == [1, 2, 3]


def test_a_run_that_is_gone_when_figures_are_drawn_is_left_out(tmp_path: Path) -> None:
    folders = [write_whole(tmp_path, "lora", seed, 60, benchmark="icons", n_tasks=5) for seed in range(2)]
    report = make_report(read_runs([tmp_path]))
    (folders[0] / "result.json").unlink()
    ((column, traces),) = read_rows(report)["lora"].items()
    assert column.n_tasks == 5
    assert [trace.run.folder for trace in traces] == [folders[1]]


# -- that it shows the runs' numbers ----------------------------------------------------------------------------------


def test_curves_are_means_over_seeds_with_a_band_of_one_standard_deviation(
    rich: dict[str, Drawing], rich_grid: Path
) -> None:
    axes = panel(rich["icons-curves"], "icons, N = 5")
    runs = results(rich_grid, benchmark="icons", n_tasks=5, method="lora")
    values = np.array([[sum(row) / len(row) for row in run["accuracy_matrix"]] for run in runs])
    assert line(axes, "lora") == ([1, 2, 3, 4, 5], pytest.approx(values.mean(0)))
    (low, high) = values.mean(0) - values.std(0, ddof=1), values.mean(0) + values.std(0, ddof=1)
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    assert any(np.allclose(sorted({*band[:, 1]}), sorted({*low, *high})) for band in bands if len({*band[:, 1]}) == 10)


def test_joint_training_is_a_point_after_the_last_task(rich: dict[str, Drawing], rich_grid: Path) -> None:
    runs = results(rich_grid, benchmark="icons", n_tasks=5, method="joint")
    mean = np.mean([run["metrics"]["acc"] for run in runs])
    assert line(panel(rich["icons-curves"], "icons, N = 5"), "joint") == ([5], [pytest.approx(mean)])


def test_a_column_of_a_users_choice_is_a_line_of_its_own(tmp_path: Path) -> None:
    for rank, level in ((4, 60.0), (8, 80.0)):
        for seed in range(2):
            write_whole(tmp_path, "lora", seed, level, benchmark="icons", n_tasks=5, method={"rank": rank})
    report = make_report(read_runs([tmp_path]), Grouping(columns=["method.rank"]))
    drawings = {drawing.name: drawing for drawing in draw(read_rows(report), report.pooled, [])}
    (axes,) = drawings["icons-curves"].figure.axes
    labels = [str(each.get_label()) for each in axes.lines if not str(each.get_label()).startswith("_")]
    assert labels == ["lora, rank=4", "lora, rank=8"]


def test_task_counts_as_columns_are_points_of_one_line(tmp_path: Path) -> None:
    for tasks, level in ((5, 60.0), (10, 50.0)):
        for method in ("lora", "fmlora"):
            write_whole(tmp_path, method, 0, level, benchmark="icons", n_tasks=tasks)
    report = make_report(read_runs([tmp_path]), Grouping(rows=["method"], columns=["n_tasks"]))
    assert {label: len(columns) for label, columns in read_rows(report).items()} == {"lora": 2, "fmlora": 2}


def test_prompts_are_swept_within_one_shared_protocol(tmp_path: Path) -> None:
    for backbone, level in (("tiny", 80.0), ("other", 40.0)):
        for m in (0, 4):
            method = {"prompt_tokens": m, "drs_price": level}
            whole = write_whole(tmp_path, "fmlora", 0, level, benchmark="icons", n_tasks=5, method=method)
            result = json.loads((whole / "result.json").read_text())
            recipe = result["protocol"]["recipe"]
            recipe["method"]["drs_price"] = 0.1
            result["protocol"] |= {"shared_hash": backbone, "recipe_hash": json.dumps(recipe)}
            (whole / "result.json").write_text(json.dumps(result))
    report = make_report(read_runs([tmp_path]), allow_mixed=True)
    drawings = {drawing.name: drawing for drawing in draw(read_rows(report), report.pooled, [])}
    (axes,) = drawings["icons-prompts"].figure.axes
    assert len([each for each in axes.lines if not str(each.get_label()).startswith("_")]) == 2


def test_acc_against_n_and_against_m(rich: dict[str, Drawing], rich_grid: Path) -> None:
    def acc(**wanted: Any) -> float:
        return float(np.mean([run["metrics"]["acc"] for run in results(rich_grid, benchmark="icons", **wanted)]))

    (by_n,) = rich["icons-acc-by-n"].figure.axes
    assert line(by_n, "lora") == ([3, 5], [pytest.approx(acc(method="lora", n_tasks=n)) for n in (3, 5)])
    (by_m,) = rich["icons-prompts"].figure.axes
    runs = results(rich_grid, method="fmlora", n_tasks=5)
    means = [
        np.mean([run["metrics"]["acc"] for run in runs if run["config"]["method"]["prompt_tokens"] == m])
        for m in (0, 10)
    ]
    assert line(by_m, "N = 5") == ([0, 10], pytest.approx(means))
    assert [text.get_text() for text in by_m.get_xticklabels()] == ["0", "10"]


def test_ranks_complexity_and_drift_by_task(rich: dict[str, Drawing], rich_grid: Path) -> None:
    runs = results(rich_grid, benchmark="icons", n_tasks=5, method="fmlora")
    without = [run for run in runs if run["config"]["method"]["prompt_tokens"] == 0]
    label = "F-LoRA + DRS"
    _, above, _, below = rich["icons-ranks"].figure.axes
    assert line(above, label) == ([1, 2, 3, 4, 5], [16] * 5)
    complexity = np.mean([run["complexity"][1:] for run in without], axis=0)
    assert line(below, label) == ([2, 3, 4, 5], pytest.approx(complexity))
    drift = np.mean([run["drift"] for run in without], axis=0)
    assert line(panel(rich["icons-drift-prompts"], "icons, N = 5"), "m = 0")[1] == pytest.approx(drift)
    assert line(panel(rich["icons-drift"], "icons, N = 5"), label)[1] == pytest.approx(drift)
    change = np.mean([run["weight_change"] for run in without], axis=0)
    assert line(panel(rich["icons-weights"], "icons, N = 5"), label)[1] == pytest.approx(change)


def test_the_matrix_is_the_mean_over_seeds_and_empty_above_its_diagonal(
    rich: dict[str, Drawing], rich_grid: Path
) -> None:
    axes = panel(rich["icons-matrix-5"], "inflora")
    shown = axes.images[0].get_array()
    runs = results(rich_grid, benchmark="icons", n_tasks=5, method="inflora")
    for row in range(5):
        for column in range(5):
            if column > row:
                assert shown.mask[row, column]
            else:
                mean = np.mean([run["accuracy_matrix"][row][column] for run in runs])
                assert shown[row, column] == pytest.approx(mean)
    assert len(axes.texts) == 15
    assert "joint" not in [axes.get_title(loc="left") for axes in rich["icons-matrix-5"].figure.axes]


def test_stored_parameters_and_step_times(rich: dict[str, Drawing], rich_grid: Path) -> None:
    runs = results(rich_grid, benchmark="icons", n_tasks=5, method="lora")
    (x,), (y,) = line(panel(rich["icons-stored"], "icons, N = 5"), "lora")
    assert x == runs[0]["parameters"]["stored"][-1]
    assert y == pytest.approx(np.mean([run["metrics"]["acc"] for run in runs]))
    times = np.mean([np.array(run["train_seconds"]) / run["steps"] for run in runs], axis=0)
    assert line(panel(rich["icons-step-time"], "icons, N = 5"), "lora")[1] == pytest.approx(1000 * times)
    assert line(rich["step-time"].figure.axes[0], "lora") == ([1, 5], pytest.approx([20, 100]))


def test_a_seed_that_was_run_twice_counts_once(write_run: Write, tmp_path: Path) -> None:
    for seed, acc in ((0, 10.0), (0, 30.0), (1, 60.0)):
        write_run("lora", seed, acc, accuracy_matrix=[[acc], [acc, acc]], n_tasks=2)
    assert line(drawn(tmp_path)["icons-curves"].figure.axes[0], "lora")[1] == pytest.approx([40, 40])


# -- how it looks -----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=5), unique=True, max_size=60))
def test_no_two_series_look_the_same_in_black_and_white(names: list[str]) -> None:
    labels = [*dict.fromkeys([*names, *ORDER, *BOUNDS])]
    looks = styles(labels)
    assert [*looks] == labels
    assert len({(look.marker, str(look.line), look.colour) for look in looks.values()}) == len(labels)
    known = [looks[name] for name in (*ORDER, *BOUNDS)]
    assert len({(look.marker, str(look.line)) for look in known}) == len(known)
    assert styles(["fmlora"])["fmlora"] == looks["fmlora"]


def test_variants_of_a_method_differ_from_all_others_in_black_and_white() -> None:
    variants = ["sdlora, variant=default", "sdlora, variant=official", "lora, rank=4", "lora, rank=8"]
    labels = [*variants, *(name for name in (*ORDER, *BOUNDS) if name not in ("sdlora", "lora"))]
    looks = styles(labels)
    assert len({(look.marker, str(look.line)) for look in looks.values()}) == len(labels)
    assert looks["sdlora, variant=default"] == styles(["sdlora"])["sdlora"], "the first has the method's own"
    assert styles(["sdlora", *variants])["sdlora"] == styles(["sdlora"])["sdlora"]


@pytest.mark.parametrize("last", [1, 2, 5, 7, 10, 20, 100, 345])
def test_ticks_are_few_and_begin_at_the_first_task(last: int) -> None:
    ticks = task_ticks(last)
    assert ticks[0] == 1
    assert len(ticks) <= 8
    assert ticks[-1] <= last < ticks[-1] + max(2, last // 3)


def test_nothing_is_cut_off_and_no_label_lies_on_another(rich: dict[str, Drawing]) -> None:
    for name, drawing in rich.items():
        figure, (width, height) = drawing.figure, drawing.figure.get_size_inches()
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02, name
        legends = [legend.get_window_extent() for legend in figure.legends]
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
        assert not any(legend.shrunk(0.99, 0.99).overlaps(box) for legend in legends for box in boxes), name
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
                order = sorted(labels, key=lambda label: (label.x0, label.y0))
                assert not any(one.overlaps(two) for one, two in pairwise(order)), name


@pytest.mark.parametrize("across", [3, 4])
def test_long_titles_are_wrapped(across: int) -> None:
    with drawn_alike():
        figure, columns = panels(["F-LoRA + DRS + DMP, prompt_tokens=10, rank=16"] * across, "accuracy", across=across)
        Drawing(name="x", title="x", caption="", block="", tasks=(), figure=figure)
        boxes = [axes.get_tightbbox() for [axes] in columns]
    assert not any(one.overlaps(two) for one, two in pairwise(boxes))


def test_names_are_text_and_no_formula(write_run: Write, tmp_path: Path) -> None:
    write_run(r"a$\frac{1$ <b>&", 0, 50.0, accuracy_matrix=[[50.0], [40.0, 50.0]], n_tasks=2)
    svg = drawn(tmp_path)["icons-curves"].svg
    assert r"a$\frac{1$ &lt;b&gt;&amp;" in svg
    assert "<b>" not in svg


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_are_the_same_in_another_process_and_under_another_look(tmp_path: Path) -> None:
    write_whole(tmp_path / "runs", "fmlora", 0, 60, benchmark="icons", n_tasks=5)
    code = (
        "import sys, matplotlib; matplotlib.rcParams.update({'font.size': 30, 'svg.hashsalt': None});"
        "from pathlib import Path; from fmlora_dist.report import *;"
        "write_report(make_report(read_runs([sys.argv[1]])), Path(sys.argv[2]));"
        "print('matplotlib.pyplot' in sys.modules, matplotlib.rcParams['font.size'])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "runs"), str(tmp_path / "a")]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout
    assert said.split() == ["False", "30.0"]
    before = dict(matplotlib.rcParams)
    files = write_report(make_report(read_runs([tmp_path / "runs"])), tmp_path / "b")
    assert dict(matplotlib.rcParams) == before
    assert {file.suffix for file in files} == {".md", ".tex", ".csv", ".svg", ".pdf", ".html"}
    assert [file.name for file in files if file.read_bytes() != (tmp_path / "a" / file.name).read_bytes()] == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": []}', '{"rows": [{"method": "lora", "task": 1}]}'])
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(UserError, match="profile"):
        read_profile(file)
    with pytest.raises(UserError, match="cannot read"):
        read_profile(tmp_path / "none.json")
    file.write_text(json.dumps({"rows": PROFILE}))
    assert read_profile(file) == PROFILE
    file.write_text(json.dumps({"rows": PROFILE, "floor": {"seconds_per_step": 0.01}}))
    floor = [{"method": "floor", "task": task, "seconds_per_step": 0.01} for task in (1, 5)]
    assert read_profile(file) == PROFILE + floor
