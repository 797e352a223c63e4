"""The data set `folder`: any images in root/train/class/ and root/test/class/."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from benchmarks.index import SPLITS, TEST, TRAIN
from benchmarks.listing import Item, Listing
from benchmarks.public_codes import BACKBONE, BATCH_SIZE, IMAGE_SIZE, PILOT
from benchmarks.spec import BenchmarkSpec
from fmlora_dist.errors import UserError
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["SUFFIXES", "folder", "read", "safe_key"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of the files that are taken, in any case; others in the folders are left alone."""


def read(source: Source, split: Split) -> Listing:
    """Classes are the sorted names of the folders; images come in the order of their names.

    Raises:
        UserError: If train/ or test/ is missing, or a class has images in one of them only.
    """
    tops = {name.partition("/")[0] for name in source.names}
    if len(tops) == 1 and not tops & set(SPLITS):  # the archive of a folder
        source = source.under(tops.pop())
    found: dict[str, dict[str, list[str]]] = {name: {} for name in SPLITS}
    for name in source.names:
        parts = name.split("/")
        if len(parts) == 3 and parts[0] in SPLITS:
            files = found[parts[0]].setdefault(parts[1], [])
            if name.lower().endswith(SUFFIXES):
                files.append(name)
    classes = sorted(found["train"].keys() | found["test"].keys())
    if not classes:
        raise UserError(
            f"{source.name}: found no image in train/CLASS/ or test/CLASS/, expected {', '.join(SUFFIXES)} files in"
            " both; correct the source"
        )
    for name in classes:
        for part in SPLITS:
            if not found[part].get(name):
                raise UserError(
                    f"{source.name}: found no image in {part}/{name}/, expected some, since each class needs images to"
                    " train and to test; add them, or remove the class"
                )
    items = [
        Item(key=safe_key(file), label=label, split=number, file=source.full(file))
        for number in (TRAIN, TEST)
        for label, name in enumerate(classes)
        for file in sorted(found[SPLITS[number]][name])
    ]
    return Listing(items=tuple(items), classes=tuple(classes), split_rule="folders")


def safe_key(file: str) -> str:
    """A WebDataset key for a file's name: readable, and unique by a hash of all of it."""
    stem = file.rpartition(".")[0]
    digest = hashlib.sha256(file.encode()).hexdigest()[:12]
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60]
    return f"{safe}-{digest}" if safe else digest


@register_benchmark
def folder() -> BenchmarkSpec:
    """Images of one's own: transforms as PILOT and SD-LoRA have them on all data sets, SD-LoRA's backbone."""
    return BenchmarkSpec(
        name="folder",
        summary="any images in train/CLASS/ and test/CLASS/ of a folder or archive of yours",
        licence="yours",
        image_size=IMAGE_SIZE,
        task_counts=(5, 10),
        backbone_name=BACKBONE,
        epochs=10,
        batch_size=BATCH_SIZE,
        transforms={"pilot": PILOT, "sdlora": PILOT},
        normalisation="unit",
        read=read,
        download="images of your own",
    )
