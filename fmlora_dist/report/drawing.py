"""How every figure looks, and its files: the same bytes whenever the same runs are drawn.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; marker and line tell the same again
for black and white. Nothing here touches pyplot: a figure is an object, drawn by a backend that needs no screen.
"""

import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fmlora_dist.record import write_atomically

__all__ = [
    "INK",
    "PAPER",
    "QUIET",
    "RULE",
    "Drawing",
    "Style",
    "at_numbers",
    "count_tasks",
    "drawn_alike",
    "legend",
    "mean_line",
    "mean_points",
    "panels",
    "styles",
    "task_ticks",
]

INK, QUIET, RULE, PAPER = "#1f2329", "#5f6b77", "#d9dde2", "#fefefe"
"""Text, axes, grid and ground. The page puts its own colours in their places, so nothing else may have these."""

_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _RED, _SKY, _PINK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_LARGER = {"X": 1.25, "P": 1.25, "*": 1.8, "p": 1.1, "<": 1.1, ">": 1.1, "^": 1.1, "v": 1.1}
"""Markers of little area are drawn larger."""
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))


class Style(NamedTuple):
    """What tells a series from the others."""

    colour: str
    marker: str
    line: Any = "-"

    def options(self) -> dict[str, Any]:
        """For ``Axes.plot`` and ``Axes.errorbar``."""
        size = 5.5 * _LARGER.get(self.marker, 1.0)
        return {"color": self.colour, "marker": self.marker, "markersize": size, "linestyle": self.line}


_SOLID, _DASHED, _DOTTED, _DASH_DOT, _LONG = _LINES
_KNOWN = {
    "finetune": Style("#8a6d3b", "X", _DOTTED),
    "lora": Style(_SKY, "s"),
    "simplecil": Style(_ORANGE, "H", _DASH_DOT),
    "ranpac": Style(_BLUE, "8", _DASH_DOT),
    "l2p": Style(_ORANGE, "<", _DASHED),
    "dualprompt": Style(_PINK, ">", _DASHED),
    "coda_prompt": Style(_GREEN, "p", _DASHED),
    "hide_prompt": Style(_BLUE, "h", _DASHED),
    "inflora": Style(_BLUE, "^"),
    "sdlora": Style(_GREEN, "D"),
    "sdlora_rr": Style(_GREEN, "d", _LONG),
    "sdlora_kd": Style(_GREEN, "D", _LONG),
    "cllora": Style(_PINK, "P"),
    "fmlora": Style(_RED, "o"),
    "frozen": Style(QUIET, "v", _DOTTED),
    "joint": Style(QUIET, "*", _DOTTED),
    "floor": Style(QUIET, "_", _DOTTED),
}
"""A method looks the same in every report: low-rank methods have solid lines, prompts dashed ones, bounds grey dots."""

_LOOK: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 10,
    "figure.edgecolor": PAPER,
    "figure.facecolor": PAPER,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markeredgecolor": PAPER,
    "lines.markeredgewidth": 0.7,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a method's name is no formula
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


@contextmanager
def drawn_alike(name: str = "") -> Iterator[None]:
    """The look of all figures, whatever the user's own matplotlibrc says; ``name`` salts the ids within the SVG."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK | {"svg.hashsalt": f"fmlora {name}"})
        yield


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure, and what the page says of it."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    block: str
    """The benchmark that it is about; empty when it is about none."""
    tasks: tuple[int, ...]
    """The numbers of tasks that it shows."""
    figure: Figure

    def __post_init__(self) -> None:
        # Laid out once for all files: with many panels this is what takes the time. (Twice, since panels of a fixed
        # aspect move once more.)
        self.figure.draw_without_rendering()
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    @cached_property
    def svg(self) -> str:
        """The figure as SVG, whose text stays text."""
        text = io.StringIO()
        with drawn_alike(self.name):
            self.figure.savefig(text, format="svg", metadata={"Date": None, "Title": self.title})
        return text.getvalue()

    def write(self, folder: Path) -> Iterator[Path]:
        """Write NAME.svg and NAME.pdf into ``folder``, each whole or not at all. Raises ``OSError``."""
        with write_atomically(folder / f"{self.name}.svg") as path:
            path.write_text(self.svg, encoding="utf-8")
        yield folder / f"{self.name}.svg"
        with drawn_alike(self.name), write_atomically(folder / f"{self.name}.pdf") as path:
            self.figure.savefig(path, format="pdf", metadata={"CreationDate": None, "Title": self.title})
        yield folder / f"{self.name}.pdf"


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A look for each label: a known method's own, also for the first of its variants, else the first that is left.

    As long as there are any, looks are given that no other label has in black and white.
    """
    labels = list(labels)
    found: dict[str, Style] = {}
    for label in labels:
        method = label.partition(",")[0]  # as tables label the variants of a method
        if method in _KNOWN and _KNOWN[method] not in found.values() and (label == method or method not in labels):
            found[label] = _KNOWN[method]
    every = [_numbered(number) for number in range(len(_LINES) * len(_MARKERS) * len(_COLOURS))]
    for label in labels:
        if label not in found:
            given = {(style.marker, style.line) for style in found.values()}
            plain = (style for style in every if (style.marker, style.line) not in given)
            found[label] = next(plain, None) or next(style for style in every if style not in found.values())
    return {label: found[label] for label in labels}


