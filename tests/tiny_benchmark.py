"""Shards small enough to train on in a second: coloured stripes that a tiny ViT can tell apart."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.index import Index
from benchmarks.shards import Sample, write_shards

SIZE = 48
BACKBONE = ["--backbone.name", "vit_tiny_patch16_224", "--backbone.weights", "random", "--backbone.options"]
BACKBONE += ['{"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 16}']


def write_tiny(folder: Path, *, n_classes: int = 12, per_class: int = 12, name: str = "icons") -> Index:
    """Write a benchmark that goes by the name of ``icons``, so that commands take it by ``--data-root``."""
    draw = np.random.default_rng(0)
    samples = []
    for copy in range(per_class):
        for label in range(n_classes):
            key = f"c{label:02d}_{copy:02d}"
            split = int(copy % 3 == 2)
            image = _stripes(draw, label)
            samples.append(Sample(key=key, image=image, label=label, domain=copy % 2, split=split, suffix="png"))
    classes = [f"class{label:02d}" for label in range(n_classes)]
    return write_shards(folder, name, samples, classes, ["wood", "clay"], SIZE, shard_bytes=64 << 10)


def tiny_arguments(folder: Path, **fields: object) -> list[str]:
    """The command line of a run on it: two or more tasks in a few seconds."""
    values = {"benchmark": "icons", "data_root": folder, "tasks": 3, "epochs": 2, "batch_size": 8, "threads": 1}
    words = list(BACKBONE)
    for name, value in (values | fields).items():
        words += [f"--{name.replace('__', '.')}", str(value)]
    return words


def _stripes(draw: np.random.Generator, label: int) -> bytes:
    angle, period = np.pi * (label % 4) / 4, 4 + 3 * (label // 4)
    y, x = np.mgrid[:SIZE, :SIZE]
    wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period + draw.uniform(0, 6))
    colour = np.eye(3)[label % 3] * 80
    pixels = 128 + 60 * wave[..., None] + colour * np.sign(wave)[..., None] + draw.normal(0, 20, (SIZE, SIZE, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
