"""The ledger of docs/reproducibility.md: method by benchmark, the number reached here and the published ones.

It is made from the result files below docs/results and from published.csv.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmlora_dist.registry import list_methods
from fmlora_dist.report.aggregate import Column, Run, read_result
from fmlora_dist.report.measures import spread
from fmlora_dist.report.protocols import common, describe
from fmlora_dist.report.published import published_lines

__all__ = ["ledger"]

RAN_BY = "ran_by.txt"
"""Beside or above result files: one line that says who ran them, on what."""
ABLATION = "ablation"
"""So begin the folders whose runs have no line here: they are of a method with parts left out or changed."""
OUR_PACKAGES = ("baselines.", "fmlora_dist.")
HEADER = "| method | here, over tasks | here, over images | who ran it, on what | published |"
OVER = {"acc": "t", "aaa": "t", "acc_samples": "i", "aaa_samples": "i", "": "?"}
"""What a published mean is taken over: tasks, images, or not established."""


PAPER = [
    *(Column("imagenet_r", "cil", n) for n in (5, 10, 20)),
    *(Column("cifar100", "cil", 10), Column("cub200", "cil", 10)),
    *(Column("domainnet", "cil", 5), Column("domainnet", "dil", 6)),
]
"""The columns of the grid ``paper``, which are in the ledger whether or not anybody has run them."""


def ledger(results: Path) -> str:
    """The ledger as Markdown.

    Args:
        results: A folder with any number of result files in it, at any depth; it need not exist.

    Raises:
        ValueError: a result file cannot be read.
    """
    ours, published, sources = _ours(results), published_lines(), _Sources()
    # Plugins that happen to be installed are not ours to list.
    methods = [name for name, cls in list_methods().items() if cls.__module__.startswith(OUR_PACKAGES)]
    known = {_place(line)[0] for line in published if line["method"] in methods} | {column for column, _ in ours}
    parts = []
    for column in [*PAPER, *sorted(known - set(PAPER))]:
        scenario = "" if column.scenario == "cil" else f" ({column.scenario})"
        lines = [f"### {column.benchmark}{scenario}, N = {column.n_tasks}", "", HEADER, "|---|---|---|---|---|"]
        for method in methods:
            here = ours.get((column, method), [("", "", "")])
            theirs = [_published_text(line, sources) for line in published if _place(line) == (column, method)]
            cells = ["<br>".join(parts) for parts in (*zip(*here, strict=True), theirs)]
            lines.append(f"| `{method}` | {' | '.join(cells)} |".replace("  ", " "))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, sources.text()]) + "\n"


class _Sources:
    """Where published numbers come from, numbered as they are first met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, source: str) -> int:
        return self._numbers.setdefault(source, len(self._numbers) + 1)

    def text(self) -> str:
        return "\n".join(["### Sources", "", *(f"{number}. {source}" for source, number in self._numbers.items())])


def _ours(results: Path) -> dict[tuple[Column, str], list[tuple[str, str, str]]]:
    """For each column and method, a recipe a line: (over tasks, over images, who, on what, and in what it differs)."""
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for file in sorted(results.rglob("result.json")):
        run = read_result(file)
        if file.relative_to(results).parts[0].startswith(ABLATION):
            continue
        if run.shared.get("tested_on", "test") == "test":  # a search's runs are measured on held-out training data
            hashes = run.shared_hash, run.recipe_hash
            groups[run.column, run.method, _ran_by(file, results), hashes].append(run)
    facts = {key: runs[0].shared | runs[0].recipe for key, runs in groups.items()}
    lines = defaultdict(list)
    for key, runs in groups.items():
        column, method, who, _ = key
        tasks, images = (_accuracies(runs, *names) for names in (("acc", "aaa"), ("acc_samples", "aaa_samples")))
        same = common(each for (*place, _, _), each in facts.items() if place == [column, method])
        # What is left out of a benchmark is said in any case: else its number would be taken for that of the whole.
        told = {"excluded_domains"} if facts[key].get("excluded_domains") else set()
        own = describe({name: value for name, value in facts[key].items() if name not in same or name in told})
        seeds = len({run.seed for run in runs})
        number = f"{seeds} seed{'s' if seeds > 1 else ''}"
        parts = [who, str(runs[0].shared["backbone"]), number, own]
        lines[column, method].append((tasks, images, "; ".join(filter(None, parts))))
    return lines


def _ran_by(file: Path, results: Path) -> str:
    for folder in file.parents:
        if (folder / RAN_BY).is_file():
            return (folder / RAN_BY).read_text(encoding="utf-8").strip()
        if folder == results:
            break
    return "not stated"


def _accuracies(runs: Sequence[Run], *names: str) -> str:
    found = [spread(runs, name) for name in names]
    return " / ".join("n/a" if each is None else _spread(each.mean, each.std) for each in found)


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")


def _place(line: dict[str, str]) -> tuple[Column, str]:
    return Column(line["benchmark"], line["scenario"], int(line["n_tasks"])), line["method"]


def _published_text(line: dict[str, str], sources: _Sources) -> str:
    figures = []
    for name in ("acc", "aaa"):
        mean, std = line[f"{name}_mean"], line[f"{name}_std"]
        if mean:
            figures.append(f"{_spread(float(mean), float(std) if std else None)} {OVER[line[f'{name}_metric']]}")
        else:
            figures.append("–")
    source = f"{line['source']}. Backbone: {line['backbone'] or 'not stated'}"
    return f"{' / '.join(figures)} [{sources.number(source)}]"
