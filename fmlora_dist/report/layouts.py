"""Which tables there are: the paper's, the same for every other benchmark, and any other grouping."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fmlora_dist.errors import UserError, nearest
from fmlora_dist.report.aggregate import Planned, Run, Runs
from fmlora_dist.report.measures import ACCURACIES, COSTS, ORIGINS, find_measures
from fmlora_dist.report.protocols import written
from fmlora_dist.report.tables import BOUNDS, Layout, Place, Placed, Table, build, natural

__all__ = ["ORDER", "Grouping", "select", "tables"]

ORDER = (
    *("finetune", "lora", "simplecil", "ranpac", "l2p", "dualprompt", "coda_prompt", "hide_prompt"),
    *("inflora", "sdlora", "sdlora_rr", "sdlora_kd", "cllora", "fmlora"),
)
"""Order of the rows, as papers have it; other methods follow by name."""
PAPER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Table 1: ImageNet-R", ("imagenet_r",)),
    ("Table 2: CIFAR100 and CUB200", ("cifar100", "cub200")),
    ("Table 3: DomainNet", ("domainnet",)),
)
"""The paper's tables, with their benchmarks; any other benchmark has one of its own."""
ORIGINS_ARE = (
    "Learning (accuracy on a task just after it) and forgetting in %, drift (of task 1's features, 1 - mean cosine), "
    "weight change (norm of all that was added to the adapted weights, over their own)"
)
COSTS_ARE = (
    "Costs (trained in the last task, stored after it; k: 1,000 numbers; times with whatever else ran on the machine)"
)
_OURS = "fmlora"


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Rows and columns of a user's choice, by names of fields."""

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    metrics: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.columns or self.metrics)


def tables(runs: Runs, grouping: Grouping | None = None, *, allow_mixed: bool = False) -> list[Table]:
    """The tables of these runs: the usual ones, or the one of a grouping.

    Raises:
        UserError: an unknown field or metric, or runs of different shared protocols without ``allow_mixed``.
    """
    if grouping:
        return [_grouped(grouping, runs, allow_mixed)]
    found = []
    for title, benchmarks in _groups(runs):
        some = [run for run in runs.runs if run.column.benchmark in benchmarks]
        planned = [plan for plan in runs.planned if plan.column.benchmark in benchmarks]
        parts = _parts(some)
        compared = [run for run in some if run not in parts or _whole(run)] if parts else some
        everyone: list[Placed] = [*compared, *planned]
        ablation = bool(parts) and {each.method for each in everyone} <= {_OURS}
        if not ablation:
            layout = Layout(title=title, row=_by_method, column=_by_column, measures=ACCURACIES, of_methods=True)
            found.append(build(layout, compared, planned, allow_mixed=allow_mixed))
        number, _, name = title.rpartition(": ")
        if parts:
            layout = Layout(
                title=f"{'Table 4: ' if number else ''}parts of FM-LoRA, {name}",
                row=_by_parts,
                column=_by_column,
                measures=ACCURACIES,
            )
            found.append(build(layout, some if ablation else parts, allow_mixed=allow_mixed))
        if some:
            of, row = some if ablation else compared, _by_parts if ablation else _by_method
            for layout in (
                _below(f"learning and forgetting, {name}", ORIGINS, ORIGINS_ARE, of, row),
                _below(f"{'Table 5: ' if number else ''}cost, {name}", COSTS, COSTS_ARE, of, row),
            ):
                if layout.measures:
                    found.append(build(layout, of, allow_mixed=allow_mixed))
    return found


def _below(title: str, names: Sequence[str], what: str, runs: Sequence[Run], row: Callable[[Placed], Place]) -> Layout:
    """A table of more figures of runs whose accuracies stand above, with what the runs have of them."""
    return Layout(
        title=title,
        row=row,
        column=lambda run: Place((), ""),
        section=_by_column,
        measures=tuple(name for name in names if any(run.figure(name) is not None for run in runs)),
        footnotes=False,
        what=what,
    )


def select(runs: Runs, conditions: Iterable[str]) -> Runs:
    """The runs for which every ``FIELD=VALUE`` holds; several values are set apart by commas.

    Raises:
        UserError: a condition without '=', an unknown field, or no run left.
    """
    for condition in conditions:
        name, equals, values = condition.partition("=")
        if not equals:
            raise UserError(f"--where: found '{condition}', expected FIELD=VALUE such as method=lora,fmlora")
        _check_fields("--where", [name], runs.runs)
        kept = [run for run in runs.runs if written(run.facts().get(name)) in values.split(",")]
        if not kept:
            there = sorted({written(run.facts().get(name)) for run in runs.runs})
            raise UserError(f"--where: no run has {condition}; there are: {', '.join(there)}")
        runs = Runs(kept, runs.broken, [plan for plan in runs.planned if _planned_as(plan, name, values)])
    return runs


