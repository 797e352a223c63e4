"""What each stage of the backbone's pretraining learns: its recipe, and its drawings with their labels."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor, from_numpy, nn, tensor

from benchmarks.icons.catalogue import EVERYDAY, Drawing, Package
from benchmarks.icons.coverage import rasterise
from benchmarks.index import Index

__all__ = ["STAGES", "Data", "Recipe", "pretraining_data"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stage trains: AdamW, linear warm-up, cosine to zero, cross-entropy with label smoothing.

    The target of a drawing is the same share for each of its labels.
    """

    labels: Literal["names", "words"]
    """`names`: each drawing's whole name; `words`: the words in it. Of names that hold a class, or another name of one,
    neither: a `camera-off` shows a camera."""
    epochs: int
    batch_size: int
    learning_rate: float
    patch_drop: float
    """Share of an image's patches that a training step leaves out: so it is cheaper, and no patch decides alone."""
    seed: int = 2026
    weight_decay: float = 0.05
    warmup_steps: int = 300
    label_smoothing: float = 0.1
    least_families: int = 6
    """Fewest families that use a label."""
    least_drawings: int = 12
    """Fewest drawings that have a label."""
    most_test: int = 5000
    """Most drawings of test-side families."""
    threads: int = 2


STAGES = (
    Recipe(labels="names", epochs=12, batch_size=128, learning_rate=1e-3, patch_drop=0.25),
    Recipe(labels="words", epochs=8, batch_size=128, learning_rate=7e-4, patch_drop=0.25),
)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Ink drawings as coverage, (n, S, S) uint8 with 255 for ink, and their labels; `test` are test-side families."""

    train: Tensor
    train_labels: Tensor
    """(n, W) int64: numbers into `labels`, then -1."""
    test: Tensor
    test_labels: Tensor
    labels: list[str]


def pretraining_data(package: Package, benchmark: Path, recipe: Recipe) -> Data:
    """Render the drawings that are no concept of the benchmark, each SVG body once."""
    test_houses = set(json.loads((benchmark / "recipe.json").read_text(encoding="utf-8"))["test_houses"])
    classes = Index.load(benchmark).classes
    sides: dict[bool, list[Drawing]] = {False: [], True: []}
    bodies = set()
    for concept, drawings in package.concepts.items():
        if _shows_a_class(concept, classes):
            continue
        for drawing in drawings:
            if drawing.svg not in bodies:
                bodies.add(drawing.svg)
                sides[drawing.house in test_houses].append(drawing)
    labels = _vocabulary(sides[False], recipe)
    number = {label: position for position, label in enumerate(labels)}
    tensors = []
    for side in (False, True):
        known = [drawing for drawing in sides[side] if not number.keys().isdisjoint(_labels(drawing, recipe))]
        if side:
            known = sorted(known, key=lambda drawing: drawing.hash("pretrain"))[: recipe.most_test]
        known, coverage = rasterise(known)
        size = coverage.shape[1] // 2
        small = np.rint(coverage.reshape(-1, size, 2, size, 2).mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
        mine = [tensor(sorted(number[name] for name in _labels(one, recipe) if name in number)) for one in known]
        tensors += [from_numpy(small), nn.utils.rnn.pad_sequence(mine, batch_first=True, padding_value=-1)]
    train, train_labels, test, test_labels = tensors
    return Data(train=train, train_labels=train_labels, test=test, test_labels=test_labels, labels=labels)


def _shows_a_class(concept: str, classes: Sequence[str]) -> bool:
    words = concept.split("-")
    phrases = {"-".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return any(not phrases.isdisjoint((name, *EVERYDAY.get(name, ()))) for name in classes)


def _labels(drawing: Drawing, recipe: Recipe) -> set[str]:
    return {drawing.concept} if recipe.labels == "names" else set(drawing.concept.split("-"))


def _vocabulary(drawings: Sequence[Drawing], recipe: Recipe) -> list[str]:
    families = defaultdict(list)
    for drawing in drawings:
        for label in _labels(drawing, recipe):
            families[label].append(drawing.family)
    return sorted(
        label
        for label, found in families.items()
        if len(found) >= recipe.least_drawings and len(set(found)) >= recipe.least_families and not label.isdigit()
    )
