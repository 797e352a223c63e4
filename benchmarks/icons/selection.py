"""Which drawings become the benchmark: houses to splits, concepts to classes, drawings to renditions.

Everything that looks random follows from the seed and from hashes of names, so the same package gives the same choice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.icons.catalogue import Drawing
from benchmarks.icons.coverage import first_of_each
from benchmarks.icons.renditions import RENDITIONS
from benchmarks.index import TEST, TRAIN

__all__ = ["Chosen", "Rules", "choose", "split_houses", "spread"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The numbers behind the choice."""

    seed: int = 2026
    """Chooses the classes among the eligible concepts and breaks ties between house splits."""
    concepts: int = 200
    """Classes of the benchmark."""
    most: int = 43
    """Most drawings of one concept: all files of the benchmark, backbone and all, stay below 25 MB."""
    least_train: int = 20
    """Fewest training drawings of an eligible concept."""
    least_test: int = 6
    """Fewest test drawings of an eligible concept: one of each rendition."""
    test_share: float = 0.25
    """Share of a concept's drawings that may be test drawings."""
    same: float = 0.95
    """Correlation of signatures from which two drawings count as copies of each other."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One drawing of the benchmark."""

    drawing: Drawing
    coverage: NDArray[np.uint8]
    """(SIDE, SIDE), 255 where there is ink."""
    rendition: str
    split: int


def split_houses(concepts: Mapping[str, Sequence[Drawing]], rules: Rules, trials: int = 4000) -> frozenset[str]:
    """Choose the houses whose drawings are test drawings only.

    Of `trials` random sets of houses with about a third of all drawings (more than the test share, since the cap on a
    concept cuts them back), the one that leaves most concepts with enough drawings on both sides.
    """
    names = sorted({drawing.house for drawings in concepts.values() for drawing in drawings})
    column = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(concepts), len(names)), dtype=np.int64)
    for row, drawings in enumerate(concepts.values()):
        for drawing in drawings:
            table[row, column[drawing.house]] += 1
    sizes, total = table.sum(axis=0), int(table.sum())
    generator = random.Random(rules.seed)
    best: tuple[int, frozenset[str]] = (-1, frozenset())
    for _ in range(trials):
        order = generator.sample(names, len(names))
        filled = np.cumsum([sizes[column[name]] for name in order])
        test = order[: int(np.searchsorted(filled, total * (rules.test_share + generator.uniform(0.0, 0.08))))]
        inside = table[:, [column[name] for name in test]].sum(axis=1)
        outside = table.sum(axis=1) - inside
        score = int(((inside >= rules.least_test) & (outside >= rules.least_train)).sum())
        if score > best[0]:
            best = (score, frozenset(test))
    return best[1]


def choose(
    drawings: Sequence[Drawing], coverage: NDArray[np.uint8], rules: Rules
) -> tuple[list[Chosen], frozenset[str]]:
    """Choose classes, drawings, splits and renditions.

    Args:
        drawings: All drawings of all concepts that may become classes.
        coverage: (n, SIDE, SIDE) of the same drawings.
        rules: The numbers.

    Returns:
        The chosen drawings, by concept, and the houses on the test side.
    """
    order = sorted(range(len(drawings)), key=lambda number: drawings[number].hash())
    drawings, coverage = [drawings[number] for number in order], coverage[order]
    concepts: dict[str, list[int]] = {}
    for concept in sorted({drawing.concept for drawing in drawings}):
        members = [number for number, drawing in enumerate(drawings) if drawing.concept == concept]
        kept = first_of_each([drawings[number] for number in members], coverage[members], rules.same)
        concepts[concept] = [members[position] for position in kept]
    test_houses = split_houses({name: [drawings[n] for n in numbers] for name, numbers in concepts.items()}, rules)

    sides: dict[str, tuple[list[int], list[int]]] = {}
    for concept, numbers in concepts.items():
        test = [number for number in numbers if drawings[number].house in test_houses]
        train = [number for number in numbers if drawings[number].house not in test_houses]
        if len(test) >= rules.least_test and len(train) >= rules.least_train:
            sides[concept] = _cap(drawings, train, test, rules)
    classes = random.Random(rules.seed).sample(sorted(sides), min(rules.concepts, len(sides)))

    listed = [(number, split) for name in sorted(classes) for split in (TRAIN, TEST) for number in sides[name][split]]
    # Once more over all classes together: a box that one family calls `box` may be another's `cube`.
    numbers = [number for number, _ in listed]
    distinct = first_of_each([drawings[number] for number in numbers], coverage[numbers], rules.same)
    chosen: list[Chosen] = []
    for concept in sorted(classes):
        for split in (TRAIN, TEST):
            mine = [
                listed[p][0] for p in distinct if listed[p][1] == split and drawings[listed[p][0]].concept == concept
            ]
            for number, rendition in spread(mine, drawings):
                chosen.append(
                    Chosen(drawing=drawings[number], coverage=coverage[number], rendition=rendition, split=split)
                )
    return chosen, test_houses


def spread(numbers: Iterable[int], drawings: Sequence[Drawing]) -> list[tuple[int, str]]:
    """Give each of one class's drawings on one side a rendition: ranked by a hash of its name, then dealt in turn.

    So each rendition has its share on each side. Where the dealing starts follows from the concept's name, so that
    no rendition gets all the remainders.
    """
    ranked = sorted(numbers, key=lambda number: drawings[number].hash("rendition"))
    if not ranked:
        return []
    names = list(RENDITIONS)
    start = sum(drawings[ranked[0]].concept.encode()) + len(ranked)
    return [(number, names[(start + rank) % len(names)]) for rank, number in enumerate(ranked)]


def _cap(
    drawings: Sequence[Drawing], train: Sequence[int], test: Sequence[int], rules: Rules
) -> tuple[list[int], list[int]]:
    """Cut both sides back to `most` drawings in the wanted shares; each family's first drawing before any's second."""
    n_test = min(len(test), round(rules.most * rules.test_share), max(rules.least_test, len(train) * 2 // 5))
    return _by_turns(drawings, train)[: rules.most - n_test], _by_turns(drawings, test)[:n_test]


def _by_turns(drawings: Sequence[Drawing], numbers: Sequence[int]) -> list[int]:
    seen: Counter[str] = Counter()
    turns = []
    for position, number in enumerate(numbers):
        turns.append((seen[drawings[number].family], position, number))
        seen[drawings[number].family] += 1
    return [number for _, _, number in sorted(turns)]
