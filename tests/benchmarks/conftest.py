"""A benchmark small enough to check pixel by pixel."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import layouts
from benchmarks.index import Index
from benchmarks.listing import Listing
from benchmarks.preparation.sources import open_source
from benchmarks.preparation.splits import Split
from benchmarks.samples import Samples
from benchmarks.shards import Sample, write_shards
from benchmarks.store import Store
from fmlora_dist.errors import UserError
from layouts import Files
from preparing import CLASSES, picture

SIZE = 16
OFFICIAL = Split()


@dataclass(frozen=True)
class Tiny:
    """Twelve classes in three domains; of each class and domain two training images and one test image."""

    folder: Path
    index: Index
    pixels: dict[str, np.ndarray]
    """uint8 [3, S, S] by key."""

    def samples(self, rows: np.ndarray | None = None, **options) -> Samples:
        """Samples of the given rows (all of them if None), labelled by class number."""
        rows = np.arange(len(self.index)) if rows is None else rows
        return Samples(self.index, Store(self.folder, self.index), rows, self.index.label[rows], **options)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    draw = np.random.default_rng(0)
    pixels, samples = {}, []
    for copy in range(3):
        for label in range(12):
            for domain in range(3):
                key = f"c{label:02d}_d{domain}_{copy}"
                image = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                pixels[key] = image.transpose(2, 0, 1)
                samples.append(
                    Sample(key=key, image=png(image), label=label, domain=domain, split=int(copy == 2), suffix="png")
                )
    classes = [f"class{label:02d}" for label in range(12)]
    index = write_shards(folder, "tiny", samples, classes, ["wood", "clay", "iron"], SIZE, shard_bytes=64 << 10)
    assert len(index.shards) > 2
    return Tiny(folder, index, pixels)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def encode():
    return png


@pytest.fixture(autouse=True)
def one_thread():
    """The suite shares its cores."""
    torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 images of three classes, in root/train/class and root/test/class; and a file that is none."""
    root = tmp_path / "photos"
    for split, copies in (("train", 6), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for copy in range(copies):
                suffix, form = ((".jpg", "JPEG"), (".PNG", "PNG"), (".webp", "WEBP"), (".JPeG", "JPEG"))[copy % 4]
                (folder / f"img {copy}{suffix}").write_bytes(picture(100 * label + 10 * copy + len(split), form))
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Listing]:
    """Write files as a folder, and read them with the reader of a data set."""

    def read(module, files: Files, split: Split = OFFICIAL) -> Listing:
        folder = layouts.as_folder(tmp_path / "source", files)
        return module.read(open_source(folder), split)

    return read


@pytest.fixture
def refused(read) -> Callable[..., str]:
    """The one line with which a reader refuses files."""

    def refused(module, files: Files, split: Split = OFFICIAL) -> str:
        with pytest.raises(UserError) as error:
            read(module, files, split)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refused
