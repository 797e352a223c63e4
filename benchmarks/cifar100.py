"""CIFAR100, from its python version as published: three pickles, which are read and not unpickled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Item, Listing
from benchmarks.plain_pickle import read_plain_pickle
from benchmarks.public_codes import BACKBONE, BATCH_SIZE, IMAGE_SIZE, PILOT
from benchmarks.spec import BenchmarkSpec
from benchmarks.transforms import Transform
from fmlora_dist.errors import UserError
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["cifar100", "read"]

SIDE = 32
FILES = {"train": TRAIN, "test": TEST}

CODA = Transform(crop_scale=(0.08, 1.0), test_resize=224, test_interpolation="bilinear")
HIDE = Transform(interpolation="bicubic", brightness=63 / 255, test_resize=256, test_interpolation="bicubic")
LIBCONTINUAL = Transform(crop_scale=(0.05, 1.0), test_resize=224, test_interpolation="bicubic")
MAMMOTH = Transform(interpolation="bicubic", test_resize=224, test_interpolation="bicubic")


def read(source: Source, split: Split) -> Listing:
    """`meta`, `train` and `test`, from the folder cifar-100-python or what holds it; items in the order of the files.

    Raises:
        UserError: If a file is missing, is no pickle of plain values, or does not hold what the published ones do.
    """
    source = source.under("cifar-100-python")
    classes = _names(_field(_load(source, "meta"), "fine_label_names", "meta"))
    items: list[Item] = []
    for name, part in FILES.items():
        batch = _load(source, name)
        data, labels = _field(batch, "data", name), _field(batch, "fine_labels", name)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
            found = f"shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise UserError(f"{name}: data: found {found}, expected rows of {3 * SIDE * SIDE} bytes; download it again")
        if not isinstance(labels, list) or len(labels) != len(data):
            raise UserError(f"{name}: fine_labels: found another number than {len(data)} images; download it again")
        wrong = [label for label in labels if type(label) is not int or not 0 <= label < len(classes)]
        if wrong:
            raise UserError(
                f"{name}: fine_labels: found {str(wrong[0])[:40]}, expected 0 to {len(classes) - 1}; download it again"
            )
        pixels = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        items += [
            Item(key=f"{name}-{number:05d}", label=label, split=part, pixels=pixels[number])
            for number, label in enumerate(labels)
        ]
    return Listing(
        items=tuple(items),
        classes=classes,
        published=Counts(classes=100, train=50_000, test=10_000, train_per_class=500, test_per_class=100),
    )


def _load(source: Source, name: str) -> dict[Any, Any]:
    value = read_plain_pickle(source.read(name), name)
    if not isinstance(value, dict):
        raise UserError(f"{name}: found {type(value).__name__}, expected a dict; download it again")
    return value


def _field(batch: dict[Any, Any], name: str, where: str) -> Any:
    """The value of a key, which Python 2 wrote as bytes."""
    if name.encode() not in batch:
        raise UserError(f"{where}: found no '{name}', expected CIFAR100's python version; download it again")
    return batch[name.encode()]


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(value, bytes) for value in values):
        raise UserError("meta: fine_label_names: found something else, expected a list of names; download it again")
    return tuple(value.decode("utf-8", "replace") for value in values)


@register_benchmark
def cifar100() -> BenchmarkSpec:
    """100 classes, the official 50,000 / 10,000 images of 32×32 pixels, enlarged to 224; N = 10 in every public code.

    - Transforms: PILOT and SD-LoRA (the default) crop from 5 % of the area and test on a centre crop out of 256;
      CODA-Prompt and InfLoRA crop from 8 % and test on the whole image at 224; LibContinual's SD-LoRA crops from 5 %
      and tests on the whole image; HiDe-Prompt and mammoth enlarge bicubically, HiDe-Prompt with a jitter of
      brightness.
    - Normalisation: all feed [0, 1] but HiDe-Prompt (CIFAR's mean and deviation, `--backbone.normalisation cifar`) and
      mammoth's default (`imagenet`).
    - Recipe: 20 epochs of batches of 128 as SD-LoRA, InfLoRA and CODA-Prompt; HiDe-Prompt has 50 epochs of 24 × 8,
      PILOT 5 for its prompt methods.
    """
    return BenchmarkSpec(
        name="cifar100",
        summary="CIFAR100, 100 classes, 50,000 / 10,000 images",
        licence="none stated by its authors",
        image_size=IMAGE_SIZE,
        task_counts=(5, 10, 20),
        backbone_name=BACKBONE,
        epochs=20,
        batch_size=BATCH_SIZE,
        transforms={
            "pilot": PILOT,
            "sdlora": PILOT,
            "coda": CODA,
            "inflora": CODA,
            "libcontinual": LIBCONTINUAL,
            "hide": HIDE,
            "mammoth": MAMMOTH,
        },
        normalisation="unit",
        read=read,
        download="https://www.cs.toronto.edu/~kriz/cifar.html (python version)",
    )
