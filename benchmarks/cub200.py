"""CUB-200-2011: 200 kinds of birds, by the lists that its authors publish with the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.image_folder import safe_key
from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Item, Listing
from benchmarks.public_codes import BACKBONE, BATCH_SIZE, IMAGE_SIZE, PILOT
from benchmarks.spec import BenchmarkSpec
from benchmarks.transforms import Transform
from fmlora_dist.errors import UserError
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["cub200", "read"]

MAMMOTH = Transform(interpolation="bicubic", train_resize=300, test_resize=256, test_interpolation="bicubic")
PARTS = {"1": TRAIN, "0": TEST}


def read(source: Source, split: Split) -> Listing:
    """The images that images.txt names, from the folder CUB_200_2011 or what holds it.

    Raises:
        UserError: If a list is missing or does not fit the others, or an image that it names is not there.
    """
    source = source.under("CUB_200_2011")
    names = _table(source, "classes.txt")
    classes = {identifier: number for number, identifier in enumerate(names)}
    labels, parts = _table(source, "image_class_labels.txt"), _table(source, "train_test_split.txt")
    items = []
    for image, name in _table(source, "images.txt").items():
        label = _of(image, labels, classes, "image_class_labels.txt")
        part = _of(image, parts, PARTS, "train_test_split.txt")
        folder = name.partition("/")[0]
        if folder != names[labels[image]]:
            raise UserError(
                f"images.txt: image {image}: found it in folder '{folder}', expected '{names[labels[image]]}' as"
                " image_class_labels.txt says; download both again"
            )
        if f"images/{name}" not in source:
            raise UserError(f"images.txt: found no file images/{name} in {source.name}, expected it; unpack it again")
        items.append(Item(key=safe_key(name), label=label, split=part, file=source.full(f"images/{name}")))
    return Listing(
        items=tuple(items),
        classes=tuple(names.values()),
        published=Counts(classes=200, train=5_994, test=5_794),
    )


def _table(source: Source, name: str) -> dict[str, str]:
    """Lines of a number and a value, by the number as text, in the order of the file."""
    table = {}
    for number, line in enumerate(source.read(name).decode("utf-8", "replace").splitlines(), 1):
        identifier, _, value = line.strip().partition(" ")
        if not value or not identifier.isdecimal() or identifier in table:
            raise UserError(
                f"{name}, line {number}: found '{line[:80]}', expected a new number and a value; restore it"
            )
        table[identifier] = value
    return table


def _of(image: str, table: Mapping[str, str], meanings: Mapping[str, int], name: str) -> int:
    value = table.get(image, "nothing")
    if value not in meanings:
        raise UserError(
            f"{name}: found {value[:40]} for image {image}, expected one of {', '.join(list(meanings)[:3])} …;"
            " restore the list"
        )
    return meanings[value]


@register_benchmark
def cub200() -> BenchmarkSpec:
    """200 classes, the official 5,994 / 5,794 images; N = 10 in HiDe-Prompt and mammoth.

    - Split: the official train_test_split.txt, as HiDe-Prompt reads it. PILOT and SD-LoRA read ready-made folders and
      mammoth an archive of its own, whose splits are not established; `fmlora prepare folder` takes such folders.
    - Transforms: PILOT, SD-LoRA, HiDe-Prompt and InfLoRA's data class do the same. mammoth resizes to 300×300 and cuts
      224 out of it, and normalises as ImageNet (`--backbone.normalisation imagenet`); all others feed [0, 1].
    - Recipe: 20 epochs of batches of 128, as PILOT's fine-tuning; InfLoRA, SD-LoRA and CODA-Prompt have none for CUB,
      HiDe-Prompt 50 epochs of 24 × 8.
    """
    return BenchmarkSpec(
        name="cub200",
        summary="CUB-200-2011, 200 kinds of birds, 5,994 / 5,794 images",
        licence="none stated by its authors; photographs from Flickr, for research",
        image_size=IMAGE_SIZE,
        task_counts=(5, 10, 20),
        backbone_name=BACKBONE,
        epochs=20,
        batch_size=BATCH_SIZE,
        transforms={"pilot": PILOT, "sdlora": PILOT, "hide": PILOT, "inflora": PILOT, "mammoth": MAMMOTH},
        normalisation="unit",
        read=read,
        download="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    )
