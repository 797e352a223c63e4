"""The model of a table: rows, columns, and cells that know the runs behind them. Its forms are files of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fmlora_dist.report.aggregate import Planned, Run
from fmlora_dist.report.measures import MEASURES, Measure, Spread, spread
from fmlora_dist.report.protocols import common, describe, must_share, recipe_note, shared_notes, strangers, written
from fmlora_dist.report.published import Published, published

__all__ = ["BOUNDS", "Cell", "Head", "Layout", "Place", "Placed", "Row", "Table", "build", "natural"]

BOUNDS = {"frozen": "lower bound", "joint": "upper bound"}
"""Methods that do not compete: what they show is where the others stand."""
NO_RUN, UNDEFINED, MIXED = "–", "n/a", "†"


class Place(NamedTuple):
    """A row, a column or a section: by what it is sorted, and its label."""

    order: tuple[Any, ...]
    label: str


NOWHERE = Place((), "")
Placed = Run | Planned


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which runs stand where in a table."""

    title: str
    row: Callable[[Placed], Place]
    column: Callable[[Placed], Place]
    section: Callable[[Placed], Place] = lambda run: NOWHERE
    """Rows of one section stand together and compete; a table without sections is one."""
    measures: tuple[str, ...]
    what: str = "Accuracies in %"
    """Unit of the figures, for the note on seeds."""
    free: frozenset[str] = frozenset()
    """Fields of the shared protocol that rows or columns are made of."""
    of_methods: bool = False
    """Its rows are methods: published numbers stand beside them, and they are compared over several tables."""
    footnotes: bool = True
    """Whether protocol and recipes stand below; not where they stand below another table of the same runs."""


@dataclass(kw_only=True)
class Cell:
    """One figure of one row."""

    measure: Measure
    runs: list[Run] = field(default_factory=list)
    """The runs behind it."""
    value: Spread | None = None
    """None without runs, or where they do not have the figure."""
    mark: Literal["", "best", "second"] = ""
    show_n: bool = False
    mixed: bool = False
    """Its runs have another shared protocol than the table."""
    published: list[Published] = field(default_factory=list)
    """Numbers that publications give for it."""

    @property
    def std(self) -> float | None:
        """Its spread, where it is worth writing."""
        return self.value.std or (self.value.std if self.measure.chance else None) if self.value else None

    @property
    def text(self) -> str:
        """The figure as it stands in every form of the table."""
        if self.value is None:
            return UNDEFINED if self.runs else NO_RUN
        text = self.measure.write(self.value.mean) + ("" if self.std is None else f" ± {self.measure.write(self.std)}")
        return text + (f" (n={self.value.n})" if self.show_n else "") + (f" {MIXED}" if self.mixed else "")


@dataclass(kw_only=True)
class Row:
    """A method, or one recipe of it where several recipes of it stand in one column."""

    label: str
    cells: list[Cell]
    section: str = ""
    number: int = 0
    """Of its footnote, from 1; 0 without one."""
    recipe: str = ""
    bound: str = ""
    """What bound it is; '' for a method that competes."""

    @property
    def name(self) -> str:
        return f"{self.label} ({self.bound})" if self.bound else self.label

    @property
    def mark(self) -> str:
        """The mark of its footnote."""
        return f" [{self.number}]" if self.number else ""

    @property
    def runs(self) -> list[Run]:
        """The runs behind it, each once."""
        return [*{run.folder: run for cell in self.cells for run in cell.runs}.values()]


class Head(NamedTuple):
    """The heading of a column."""

    group: str
    """What several columns have in common, such as a benchmark with its number of tasks; may be empty."""
    measure: Measure

    @property
    def title(self) -> str:
        return f"{self.group} {self.measure.title}".strip()


