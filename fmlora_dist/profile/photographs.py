"""Photograph-like JPEGs for a measurement: as a torchvision ImageFolder, and as shards of the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from benchmarks.index import TEST, TRAIN, Index
from benchmarks.shards import Sample, write_shards

__all__ = ["CLASSES", "HEIGHT", "WIDTH", "write_photographs"]

CLASSES, HEIGHT, WIDTH = 20, 400, 500
QUALITY = 88
_FIELDS = 12
_SPARE = 100
"""Pixels by which a field is larger than an image, so that one field serves many images."""


def write_photographs(folder: Path, n: int) -> Index:
    """Write n training images in 20 classes to `folder/images/train/<class>/`, and their shards to `folder/shards`.

    The shards also hold one test image of each class, since no sequence of tasks is without.
    """
    names = [f"class{number:02d}" for number in range(CLASSES)]
    for name in names:
        (folder / "images" / "train" / name).mkdir(parents=True)
    paint = _Painter()

    def make(number: int) -> bytes:
        return paint.jpeg(np.random.default_rng(number))

    def samples() -> Iterator[Sample]:
        with ThreadPoolExecutor() as threads:
            for number, image in enumerate(threads.map(make, range(n))):
                label = number % CLASSES
                key = f"{names[label]}_{number:05d}"
                (folder / "images" / "train" / names[label] / f"{key}.jpg").write_bytes(image)
                yield Sample(key=key, image=image, label=label, split=TRAIN, suffix="jpg")
        for label, name in enumerate(names):
            yield Sample(key=f"{name}_test", image=make(n + label), label=label, split=TEST, suffix="jpg")

    return write_shards(folder / "shards", "photographs", samples(), names, ["all"], 0)


class _Painter:
    """Sums of smooth shapes, finer texture and grain, which JPEG packs into 40 to 60 kB."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._shapes = [_field(draw, ((150, 55), (40, 25))) for _ in range(_FIELDS)]
        self._textures = [_field(draw, ((12, 12), (4, 9), (1, 6)), channels=1) for _ in range(_FIELDS)]

    def jpeg(self, draw: np.random.Generator) -> bytes:
        pixels = 128 + self._cut(draw, self._shapes) + self._cut(draw, self._textures)
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
        return stream.getvalue()

    def _cut(self, draw: np.random.Generator, fields: list[NDArray[np.int16]]) -> NDArray[np.int16]:
        top, left = draw.integers(0, _SPARE, 2)
        return fields[draw.integers(len(fields))][top : top + HEIGHT, left : left + WIDTH]


def _field(draw: np.random.Generator, scales: tuple[tuple[int, int], ...], channels: int = 3) -> NDArray[np.int16]:
    """Noise at each (pixels a grain, amplitude in grey levels), int16 [HEIGHT + spare, WIDTH + spare, channels]."""
    size = (HEIGHT + _SPARE, WIDTH + _SPARE)
    total = torch.zeros(1, channels, *size)
    for grain, amplitude in scales:
        shape = (1, channels, size[0] // grain + 2, size[1] // grain + 2)
        coarse = torch.from_numpy(draw.normal(0, amplitude, shape).astype(np.float32))
        total += F.interpolate(coarse, size=size, mode="bilinear")
    field: NDArray[np.int16] = total[0].permute(1, 2, 0).contiguous().numpy().astype(np.int16)
    return field
