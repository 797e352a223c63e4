"""Fashion-MNIST: the data set that every machine can install, so that the whole road is walked on real images in CI."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.icons.benchmark import DATA
from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Item, Listing
from benchmarks.spec import BenchmarkSpec
from benchmarks.transforms import Transform
from fmlora_dist.errors import UserError
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["fashion_mnist", "read", "read_idx"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = {TRAIN: "train", TEST: "t10k"}
SIDE = 28
_UNSIGNED_BYTES = 8
_LARGEST = 1 << 28  # bytes of one file; the published ones have 47 million


def read(source: Source, split: Split) -> Listing:
    """The four idx files, gzipped or not, in the order of the files.

    Raises:
        UserError: If one is missing, is no idx file of that shape, or images and labels do not fit together.
    """
    items = []
    for part, prefix in FILES.items():
        images = _read(source, f"{prefix}-images-idx3-ubyte", 3)
        labels = _read(source, f"{prefix}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (SIDE, SIDE):
            raise UserError(
                f"{prefix}-images-idx3-ubyte: found images of {images.shape[1]}×{images.shape[2]} pixels, expected"
                f" {SIDE}×{SIDE}; the file is not Fashion-MNIST's"
            )
        if len(images) != len(labels) or labels.max(initial=0) >= len(CLASSES):
            raise UserError(
                f"{prefix}-labels-idx1-ubyte: found {len(labels)} labels up to {labels.max(initial=0)} for"
                f" {len(images)} images, expected a label from 0 to {len(CLASSES) - 1} for each; download both again"
            )
        items += [
            Item(key=f"{prefix}-{number:05d}", label=int(label), split=part, pixels=pixels)
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True))
        ]
    return Listing(
        items=tuple(items),
        classes=CLASSES,
        published=Counts(classes=10, train=60_000, test=10_000, train_per_class=6_000, test_per_class=1_000),
    )


def read_idx(content: bytes, n_dimensions: int, where: str) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes: two zero bytes, type, number of dimensions, their lengths, the values.

    Raises:
        UserError: If the header is another, or the file is longer or shorter than it says.
    """
    magic, start = bytes((0, 0, _UNSIGNED_BYTES, n_dimensions)), 4 + 4 * n_dimensions
    if content[:4] != magic or len(content) < start:
        raise UserError(
            f"{where}: found a file that begins with {content[:4].hex() or 'nothing'}, expected {magic.hex()}, an idx"
            f" file of unsigned bytes in {n_dimensions} dimension(s); download it again"
        )
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if math.prod(shape) != len(content) - start:
        raise UserError(
            f"{where}: found {len(content) - start} values, expected {'×'.join(map(str, shape))} as its header says;"
            " download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read(source: Source, name: str, n_dimensions: int) -> NDArray[np.uint8]:
    found = name if name in source else f"{name}.gz"
    content = source.read(found)
    return read_idx(_unzip(content, found) if found.endswith(".gz") else content, n_dimensions, found)


def _unzip(content: bytes, where: str) -> bytes:
    try:
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        opened = decompressor.decompress(content, _LARGEST)
    except zlib.error as error:
        raise UserError(
            f"{where}: found a damaged gzip file ({error}), expected an idx file; download it again"
        ) from None
    if not decompressor.eof:
        raise UserError(
            f"{where}: found a gzip file that is cut short or holds more than {_LARGEST} bytes, expected an idx file;"
            " download it again"
        )
    return opened


@register_benchmark
def fashion_mnist() -> BenchmarkSpec:
    """70,000 grey images of 28×28 pixels in ten classes; N = 5, two classes a task.

    No code of the paper's family uses it, so transform and recipe are our own: those of icons, with its embedded
    backbone at 48 pixels, since that runs on a CPU and needs no network.
    """
    return BenchmarkSpec(
        name="fashion_mnist",
        summary="Fashion-MNIST, 10 classes of clothes; 28x28 grey, shown at 48x48 to the embedded backbone of icons",
        licence="MIT",
        image_size=48,
        task_counts=(5,),
        backbone_weights=DATA / "backbone.safetensors",
        epochs=2,
        batch_size=64,
        transforms={"default": Transform(crop_scale=(0.6, 1.0))},
        read=read,
        download="apt-get install dataset-fashion-mnist, or https://github.com/zalandoresearch/fashion-mnist",
    )