@dataclass(kw_only=True)
class Table:
    """A table with the notes below it."""

    title: str
    heads: list[Head]
    rows: list[Row]
    of_methods: bool = False
    """As in its layout."""
    seeds: str = ""
    """Over what the means are taken."""
    protocol: list[str] = field(default_factory=list)
    """The shared protocol, and where the columns differ in it."""
    mixed: list[str] = field(default_factory=list)
    """What the protocol of marked cells has otherwise."""
    same: str = ""
    """What all rows' recipes have in common."""

    def notes(self) -> list[str]:
        """The lines below the table."""
        recipes = [f"[{row.number}] {row.label}: {row.recipe}" for row in self.rows if row.number and row.recipe]
        lines = [self.seeds, *self.mixed, *self.protocol, f"All rows: {self.same}" if self.same else "", *recipes]
        return [line for line in lines if line]

    @property
    def name(self) -> str:
        """The title without the number that the paper gives it."""
        return self.title.rpartition(": ")[2]

    def column(self, position: int) -> Iterator[tuple[Row, Cell]]:
        """Every row with its cell in one column."""
        return ((row, row.cells[position]) for row in self.rows)

    def sections(self) -> list[tuple[str, list[Row]]]:
        """The rows by section, in their order."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.section, []).append(row)
        return [*found.items()]


def build(layout: Layout, runs: Sequence[Run], planned: Sequence[Planned] = (), *, allow_mixed: bool = False) -> Table:
    """The table of these runs. Rows and columns of ``planned`` ones are there, if empty.

    Raises:
        UserError: the runs have different shared protocols, and ``allow_mixed`` is not set.
    """
    by_column = _by_column(layout, runs)
    odd = {stranger.run.folder: stranger for stranger in strangers(by_column, layout.free)}
    if not allow_mixed:
        must_share(by_column, layout.free)
    placed: list[Placed] = [*runs, *planned]
    columns = sorted({layout.column(each) for each in placed})
    rows = _rows(layout, runs, planned, split_by_protocol=bool(odd))
    same = {name: value for name, value in common(run.recipe for run in _firsts(runs)).items() if "method." not in name}
    table = Table(
        title=layout.title,
        of_methods=layout.of_methods,
        heads=[Head(column.label, MEASURES[name]) for column in columns for name in layout.measures],
        rows=[
            _row(label, section, [found.get(column, []) for column in columns], layout.measures)
            for (section, label), found in rows.items()
        ],
        protocol=shared_notes(by_column) if layout.footnotes else [],
        same=describe(same) if layout.footnotes else "",
    )
    expected: dict[tuple[str, str], Placed] = {
        (layout.row(plan).label, layout.column(plan).label): plan for plan in planned
    }
    for number, (row, found) in enumerate(zip(table.rows, rows.values(), strict=True), start=1):
        row.number = number if layout.footnotes else 0
        row.recipe = recipe_note({column.label: members for column, members in sorted(found.items())}, same)
        for head, cell in zip(table.heads, row.cells, strict=True):
            cell.mixed = any(run.folder in odd for run in cell.runs)
            place = cell.runs[0] if cell.runs else expected.get((row.label, head.group))
            if layout.of_methods and place:
                cell.published = published(place, cell.runs, cell.measure.name)
    table.mixed = _mixed(table, odd)
    table.seeds = _seeds(table, layout.what)
    for _, members in table.sections():
        _mark_best(members)
    return table


def _by_column(layout: Layout, runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[tuple[Place, Place], list[Run]] = {}
    for run in runs:
        found.setdefault((layout.section(run), layout.column(run)), []).append(run)
    return {section.label or column.label: members for (section, column), members in sorted(found.items())}


Found = dict[Place, list[Run]]


def _rows(
    layout: Layout, runs: Sequence[Run], planned: Sequence[Planned], *, split_by_protocol: bool
) -> dict[tuple[str, str], Found]:
    """The runs by (section, label of the row), and by column; rows are split where recipes must not be averaged."""

    def facts(run: Run) -> dict[str, Any]:
        return run.recipe | {"method": run.method} | (run.shared if split_by_protocol else {})

    base: dict[tuple[Place, Place], Found] = {}
    for run in runs:
        key = (layout.section(run), layout.row(run))
        base.setdefault(key, {}).setdefault(layout.column(run), []).append(run)
    for plan in planned:
        base.setdefault((layout.section(plan), layout.row(plan)), {})
    # A method's rows are told apart by the same fields in all sections.
    varied: dict[Place, set[str]] = {}
    for (_, row), found in base.items():
        for members in found.values():
            some = [facts(run) for run in _firsts(members)]
            constant = common(some)
            varied.setdefault(row, set()).update(name for one in some for name in one if name not in constant)
    rows: dict[tuple[str, str], Found] = {}
    for (section, row), found in sorted(base.items()):
        names = sorted(varied.get(row, ()))
        split: dict[tuple[Any, ...], tuple[str, Found]] = {}
        for column, members in found.items():
            for run in members:
                values = facts(run)
                told = [f"{name.removeprefix('method.')}={written(values.get(name))}" for name in names]
                variant = tuple(natural(values.get(name)) for name in names)
                _, cells = split.setdefault(variant, (", ".join(filter(None, [row.label, *told])), {}))
                cells.setdefault(column, []).append(run)
        for _, (label, cells) in sorted(split.items()) or [((), (row.label, {}))]:
            rows[section.label, label] = cells
    return rows


def natural(value: Any) -> tuple[int, float, str]:
    """What values of any kind are sorted by: numbers by size, then all else by its text."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, written(value))