def _numbered(number: int) -> Style:
    rounds = number // len(_COLOURS)
    return Style(
        _COLOURS[number % len(_COLOURS)],
        _MARKERS[number % len(_MARKERS)],
        _LINES[(rounds + number // len(_MARKERS)) % len(_LINES)],
    )


def panels(
    titles: Sequence[str], *names: str, across: int = 3, size: tuple[float, float] = (3.5, 2.9)
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with panels for each title: one below the other for each name.

    Args:
        titles: What stands above the panels.
        names: Labels of the vertical axes.
        across: Most titles side by side; their panels have one vertical axis.
        size: Of a panel, in inches.

    Returns:
        The figure, and for each title its panels from top to bottom.
    """
    rows, across = len(names), min(len(titles), across)
    down = -(-len(titles) // across)
    width, height = size
    figure = Figure(figsize=(width * across + 0.4, height * down * rows + 0.5), layout="constrained")
    grid = figure.subplots(down * rows, across, squeeze=False, sharey="row")
    columns: list[list[Axes]] = []
    for number, title in enumerate(titles):
        top, column = number // across * rows, number % across
        columns.append([grid[top + row, column] for row in range(rows)])
        columns[-1][0].set_title("\n".join(textwrap.wrap(title, int(10.5 * width), break_on_hyphens=False)))
        for axes, name in zip(columns[-1], names, strict=True):
            # As many ticks whatever the size: labels that change with it would upset the layout.
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
            if column == 0:
                axes.set_ylabel(name)
    for spare in range(len(titles), across * down):
        for row in range(rows):
            grid[spare // across * rows + row, spare % across].set_axis_off()
    return figure, columns


def mean_line(axes: Axes, x: Sequence[float], values: NDArray[np.float64], style: Style, label: str) -> None:
    """Mean over seeds (the rows of ``values``) with a band of one sample standard deviation to either side."""
    mean = values.mean(axis=0)
    axes.plot(x, mean, **style.options(), markevery=1 + len(x) // 12, label=label)
    if len(values) > 1 and len(x) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=style.colour, alpha=0.16, linewidth=0)


def mean_points(axes: Axes, points: Sequence[tuple[float, NDArray[np.float64]]], style: Style, label: str) -> None:
    """For each (x, values over seeds) the mean with a bar of one sample standard deviation to either side."""
    if points:
        x = [x for x, _ in points]
        means = [float(values.mean()) for _, values in points]
        spreads = [float(values.std(ddof=1)) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(x, means, yerr=spreads, fmt="none", ecolor=style.colour, elinewidth=1, capsize=2.5)
        axes.plot(x, means, **style.options(), label=label)


def at_numbers(axes: Axes, numbers: Iterable[float]) -> None:
    """Ticks at just these numbers, those from 1 at equal ratios."""
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks := sorted(numbers), labels=[f"{number:g}" for number in ticks])
    axes.minorticks_off()


def count_tasks(axes: Axes, last: int, *, name: str = "task") -> None:
    """The horizontal axis counts tasks, from 1 to ``last``."""
    axes.set_xlabel(name)
    axes.set_xticks(task_ticks(last))


def task_ticks(last: int) -> list[int]:
    """The first task, and a few whole numbers after it."""
    step = next(step for step in itertools.chain((1, 2, 5), itertools.count(10, 10)) if last <= 7 * step)
    return sorted({1, *range(step, last + 1, step)})


def legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    widest = max(map(len, found), default=1)
    columns = max(1, int((figure.get_figwidth() - 0.3) / (0.75 + 0.082 * widest)))
    rows = max(1, -(-len(found) // columns))
    figure.legend([*found.values()], [*found], loc="outside lower center", ncols=-(-len(found) // rows))
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
