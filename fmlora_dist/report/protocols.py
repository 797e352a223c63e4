"""What the runs of a table have in common: the protocol that they must share, and the recipes that rows may have."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fmlora_dist.errors import UserError
from fmlora_dist.report.aggregate import Run

__all__ = ["Stranger", "common", "describe", "must_share", "recipe_note", "shared_notes", "strangers", "written"]

_PARTITION = {"n_tasks", "first_task"}
"""What columns of one benchmark may differ in."""
_DATA = _PARTITION | {
    *("benchmark", "split", "split_rule", "train_images", "test_images", "image_size", "test_transform"),
    *("scenario", "domain_order", "dil_head", "excluded_domains"),
}
"""What a benchmark brings with it: columns of several benchmarks may differ in it."""


class Stranger(NamedTuple):
    """A run whose shared protocol is not that of its table."""

    run: Run
    reference: Run
    """A run of the table's protocol."""
    differences: dict[str, tuple[Any, Any]]
    """For each field that differs what the reference has, and what the run."""

    def __str__(self) -> str:
        return "; ".join(
            f"{name} is {mine!r} in the first and {other!r} in the second"
            for name, (mine, other) in self.differences.items()
        )


def strangers(columns: Mapping[str, Sequence[Run]], free: frozenset[str] = frozenset()) -> list[Stranger]:
    """The runs of a table whose shared protocol differs from the commonest of their column, or of the table.

    Runs of one column agree in all; columns of one benchmark may differ in the number of tasks, those of several in
    all that a data set brings with it.

    Args:
        columns: The runs of each column.
        free: Fields that the table's rows or columns are made of.
    """
    references = [_commonest(members) for members in columns.values()]
    first = _commonest(references) if references else None
    blocks: dict[str, Run] = {}
    found = []
    for members, reference in zip(columns.values(), references, strict=True):
        assert first is not None
        block = blocks.setdefault(reference.column.block, reference)
        beyond = _differences(block, reference, free | _PARTITION) or _differences(first, reference, free | _DATA)
        other = block if _differences(block, reference, free | _PARTITION) else first
        for run in members:
            own = _differences(reference, run, free)
            if own or beyond:
                found.append(Stranger(run, reference, own) if own else Stranger(run, other, beyond))
    return found


def must_share(columns: Mapping[str, Sequence[Run]], free: frozenset[str] = frozenset()) -> None:
    """Raises ``UserError`` when runs of different shared protocols would stand in one table.

    Runs that differ in no more than an option of ``paper_compat`` may stand there: they are marked.
    """
    for stranger in strangers(columns, free):
        if set(stranger.differences) == {"predictions"}:
            continue
        raise UserError(
            f"report: {stranger.reference.folder} and {stranger.run.folder} cannot stand in one table, their shared "
            f"protocols differ: {stranger}; report them apart, or mark the cells by --allow-mixed"
        )


def common(facts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The fields that have the same value in all."""
    first, *rest = [*facts] or [{}]
    return {name: value for name, value in first.items() if all(other.get(name, ...) == value for other in rest)}


def shared_notes(columns: Mapping[str, Sequence[Run]]) -> list[str]:
    """The shared protocol of a table in a line, and a line for each column that has more of its own."""
    shared = {column: _commonest(members).shared for column, members in columns.items() if members}
    same = common(shared.values())
    lines = [f"Shared protocol: {describe(same)}"] if same else []
    for column, facts in shared.items():
        own = {name: value for name, value in facts.items() if name not in same}
        if own:
            lines.append(f"{column}: {describe(own)}")
    return lines


def recipe_note(found: Mapping[str, Sequence[Run]], same: dict[str, Any]) -> str:
    """A row's recipe without what all rows have in common; by column where columns differ."""
    by_recipe: dict[str, list[str]] = {}
    for column, members in found.items():
        own = {name: value for name, value in members[0].recipe.items() if name not in same}
        by_recipe.setdefault(describe(own), []).append(column)
    if len(by_recipe) == 1:
        return next(iter(by_recipe))
    return "; ".join(f"{' and '.join(where)}: {recipe}" for recipe, where in by_recipe.items())


def describe(facts: dict[str, Any]) -> str:
    """Fields and values as they stand below a table."""
    return ", ".join(
        f"{name.removeprefix('method.').replace('_', ' ')} {written(value)}" for name, value in facts.items()
    )


def written(value: Any) -> str:
    """A value as it stands in a table: lists by slashes, hashes cut."""
    if isinstance(value, (list, tuple)):
        return "/".join(map(written, value)) or "none"
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{16,}", text) else text


def _commonest(runs: Sequence[Run]) -> Run:
    strict = [run for run in runs if "paper_compat" not in str(run.shared.get("predictions"))]
    ((digest, _),) = Counter(run.shared_hash for run in strict or runs).most_common(1)
    return next(run for run in runs if run.shared_hash == digest)


def _differences(one: Run, other: Run, ignored: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    if one.shared_hash == other.shared_hash:
        return {}
    if not (one.shared or other.shared):
        return {"protocol": (one.shared_hash, other.shared_hash)}
    names = sorted((one.shared.keys() | other.shared.keys()) - set(ignored))
    pairs = {name: (one.shared.get(name), other.shared.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
