"""From finished runs to the paper's figures. A figure that the runs have no data for is not drawn."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from fmlora_dist.report.aggregate import Column
from fmlora_dist.report.differences import Pooled
from fmlora_dist.report.drawing import (
    INK,
    QUIET,
    Drawing,
    Style,
    at_numbers,
    count_tasks,
    drawn_alike,
    legend,
    mean_line,
    mean_points,
    panels,
    styles,
    task_ticks,
)
from fmlora_dist.report.measures import Measure
from fmlora_dist.report.significance import Ranking
from fmlora_dist.report.traces import CHANGE, DRIFT, Move, Rows, Trace, Values, over_seeds

__all__ = ["draw"]

_BAND = "Lines are means over seeds; bands, one sample standard deviation to either side."
_BARS = "Points are means over seeds; bars, one sample standard deviation to either side."
_PROMPTS = "method.prompt_tokens"
_WRITTEN = 10
"""Most tasks for which a matrix's figures can be read."""

Line = Callable[[Axes, str, Column, Values], None]


def draw(rows: Rows, pooled: Sequence[Pooled] = (), profile: Sequence[dict[str, Any]] = ()) -> list[Drawing]:
    """Every figure that there is data for.

    Args:
        rows: The runs, task by task, in the order in which legends name them.
        pooled: How methods compare over several benchmarks.
        profile: Rows ``{"method": …, "task": …, "seconds_per_step": …}``, for step time against task.
    """
    looks = styles(rows)
    columns = sorted({column for found in rows.values() for column in found})
    drawings: list[Drawing] = []
    with drawn_alike():
        for block in dict.fromkeys(column.block for column in columns):
            here = [column for column in columns if column.block == block]
            for kind in _KINDS:
                drawings += kind(rows, here, looks)
        drawings += [_critical_difference(each.measure, each.ranking) for each in pooled if each.ranking]
        drawings += [_profile(profile)] if profile else []
    return drawings


