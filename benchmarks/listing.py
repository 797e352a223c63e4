"""What a data set's published files hold: the contract between a data set's reader and `fmlora prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.index import TRAIN

__all__ = ["Counts", "Item", "Listing"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One image to be stored: a file of the source, or pixels."""

    key: str
    """Unique; letters, digits, `-` and `_` only, since WebDataset cuts a member's name at its first dot."""
    label: int
    """Position of its class in the listing's `classes`."""
    domain: int = 0
    """Position of its domain in the listing's `domains`."""
    split: int = TRAIN
    """`TRAIN` or `TEST`."""
    file: str = ""
    """Name of its file in the source; '' where there are `pixels`."""
    pixels: NDArray[np.uint8] | None = None
    """[H, W] or [H, W, 3], where the data set has no image files; stored as PNG."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is published about a data set; None or empty where nothing is."""

    classes: int
    train: int | None = None
    test: int | None = None
    images: int | None = None
    """Both splits together, where the split is the user's choice."""
    train_per_class: int | None = None
    test_per_class: int | None = None
    train_per_domain: Mapping[str, int] = field(default_factory=dict)
    test_per_domain: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """All images of a data set, in the order in which they are stored."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    """Class names in the data set's own numbering (sorted folder names where it has none)."""
    domains: tuple[str, ...] = ("all",)
    split_rule: str = "official"
    """Which split this is, as it stands in the protocol: 'official', 'coda:<sha256>', 'random:<seed>', 'folders'."""
    list_order: tuple[int, ...] = ()
    """Class numbers in the numbering of the split's list, where that is another than the data set's; for the order
    rules 'list' and 'python'."""
    published: Counts | None = None
    """The counts that the items must have, split by split."""
