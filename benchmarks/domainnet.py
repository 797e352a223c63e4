"""DomainNet: 345 classes in six domains, by the lists that its authors publish beside the six archives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.image_folder import safe_key
from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Item, Listing
from benchmarks.public_codes import BACKBONE, BATCH_SIZE, CODA, IMAGE_SIZE, PILOT
from benchmarks.spec import BenchmarkSpec
from fmlora_dist.errors import UserError
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["DOMAINS", "domainnet", "read"]

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
PARTS = {"train": TRAIN, "test": TEST}
PUBLISHED = Counts(
    classes=345,
    train=409_832,
    test=176_743,
    train_per_domain=dict(zip(DOMAINS, (33_525, 36_023, 50_416, 120_750, 120_906, 48_212), strict=True)),
    test_per_domain=dict(zip(DOMAINS, (14_604, 15_582, 21_850, 51_750, 52_041, 20_916), strict=True)),
)


def read(source: Source, split: Split) -> Listing:
    """The images of the twelve lists, from one folder that holds them beside the six archives or their folders.

    Files that no list names are left out: the archives hold duplicates that were taken from the lists.

    Raises:
        UserError: If there is no list, one lacks its other half or contradicts another, or an image is not there.
    """
    domains = tuple(name for name in DOMAINS if any(f"{name}_{part}.txt" in source for part in PARTS))
    if not domains:
        raise UserError(
            f"{source.name}: found none of the lists {DOMAINS[0]}_train.txt …, expected twelve beside the archives;"
            " download them, too"
        )
    items: list[Item] = []
    names: dict[int, str] = {}
    seen: set[str] = set()
    for number, domain in enumerate(domains):
        for part_name, part in PARTS.items():
            of = f"{domain}_{part_name}.txt"
            for where, file, label in _lines(source, of):
                if file in seen:
                    raise UserError(f"{where}: found {file} a second time, expected each image once; restore the lists")
                seen.add(file)
                folder, class_name, _ = ("", "", *file.split("/"))[-3:]
                if folder != domain or names.setdefault(label, class_name) != class_name:
                    raise UserError(
                        f"{where}: found {file} as class {label}, expected {domain}/{names.get(label, '…')}/…; restore"
                        " the list"
                    )
                if file not in source:
                    raise UserError(
                        f"{where}: found no file {file} in {source.name}, expected it; download {domain}.zip"
                    )
                items.append(Item(key=safe_key(file), label=label, domain=number, split=part, file=file))
    missing = sorted(set(range(max(names) + 1)) - set(names))
    if missing or len(set(names.values())) != len(names):
        what = f"no image of class {missing[0]}" if missing else "a class under two numbers"
        raise UserError(
            f"{source.name}: found {what} in the lists, expected classes 0 to {max(names)}; restore the lists"
        )
    return Listing(
        items=tuple(items),
        classes=tuple(names[label] for label in sorted(names)),
        domains=domains,
        published=PUBLISHED,
    )


def _lines(source: Source, name: str) -> Iterator[tuple[str, str, int]]:
    """(where, file, label) of each line of a list."""
    lines = source.read(name).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        file, _, label = line.strip().rpartition(" ")
        if not file or not label.isdecimal() or int(label) >= PUBLISHED.classes:
            raise UserError(
                f"{name}, line {number}: found '{line[:80]}', expected a file and a class from 0 to"
                f" {PUBLISHED.classes - 1}; restore the list"
            )
        yield f"{name}, line {number}", file, int(label)


@register_benchmark
def domainnet() -> BenchmarkSpec:
    """345 classes, six domains, the official lists of the cleaned version: 409,832 / 176,743 images.

    - Class-incremental, N = 5, 69 classes a task over all domains pooled: CODA-Prompt and InfLoRA, from the same two
      lists, which a user of them reports to hold no quickdraw (CODA-Prompt issue 19; not verified):
      `--exclude-domains quickdraw`. SD-LoRA has a config but released no list.
    - Domain-incremental, N = 6: no public code runs these methods so. HiDe-Prompt (in a class that it does not use)
      and InfLoRA list the domains alphabetically, as here.
    - Transforms: CODA-Prompt and InfLoRA (the default) crop from 8 % of the area and test bilinearly, PILOT and SD-LoRA
      from 5 % and bicubically. All feed [0, 1].
    - Recipe: 5 epochs of batches of 128 as CODA-Prompt and InfLoRA; SD-LoRA has 10.
    """
    return BenchmarkSpec(
        name="domainnet",
        summary="DomainNet, 345 classes in six domains, 409,832 / 176,743 images",
        licence="none; its authors claim fair use, for research",
        image_size=IMAGE_SIZE,
        task_counts=(5,),
        backbone_name=BACKBONE,
        epochs=5,
        batch_size=BATCH_SIZE,
        transforms={"coda": CODA, "inflora": CODA, "pilot": PILOT, "sdlora": PILOT},
        normalisation="unit",
        read=read,
        download="https://ai.bu.edu/M3SDA/ (cleaned version: six zips, twelve lists)",
    )