def _planned_as(plan: Planned, name: str, values: str) -> bool:
    """Whether a planned run is among those; what is not known of it excludes it."""
    facts = {"method": plan.method, **plan.column._asdict()}
    return name in facts and written(facts[name]) in values.split(",")


def _groups(runs: Runs) -> list[tuple[str, tuple[str, ...]]]:
    everyone: list[Placed] = [*runs.runs, *runs.planned]
    there = {each.column.benchmark for each in everyone}
    paper = [(title, names) for title, names in PAPER if there & {*names}]
    others = there - {name for _, names in PAPER for name in names}
    return paper + [(name, (name,)) for name in sorted(others)]


def _by_method(placed: Placed) -> Place:
    place = ORDER.index(placed.method) if placed.method in ORDER else len(ORDER)
    return Place((placed.method in BOUNDS, place, placed.method), placed.method)


def _by_column(placed: Placed) -> Place:
    return Place(tuple(placed.column), placed.column.title)


def _parts(runs: Sequence[Run]) -> list[Run]:
    """FM-LoRA's runs in the columns where they differ in which parts they have."""
    ours = [run for run in runs if run.method == _OURS]
    variants = {(run.column, _by_parts(run)) for run in ours}
    several = {column for column, count in Counter(column for column, _ in variants).items() if count > 1}
    return [run for run in ours if run.column in several]


def _whole(run: Run) -> bool:
    return bool(run.recipe.get("method.drs", True) and run.recipe.get("method.prompt_tokens", 1))


def _by_parts(placed: Placed) -> Place:
    """F-LoRA with a fixed rank, with DRS, with DMP, with both."""
    recipe = placed.recipe if isinstance(placed, Run) else {}
    drs, prompts = bool(recipe.get("method.drs", True)), bool(recipe.get("method.prompt_tokens", 1))
    rank = 0 if drs else recipe.get("method.task_rank") or recipe.get("method.rank") or 0
    names = [*(["DRS"] if drs else []), *(["DMP"] if prompts else [])]
    label = " + ".join(["F-LoRA", *names]) + (f", rank {rank}" if rank else "")
    return Place((prompts, drs, rank), label)


# -- any other grouping -----------------------------------------------------------------------------------------------


def _grouped(grouping: Grouping, runs: Runs, allow_mixed: bool) -> Table:
    rows, columns = [*grouping.rows] or ["method"], [*grouping.columns]
    _check_fields("--rows", rows, runs.runs)
    _check_fields("--columns", columns, runs.runs)
    names = grouping.metrics or ACCURACIES
    layout = Layout(
        title="Comparison",
        row=_by_method if rows == ["method"] else _by_fields(rows),
        column=_by_fields(columns) if columns else _by_column,
        measures=tuple(measure.name for measure in find_measures(names)),
        what=_what(names),
        free=frozenset({*rows, *columns}),
        of_methods=True,
    )
    return build(layout, runs.runs, [] if grouping.rows or columns else runs.planned, allow_mixed=allow_mixed)


def _what(names: Iterable[str]) -> str:
    """What stands in a table of these measures."""
    moved, costs = {*names} & {"drift", "weight_change"}, {*names} & {*COSTS, "hours"}
    parts = ["accuracies in %"] if {*names} - moved - costs else []
    parts += ["drift and weight change as fractions"] if moved else []
    parts += ["costs as said"] if costs else []
    return ", ".join(parts).capitalize()


def _by_fields(names: Sequence[str]) -> Callable[[Placed], Place]:
    def place(placed: Placed) -> Place:
        facts: dict[str, Any] = placed.facts() if isinstance(placed, Run) else {}
        values = [facts.get(name) for name in names]
        labels = [
            written(value) if name in ("method", "benchmark") else f"{_short(name)}={written(value)}"
            for name, value in zip(names, values, strict=True)
        ]
        return Place(tuple(map(natural, values)), ", ".join(labels))

    return place


def _short(name: str) -> str:
    return "N" if name == "n_tasks" else name.removeprefix("method.")


def _check_fields(option: str, names: Sequence[str], runs: Sequence[Run]) -> None:
    known = {name for run in runs for name in run.facts()}
    for name in names:
        if known and name not in known:
            raise UserError(f"{option}: no run has a field '{name}': {nearest(name, known)}")
