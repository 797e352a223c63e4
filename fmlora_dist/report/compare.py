"""What differs between two runs, in their configs and in their results."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fmlora_dist.errors import UserError
from fmlora_dist.record import load_result
from fmlora_dist.report.aggregate import flatten
from fmlora_dist.report.protocols import written

__all__ = ["Differing", "compare_runs", "print_differing"]

_MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Differing:
    """A part of two runs' records with the fields that differ in it."""

    part: str
    fields: dict[str, tuple[Any, Any]]
    """By dotted names; None where one run does not have the field."""
    note: str = ""
    """What is said of the part as a whole."""


def compare_runs(one: Path, other: Path) -> list[Differing]:
    """The parts in which two run directories may differ, in the order of a reader's interest.

    Raises:
        UserError: a folder holds no run. One that is not complete is compared by its config alone.
    """
    mine, others = _record(one), _record(other)
    parts = [_part("config", mine, others)]
    if "schema" not in mine or "schema" not in others:
        unfinished = " and ".join(str(f) for f, r in ((one, mine), (other, others)) if "schema" not in r)
        return [*parts, Differing(part="result", fields={}, note=f"not complete: {unfinished}")]
    protocols = [record.get("protocol") or {} for record in (mine, others)]
    parts.append(_between("shared protocol", *(protocol.get("shared") or {} for protocol in protocols)))
    recipe = _between("recipe", *(protocol.get("recipe") or {} for protocol in protocols))
    said = {name: pair for name, pair in recipe.fields.items() if name not in parts[0].fields}
    note = "differs only in what the config says" if recipe.fields and not said else ""
    parts.append(Differing(part=recipe.part, fields=said, note=note))
    parts += [_part(name, mine, others) for name in ("metrics", "parameters")]
    parts.append(_matrix(mine.get("accuracy_matrix") or [], others.get("accuracy_matrix") or []))
    parts += [_between("tasks", *({name: record.get(name) for name in _TASKS} for record in (mine, others)))]
    parts += [_between("work", *({name: record.get(name) for name in _WORK} for record in (mine, others)))]
    parts += [_part(name, mine, others) for name in ("seconds", "versions")]
    return parts


_TASKS = ("test_sizes", "ranks", "complexity", "drift", "weight_change", "steps")
_WORK = ("world_size", "global_batch_size", "threads", "peak_memory_bytes", "git")


def print_differing(parts: list[Differing], names: tuple[str, str], console: Console) -> None:
    """Print the parts that differ, numbers with their difference; the others are named as equal."""
    for part in parts:
        if part.note:
            console.print(Text(f"{part.part}: {part.note}"))
        if part.fields:
            shown = RichTable(title=part.part, title_justify="left", header_style="bold")
            shown.add_column("field")
            for name in (*names, "difference"):
                shown.add_column(Text(name, overflow="fold"), justify="right")
            for name, (one, other) in part.fields.items():
                shown.add_row(*map(Text, (name, _text(one), _text(other), _difference(one, other))))
            console.print(shown)
    same = [part.part for part in parts if not part.fields and not part.note]
    if same:
        console.print(Text(f"equal: {', '.join(same)}", style="dim"))


def _record(folder: Path) -> dict[str, Any]:
    """The result, or the config alone of a run that is not complete."""
    file = folder if folder.is_file() else folder / "result.json"
    if file.exists():
        try:
            return load_result(file)
        except ValueError as error:
            raise UserError(f"compare: {file} {error}; give the directory of a run") from error
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"compare: {folder} holds neither result.json nor config.yaml; give the directory of a run")
    try:
        return {"config": yaml.safe_load(config.read_text(encoding="utf-8"))}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"compare: {config} is no YAML: {error}") from error


def _part(name: str, one: dict[str, Any], other: dict[str, Any]) -> Differing:
    return _between(name, one.get(name) or {}, other.get(name) or {})


def _between(part: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Differing:
    mine, others = flatten(dict(one)), flatten(dict(other))
    names = dict.fromkeys([*mine, *others])
    pairs = {name: (mine.get(name), others.get(name)) for name in names}
    return Differing(part=part, fields={name: pair for name, pair in pairs.items() if pair[0] != pair[1]})


def _matrix(one: list[list[float]], other: list[list[float]]) -> Differing:
    """Accuracy matrices cell by cell: where they part first, and where most."""
    name = "accuracy matrix"
    if [len(row) for row in one] != [len(row) for row in other]:
        return Differing(part=name, fields={}, note=f"{len(one)} and {len(other)} rows of different lengths")
    first = len(one[0]) if one else 1  # a joint run has its last row only
    cells = {
        (first + t, i + 1): (mine, others)
        for t, rows in enumerate(zip(one, other, strict=True))
        for i, (mine, others) in enumerate(zip(*rows, strict=True))
        if mine != others
    }
    if not cells:
        return Differing(part=name, fields={})
    (after, task), most = max(cells.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    start = min(cells)
    note = (
        f"{len(cells)} cells differ, the first after task {start[0]} on task {start[1]}, most after task {after} on "
        f"task {task}: {most[0]:.2f} and {most[1]:.2f}"
    )
    last = first + len(one) - 1
    return Differing(
        part=name,
        fields={f"after task {t} on task {i}": pair for (t, i), pair in cells.items() if t == last},
        note=note,
    )


def _text(value: Any) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return "/".join(map(_text, value)) if isinstance(value, list) else written(value)


def _difference(one: Any, other: Any) -> str:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return f"{other - one:+.4g}" if numbers else ""
