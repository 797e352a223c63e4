"""What a benchmark is: where its shards lie, and the defaults of a run on it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.index import SPLITS, Index
from benchmarks.listing import Listing
from benchmarks.transforms import Transform
from fmlora_dist.errors import UserError, nearest

__all__ = ["BenchmarkSpec", "Cut", "select"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A smaller benchmark made of a larger one: a function of the names in its index only, with nothing to draw.

    The classes are those whose names have the smallest SHA-256. Of each class and split the domains in turn give
    the image whose key has the next smallest SHA-256, so all domains stay as evenly present as they can be.
    """

    of: str
    """Name of the benchmark that is cut; its shards are read."""
    n_classes: int
    """Number of classes kept (all, where there are fewer)."""
    max_train: int
    """Most training images of a class."""
    max_test: int
    """Most test images of a class."""

    def apply(self, index: Index, name: str) -> Index:
        """The cut of `index`, called `name`."""
        by_name = sorted(range(len(index.classes)), key=lambda number: _digest(index.classes[number]))
        rows: list[int] = []
        for number in by_name[: self.n_classes]:
            for split, most in zip(range(len(SPLITS)), (self.max_train, self.max_test), strict=True):
                rows += _in_turn(index, np.flatnonzero((index.label == number) & (index.split == split)))[:most]
        return select(index, np.array(sorted(rows), dtype=np.int64), name)


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """The registered description of a benchmark."""

    name: str
    summary: str
    """One line for ``fmlora list``."""
    licence: str
    """Under which licence the images are."""
    image_size: int
    """Height and width in pixels at which images enter the network."""
    task_counts: tuple[int, ...]
    """The usual numbers of tasks, class-incremental."""
    backbone_name: str = ""
    """Default backbone: its full timm tag; '' where the metadata of `backbone_weights` names the architecture."""
    backbone_weights: Path | str = ""
    """File of the default backbone's weights; '' for those of its tag."""
    epochs: int
    """Default epochs of a task."""
    batch_size: int
    """Default global batch size."""
    transforms: Mapping[str, Transform] = field(default_factory=lambda: {"default": Transform()})
    """Transforms by name; the first is the default, the others are what other public codes do."""
    normalisation: str = "model"
    """Default of the backbone's `normalisation`: what most published tables on this benchmark feed it."""
    splits: tuple[str, ...] = ()
    """Ways to split into training and test among which the user of `fmlora prepare` must choose; empty where the data
    themselves say it."""
    read: Callable[..., Listing] | None = None
    """Reader of the published files for `fmlora prepare`: (source: Source, split: Split) -> Listing."""
    download: str = ""
    """Where users get the published files."""
    embedded: Path | None = None
    """Folder of the shards that ship with the package."""
    cut: Cut | None = None
    """Which part of another benchmark this one is."""

    @property
    def usual_tasks(self) -> int:
        """Number of class-incremental tasks where the user names none: the middle one of `task_counts`."""
        return self.task_counts[len(self.task_counts) // 2]

    def transform(self, name: str = "") -> Transform:
        """The transform of that name, the default one if ''. Raises ``UserError`` that names the nearest one."""
        name = name or next(iter(self.transforms))
        if name not in self.transforms:
            raise UserError(f"transform: benchmark '{self.name}' has no '{name}': {nearest(name, self.transforms)}")
        return self.transforms[name]

    def folder(self, data_root: Path | str = "") -> Path | str:
        """Where the shards and their index lie: `data_root` if given, the embedded folder if not.

        Args:
            data_root: A local folder, or an fsspec URL (s3://, https://, …), which is given back as it is.

        Raises:
            UserError: If there is no such local folder.
        """
        if not data_root:
            if self.embedded is None:
                raise UserError(
                    f"benchmark '{self.name}': found no data, expected a folder of its shards, since none ship with the"
                    " package; make them with `fmlora prepare` and name their folder with --data-root"
                )
            return self.embedded
        if "://" in str(data_root):
            return str(data_root)
        data_root = Path(data_root)
        if not data_root.is_dir():
            raise UserError(
                f"data-root: found no folder {data_root}, expected the shards of benchmark '{self.name}'; correct the"
                f" path{', or leave it out to use the embedded data' if self.embedded else ''}"
            )
        return data_root

    def load(self, data_root: Path | str = "") -> Index:
        """The benchmark's index, validated and cut.

        Raises:
            UserError: If the folder is missing, its index is invalid or that of another benchmark.
        """
        folder = self.folder(data_root)
        index = Index.load(folder)
        expected = self.cut.of if self.cut else self.name
        if index.name != expected:
            raise UserError(
                f"{folder}: found the index of benchmark '{index.name}', expected '{expected}'; choose the benchmark"
                " that the folder holds, or another folder"
            )
        return self.cut.apply(index, self.name) if self.cut else index


def select(index: Index, rows: NDArray[np.int64], name: str) -> Index:
    """The index of the given rows alone, called `name`. Classes without a row go, and labels close the gaps.

    Shards and domains stay, so that their numbers keep their meaning.
    """
    kept = np.unique(index.label[rows])
    return dataclasses.replace(
        index,
        name=name,
        classes=tuple(index.classes[number] for number in kept),
        list_order=tuple(np.searchsorted(kept, [n for n in index.list_order if n in kept]).tolist()),
        keys=tuple(index.keys[row] for row in rows),
        shard=index.shard[rows],
        offset=index.offset[rows],
        size=index.size[rows],
        crc32=index.crc32[rows],
        height=index.height[rows],
        width=index.width[rows],
        label=np.searchsorted(kept, index.label[rows]).astype(np.int32),
        domain=index.domain[rows],
        split=index.split[rows],
    )


def _in_turn(index: Index, rows: NDArray[np.int64]) -> list[int]:
    """The rows by their keys' hashes, dealt domain by domain: first the first of each domain, then the second, …"""
    by_key = sorted(rows.tolist(), key=lambda row: _digest(index.keys[row]))
    seen: dict[int, int] = {}
    turn = {}
    for row in by_key:
        domain = int(index.domain[row])
        turn[row] = seen[domain] = seen.get(domain, 0) + 1
    return sorted(by_key, key=turn.__getitem__)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
