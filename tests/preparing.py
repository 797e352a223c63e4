"""What the tests of `fmlora prepare` make and read."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.index import Index
from running import Done, command_here

CLASSES = ("ant", "bee é", "Cat.1")
SMALL = ["--workers", "1", "--shard-size", "6KiB"]  # about three images a shard


def picture(seed: int, form: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def prepare(source: Path, out: object, *words: object, data_set: str = "folder") -> Done:
    return command_here(["prepare", data_set, "--source", source, "--out", out, *(words or SMALL)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def images(folder: Path) -> dict[str, bytes]:
    """The encoded images by key, read as the index says."""
    index = Index.load(folder)
    found = {}
    for row, key in enumerate(index.keys):
        shard = (folder / index.shards[index.shard[row]].name).read_bytes()
        found[key] = shard[index.offset[row] : index.offset[row] + index.size[row]]
    return found