def _curves(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    def line(axes: Axes, label: str, column: Column, values: Values) -> None:
        # A run that learned all tasks at once has one figure, after the last of them.
        mean_line(axes, range(column.n_tasks - values.shape[1] + 1, column.n_tasks + 1), values, looks[label], label)

    figure = _by_task(rows, here, lambda trace: trace.anytime, line, "mean accuracy so far (%)")
    if figure:
        caption = f"Mean accuracy over the tasks seen so far. {_BAND}"
        yield _drawing(here, "curves", "Accuracy after each task", caption, figure)


def _acc_by_n(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    if len(here) < 2:
        return
    figure, [[axes]] = panels([here[0].block], "Acc (%)")
    for label, found in rows.items():
        each = [(column.n_tasks, over_seeds(found.get(column, ()), lambda trace: trace.acc)) for column in here]
        mean_points(axes, [(n, accs) for n, accs in each if accs is not None], looks[label], label)
    at_numbers(axes, [column.n_tasks for column in here])
    axes.set_xlabel("number of tasks N")
    legend(figure)
    caption = f"Mean accuracy over all tasks after the last one. {_BARS}"
    yield _drawing(here, "acc-by-n", "Acc against the number of tasks", caption, figure)


def _prompts(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    lines: dict[str, list[tuple[float, Values]]] = {}
    for column in here:
        swept = _by_prompts(rows, column)
        for rest, by_m in swept.items():
            name = f"N = {column.n_tasks}" + (f", {rest}" if len(swept) > 1 else "")
            each = [(m, over_seeds(traces, lambda trace: trace.acc)) for m, traces in by_m.items()]
            lines[name] = [(m, accs) for m, accs in each if accs is not None]
    if not lines:
        return
    figure, [[axes]] = panels([here[0].block], "Acc (%)")
    for (name, points), style in zip(lines.items(), styles(lines).values(), strict=True):
        mean_points(axes, points, style, name)
    at_numbers(axes, {m for points in lines.values() for m, _ in points})
    axes.set_xlabel("number of prompt tokens m")
    legend(figure)
    caption = f"Acc against the number m of shared prompt tokens, all else equal; m = 0 is without prompts. {_BARS}"
    yield _drawing(here, "prompts", "Number of prompt tokens", caption, figure)


def _ranks(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    """Of methods that choose a rank by a task's complexity."""
    found = {
        column: {
            label: (ranks, complexity)
            for label, by_column in rows.items()
            if (complexity := _in_full(by_column, column, "complexity")) is not None
            and (ranks := _in_full(by_column, column, "ranks")) is not None
        }
        for column in here
    }
    shown = [column for column in here if found[column]]
    if not shown:
        return
    figure, columns = panels([_title(column) for column in shown], "chosen rank", "complexity H", size=(3.5, 2.3))
    chosen = sorted({rank for by_label in found.values() for ranks, _ in by_label.values() for rank in ranks.flat})
    for column, [above, below] in zip(shown, columns, strict=True):
        tasks = range(1, column.n_tasks + 1)
        for label, (ranks, complexity) in found[column].items():
            above.plot(tasks, ranks.mean(axis=0), **looks[label].options(), label=label)
            for seed in ranks:
                above.scatter(tasks, seed, s=70, color=looks[label].colour, alpha=0.16, linewidths=0)
            mean_line(below, tasks[1:], complexity[:, 1:], looks[label], label)  # task 1 chooses none
        above.set_yscale("log", base=2)
        above.set_yticks(chosen, labels=[f"{rank:g}" for rank in chosen])
        above.minorticks_off()
        above.set_xticks(task_ticks(column.n_tasks), labels=[])
        below.axhline(1.0, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
        below.set_xlim(above.get_xlim())
        count_tasks(below, column.n_tasks)
    legend(figure)
    caption = (
        "Rank chosen for each task, mean and each seed (pale), and the complexity that it goes by (dotted: an average "
        f"task). {_BAND}"
    )
    yield _drawing(here, "ranks", "Chosen rank and complexity", caption, figure)


def _drift(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    yield from _moves(rows, here, looks, DRIFT, "drift", "Drift of the first task's features")


def _weight_change(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    yield from _moves(rows, here, looks, CHANGE, "weights", "Change of the adapted weights")


def _drift_by_prompts(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    """The same for nothing but m = 0 and m > 0 of one method, all else equal."""
    parts: Rows = defaultdict(dict)
    for column in here:
        swept = _by_prompts(rows, column)
        for rest, by_m in swept.items():
            for m, traces in by_m.items():
                if 0 in by_m:
                    parts[f"m = {m}" + (f", {rest}" if len(swept) > 1 else "")][column] = traces
    looks = styles(parts)
    yield from _moves(parts, here, looks, DRIFT, "drift-prompts", "Drift without and with prompt tokens")


def _moves(
    rows: Rows, here: list[Column], looks: dict[str, Style], move: Move, name: str, title: str
) -> Iterator[Drawing]:
    def line(axes: Axes, label: str, column: Column, values: Values) -> None:
        mean_line(axes, range(1, column.n_tasks + 1), values, looks[label], label)

    def after_each(trace: Trace) -> list[float]:
        values = move.values(trace)
        return values if len(values) == trace.run.column.n_tasks else []

    figure = _by_task(rows, here, after_each, line, move.axis)
    if figure:
        yield _drawing(here, name, title, f"{move.what} {_BAND}", figure)


def _stored(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    found = {
        column: [
            (label, float(stored.mean()), accs)
            for label, by_column in rows.items()
            if (stored := over_seeds(by_column.get(column, ()), lambda trace: trace.stored[-1:])) is not None
            and (accs := over_seeds(by_column.get(column, ()), lambda trace: trace.acc)) is not None
        ]
        for column in here
    }
    shown = [column for column in here if found[column]]
    if not shown:
        return
    figure, columns = panels([_title(column) for column in shown], "Acc (%)")
    for column, [axes] in zip(shown, columns, strict=True):
        for label, numbers, accs in found[column]:
            mean_points(axes, [(numbers, accs)], looks[label]._replace(line=""), label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        axes.set_xlabel("stored parameters")
    legend(figure)
    caption = f"Acc against the numbers that a method keeps after the last task beside the frozen backbone. {_BARS}"
    yield _drawing(here, "stored", "Accuracy against stored parameters", caption, figure)


def _step_times(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    def line(axes: Axes, label: str, column: Column, values: Values) -> None:
        mean_line(axes, range(1, column.n_tasks + 1), 1000 * values, looks[label], label)
        axes.set_ylim(bottom=0)

    def seconds(trace: Trace) -> list[float]:
        return trace.step_seconds if len(trace.step_seconds) == trace.run.column.n_tasks else []

    figure = _by_task(rows, here, seconds, line, "milliseconds a step")
    if figure:
        caption = f"Time of a training step in each task, in the runs themselves, whatever ran beside them. {_BAND}"
        yield _drawing(here, "step-time", "Step time against task", caption, figure)


def _matrices(rows: Rows, here: list[Column], looks: dict[str, Style]) -> Iterator[Drawing]:
    for column in here:
        found = {
            label: figures
            for label, by_column in rows.items()
            if (figures := over_seeds(by_column.get(column, ()), lambda trace: trace.lower)) is not None
            and figures.shape[1] == column.n_tasks * (column.n_tasks + 1) // 2
        }
        if not found or column.n_tasks < 2:
            continue
        figure, columns = panels([*found], "after task", across=4, size=(2.6, 2.5))
        colours, n = matplotlib.colormaps["cividis"], column.n_tasks
        for figures, [axes] in zip(found.values(), columns, strict=True):
            matrix = np.ma.masked_all((n, n))
            matrix[np.tril_indices(n)] = figures.mean(axis=0)
            image = axes.imshow(
                matrix, cmap=colours, vmin=0, vmax=100, extent=(0.5, n + 0.5, n + 0.5, 0.5), interpolation="none"
            )
            if n <= _WRITTEN:
                _write_figures(axes, matrix)
            axes.grid(False)
            axes.set_yticks(task_ticks(n))
            count_tasks(axes, n, name="accuracy on task")
        bar = figure.colorbar(image, ax=[axes for [axes] in columns], shrink=0.8, aspect=30, pad=0.02)
        bar.set_label("accuracy (%)")
        bar.outline.set_visible(False)
        caption = "Row t: accuracy on the test data of tasks 1 to t after task t was learned, mean over seeds."
        title = f"Accuracy matrix, N = {column.n_tasks}"
        yield _drawing([column], f"matrix-{column.n_tasks}", title, caption, figure)


def _write_figures(axes: Axes, matrix: Values) -> None:
    size = 8 if len(matrix) <= 5 else 5.5
    for row, column in zip(*np.tril_indices(len(matrix)), strict=True):
        value = matrix[row, column]
        # Cividis is dark below 55 %: these two colours are no text's, so that the page leaves them.
        colour = "#ffffff" if value < 55 else "#000000"
        text = axes.text(column + 1, row + 1, f"{value:.0f}", ha="center", va="center", fontsize=size, color=colour)
        text.set_in_layout(False)


def _critical_difference(measure: Measure, ranking: Ranking) -> Drawing:
    """Demšar's diagram (JMLR 2006): average ranks on a line; methods under one bar cannot be told apart."""
    names, half = [*ranking.ranks], -(-len(ranking.ranks) // 2)
    figure, [[axes]] = panels(
        [f"average rank by {measure.title} over {len(ranking.blocks)} benchmarks"], "", size=(6.0, 1.9)
    )
    bars, deepest = ranking.groups, 0.6 + 0.35 * len(ranking.groups) + 0.45 * half
    left, right = 1, len(names)
    axes.set_axis_off()
    axes.set_xlim(left - 0.35 * right, right + 0.35 * right)
    axes.set_ylim(deepest, -1.2)
    axes.plot([left, right], [0, 0], color=INK, linewidth=1)
    for rank in range(left, right + 1):
        axes.plot([rank, rank], [0, -0.15], color=INK, linewidth=1)
        axes.text(rank, -0.25, str(rank), ha="center", va="bottom", fontsize=8.5)
    axes.plot([left, left + ranking.critical_difference], [-0.85, -0.85], color=INK, marker="|", linewidth=1)
    axes.text(
        left + ranking.critical_difference / 2, -0.95, "critical difference", ha="center", va="bottom", fontsize=8.5
    )
    for number, group in enumerate(bars):
        ends = [ranking.ranks[group[0]], ranking.ranks[group[-1]]]
        axes.plot([ends[0] - 0.03, ends[1] + 0.03], [0.3 + 0.35 * number] * 2, color=QUIET, linewidth=4)
    for number, name in enumerate(names):
        first = number < half
        depth = 0.6 + 0.35 * len(bars) + 0.45 * (number if first else len(names) - 1 - number)
        edge = left - 0.1 if first else right + 0.1
        axes.plot([ranking.ranks[name]] * 2 + [edge], [0, depth, depth], color=INK, linewidth=0.8)
        axes.text(edge - 0.1 if first else edge + 0.1, depth, name, ha="right" if first else "left", va="center")
    caption = (
        "Friedman's test with Nemenyi's critical difference at 5 %: methods under one grey bar cannot be told apart. "
        "Rank 1 is the best."
    )
    name, title = f"ranks-{measure.name}", f"Average ranks over all benchmarks, {measure.title}"
    return Drawing(name=name, title=title, caption=caption, block="", tasks=(), figure=figure)


def _profile(profile: Sequence[dict[str, Any]]) -> Drawing:
    by_method: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in profile:
        by_method[row["method"]].append((row["task"], 1000 * row["seconds_per_step"]))
    figure, [[axes]] = panels(["one machine"], "milliseconds a step")
    for method, style in styles(by_method).items():
        tasks, times = zip(*sorted(by_method[method]), strict=True)
        mean_line(axes, tasks, np.array([times]), style, method)
    count_tasks(axes, max(row["task"] for row in profile))
    axes.set_ylim(bottom=0)
    legend(figure)
    title = "Step time against task, measured alone"
    caption = (
        "Time of a training step against the task that is learned, as `fmlora profile steps` measured it. Floor: "
        "forward and backward of the frozen backbone."
    )
    return Drawing(name="step-time", title=title, caption=caption, block="", tasks=(), figure=figure)


def _by_task(
    rows: Rows, here: list[Column], values: Callable[[Trace], Sequence[float]], line: Line, name: str
) -> Figure | None:
    """A panel for each number of tasks, with a line for each row that has values."""
    found = {
        column: {
            label: figures
            for label, by_column in rows.items()
            if (figures := over_seeds(by_column.get(column, ()), values)) is not None
        }
        for column in here
    }
    shown = [column for column in here if found[column] and column.n_tasks > 1]
    if not shown:
        return None
    figure, columns = panels([_title(column) for column in shown], name)
    for column, [axes] in zip(shown, columns, strict=True):
        for label, figures in found[column].items():
            line(axes, label, column, figures)
        count_tasks(axes, column.n_tasks)
    legend(figure)
    return figure


def _by_prompts(rows: Rows, column: Column) -> dict[str, dict[int, list[Trace]]]:
    """Runs that differ in nothing but the number of prompt tokens: by what they have in common, then by that number."""
    found: dict[tuple[str, Any], dict[int, list[Trace]]] = defaultdict(lambda: defaultdict(list))
    for by_column in rows.values():
        for trace in by_column.get(column, ()):
            rest = {name: value for name, value in trace.run.recipe.items() if name != _PROMPTS}
            if isinstance(m := trace.run.recipe.get(_PROMPTS), int):
                found[trace.run.method, (trace.run.shared_hash, str(rest))][m].append(trace)
    swept = {key: dict(sorted(by_m.items())) for key, by_m in found.items() if len(by_m) > 1}
    alone = len({method for method, _ in swept}) == len(swept)
    return {
        method if alone else f"{method} {number}": swept[method, rest] for number, (method, rest) in enumerate(swept, 1)
    }


def _in_full(by_column: dict[Column, list[Trace]], column: Column, field: str) -> Values | None:
    """A figure for each task and seed; None when there is not one for every task."""
    values = over_seeds(by_column.get(column, ()), lambda trace: getattr(trace, field))
    return values if values is not None and values.shape[1] == column.n_tasks else None


def _title(column: Column) -> str:
    return f"{column.block}, N = {column.n_tasks}"


def _drawing(here: list[Column], name: str, title: str, caption: str, figure: Figure) -> Drawing:
    first = here[0]
    stem = first.benchmark if first.scenario == "cil" else f"{first.benchmark}-{first.scenario}"
    stem = re.sub(r"[^\w-]+", "_", stem)  # whatever a result says, its figures stay in their folder
    return Drawing(
        name=f"{stem}-{name}",
        title=f"{first.block}: {title}",
        caption=caption,
        block=first.block,
        tasks=tuple(column.n_tasks for column in here),
        figure=figure,
    )


_KINDS = (
    *(_curves, _acc_by_n, _prompts, _ranks, _drift, _drift_by_prompts, _weight_change),
    *(_stored, _step_times, _matrices),
)
"""The figures of a benchmark, in their order."""
