"""ImageNet-R: renditions of 200 ImageNet classes, without a split of its authors' own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Listing
from benchmarks.public_codes import BACKBONE, BATCH_SIZE, CODA, IMAGE_SIZE, PILOT
from benchmarks.spec import BenchmarkSpec
from benchmarks.transforms import Transform
from benchmarks.wnids import listed, ready_made, split_at_random, whole
from fmlora_dist.errors import UserError
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["imagenet_r", "read"]

CODA_LISTS = (
    "6bcaa14ca9359915ac3a44c48ae71388146385686eb15da79a37844421a0b845",
    "57275ac242d68983a4f39ccb81ec34f48b1bd920b9cd79e6e8040d7c042db02a",
)
"""SHA-256 of CODA-Prompt's imagenet-r_train.yaml and imagenet-r_test.yaml; InfLoRA holds the same bytes."""
PUBLISHED = Counts(classes=200, images=30_000, train=24_000, test=6_000)

MAMMOTH = Transform(interpolation="bicubic", test_resize=256, test_interpolation="bicubic", test_keeps_aspect=False)


def read(source: Source, split: Split) -> Listing:
    """The folders of WordNet ids, from the folder or archive imagenet-r, or train/ and test/ with `--split folders`.

    Raises:
        UserError: If the folders are others than the split needs, or a list is wrong or names what is not there.
    """
    if split.kind == "folders":
        # How many images PILOT's folders hold is not established.
        return ready_made(source, Counts(classes=PUBLISHED.classes))
    if split.kind == "random":
        return split_at_random(whole(source), split.seed, PUBLISHED)
    return _by_lists(source, *split.files)


def _by_lists(source: Source, train: Path, test: Path) -> Listing:
    """CODA-Prompt's two lists, or others of the same form, whose `split_rule` then begins with 'list:'."""
    images = whole(source)
    parts: dict[str, int] = {}
    wnids: dict[int, str] = {}
    digests = []
    for path, part in ((train, TRAIN), (test, TEST)):
        content = path.read_bytes()
        digests.append(hashlib.sha256(content).hexdigest())
        for name, label in _entries(content, path):
            place = "/".join(name.split("/")[-2:])
            if place in parts:
                raise UserError(f"{path}: found {name} a second time, expected it once in one list; restore the lists")
            if place not in images:
                raise UserError(
                    f"{path}: found no file {place} in {source.name}, expected it; download the images again"
                )
            if wnids.setdefault(label, images[place].wnid) != images[place].wnid:
                raise UserError(
                    f"{path}: found {name} as class {label}, expected {wnids[label]}, which another image has as that"
                    " class; restore the list"
                )
            parts[place] = part
    order = [wnids[label] for label in sorted(wnids)]
    if sorted(wnids) != list(range(len(order))) or len(set(order)) != len(order):
        raise UserError(
            f"{train}: found {len(order)} class numbers up to {max(wnids, default=-1)} for {len(set(order))} WordNet"
            " ids, expected each id under one number, counted from 0; restore the lists"
        )
    known = tuple(digests) == CODA_LISTS
    rule = f"{'coda' if known else 'list'}:{digests[0][:16]}-{digests[1][:16]}"
    return listed(images, parts, rule, replace(PUBLISHED, images=None), order)


def _entries(content: bytes, path: Path) -> list[tuple[str, int]]:
    """(file, class number) of each entry of a YAML list with the keys data and targets."""
    try:
        # libyaml's loader reads 24,000 entries in 0.2 s, the other one in 5 s; both make plain values only.
        document: Any = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(
            f"{path}: found no YAML ({str(error)[:200]}), expected a list as CODA-Prompt has it; restore it"
        ) from None
    data, targets = (document.get(key) if isinstance(document, dict) else None for key in ("data", "targets"))
    if (
        not isinstance(data, list)
        or not isinstance(targets, list)
        or len(data) != len(targets)
        or not all(isinstance(name, str) for name in data)
        or not all(type(label) is int and label >= 0 for label in targets)
    ):
        raise UserError(
            f"{path}: found another content, expected 'data' with files and as many 'targets' with class numbers;"
            " restore the list"
        )
    return list(zip(data, targets, strict=True))


@register_benchmark
def imagenet_r() -> BenchmarkSpec:
    """200 classes, 30,000 images; N = 5, 10 and 20.

    - Split: the user's choice, since its authors have none. `coda:FILE` reads the lists of CODA-Prompt, shared by
      mammoth (whose train list has the same images and labels). `random` draws anew, as InfLoRA and HiDe-Prompt do
      once, by another rule: InfLoRA's published logs are on a split that is not CODA-Prompt's and was not published.
      `folders` reads train/ and test/ folders, as PILOT offers them and SD-LoRA reads them; LibContinual has its own.
      Numbers on different splits are not comparable.
    - Transforms: PILOT, SD-LoRA, HiDe-Prompt and LibContinual's SD-LoRA do the same (the default); CODA-Prompt and
      InfLoRA crop from 8 % of the area and test bilinearly; mammoth crops bicubically and tests on images squeezed to a
      square. All feed [0, 1].
    - Recipe: 20 epochs of batches of 128 as SD-LoRA's code (its paper reportedly says 30); InfLoRA and CODA-Prompt have
      50, PILOT 10 for its prompt methods, HiDe-Prompt 150.
    """
    return BenchmarkSpec(
        name="imagenet_r",
        summary="ImageNet-R, 200 classes of renditions, 30,000 images",
        licence="MIT, as its repository says",
        image_size=IMAGE_SIZE,
        task_counts=(5, 10, 20),
        backbone_name=BACKBONE,
        epochs=20,
        batch_size=BATCH_SIZE,
        transforms={
            "pilot": PILOT,
            "sdlora": PILOT,
            "hide": PILOT,
            "libcontinual": PILOT,
            "coda": CODA,
            "inflora": CODA,
            "mammoth": MAMMOTH,
        },
        normalisation="unit",
        splits=("coda", "random", "folders"),
        read=read,
        download="https://github.com/hendrycks/imagenet-r (imagenet-r.tar)",
    )