def _firsts(runs: Sequence[Run]) -> list[Run]:
    """One run of each protocol and recipe."""
    return [*{(run.method, run.shared_hash, run.recipe_hash or id(run)): run for run in runs}.values()]


def _row(label: str, section: str, found: Sequence[list[Run]], measures: Sequence[str]) -> Row:
    cells = [
        Cell(measure=MEASURES[name], runs=members, value=spread(members, name))
        for members in found
        for name in measures
    ]
    methods = {run.method for members in found for run in members} or {label}
    (method,) = methods if len(methods) == 1 else ("",)
    return Row(label=label, section=section, cells=cells, bound=BOUNDS.get(method, ""))


def _mixed(table: Table, odd: Mapping[Any, Any]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for row in table.rows:
        found = next((odd[run.folder] for run in row.runs if run.folder in odd), None)
        if found:
            facts = (f"{n} {written(b)} instead of {written(a)}" for n, (a, b) in found.differences.items())
            lines.setdefault(", ".join(facts), []).append(row.label)
    return [f"{MIXED} not comparable, another shared protocol: {' and '.join(v)}: {k}" for k, v in lines.items()]


def _seeds(table: Table, what: str) -> str:
    cells = [cell for row in table.rows for cell in row.cells if cell.value]
    numbers = {cell.value.n for cell in cells if cell.value}
    if not numbers:
        return "No finished run has these figures."
    if numbers == {1}:
        return f"{what}, one seed: no spread is known."
    for cell in cells:
        cell.show_n = len(numbers) > 1
    return f"{what}, mean ± sample standard deviation over " + (
        "n seeds." if len(numbers) > 1 else f"{numbers.pop()} seeds."
    )


def _mark_best(rows: Sequence[Row]) -> None:
    for position in range(len(rows[0].cells)):
        cells = [row.cells[position] for row in rows if not row.bound and not row.cells[position].mixed]
        # As they are written: equal figures have equal marks.
        values = {
            id(cell): cell.measure.sign * float(cell.measure.write(cell.value.mean)) for cell in cells if cell.value
        }
        ranked = sorted({*values.values()}, reverse=True)
        for cell in cells:
            # A method alone in its column has beaten nobody.
            if id(cell) in values and len(ranked) > 1 and values[id(cell)] >= ranked[1]:
                cell.mark = "best" if values[id(cell)] == ranked[0] else "second"
