"""Data sets published as a folder of images for each WordNet id: ImageNet-R and ImageNet-A."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.image_folder import safe_key
from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Item, Listing
from fmlora_dist.errors import UserError

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source

__all__ = ["listed", "ready_made", "split_at_random", "whole"]

TEST_SHARE = 0.2

_IMAGE = re.compile(r"(?P<root>(?:.*/)?)(?P<wnid>n\d{8})/(?P<file>[^/]+)\.(?:jpe?g|png|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """One file of the data set."""

    wnid: str
    """The folder in which it lies, and its class."""
    place: str
    """wnid/file, wherever the folders lie: the same in the archive, in a folder, and after a split."""
    name: str
    """Its name in the source."""


def whole(source: Source) -> dict[str, Image]:
    """All images by their places, sorted, where the folders of the classes lie side by side.

    Raises:
        UserError: If there are none, or train/ and test/ folders.
    """
    roots = _roots(source)
    if len(roots) != 1:
        raise UserError(
            f"{source.name}: found folders of WordNet ids in {_say(roots)}, expected them in one; give the data set as"
            " its authors publish it, or --split folders for train/ and test/"
        )
    return next(iter(roots.values()))


def split_at_random(images: Mapping[str, Image], seed: int, published: Counts) -> Listing:
    """80/20 drawn from all images together: test images are those with the smallest SHA-256 of seed and place.

    So the split is a function of names and seed, on any machine and from folder and archive alike; the share of a class
    varies, as it does in CODA-Prompt's list.
    """
    drawn = sorted(images, key=lambda place: hashlib.sha256(f"{seed}/{place}".encode()).digest())
    test = set(drawn[: round(TEST_SHARE * len(drawn))])
    parts = {place: TEST if place in test else TRAIN for place in images}
    return listed(images, parts, f"random:{seed}", published)


def ready_made(source: Source, published: Counts) -> Listing:
    """The images of the folders train/ and test/, which PILOT offers and SD-LoRA reads.

    Raises:
        UserError: If the folders of the classes lie elsewhere, or both hold one image.
    """
    roots = _roots(source)
    by_part = {root.rstrip("/").rpartition("/")[2]: images for root, images in roots.items()}
    if len(roots) != 2 or set(by_part) != {"train", "test"}:
        raise UserError(
            f"{source.name}: found folders of WordNet ids in {_say(roots)}, expected train/ and test/; choose another"
            " --split for the data set as its authors publish it"
        )
    both = sorted(set(by_part["train"]) & set(by_part["test"]))
    if both:
        raise UserError(f"{source.name}: found {both[0]} in train/ and in test/, expected it in one; remove the other")
    parts = {place: part for name, part in (("train", TRAIN), ("test", TEST)) for place in by_part[name]}
    return listed(by_part["train"] | by_part["test"], parts, "folders", published)


def listed(
    images: Mapping[str, Image],
    parts: Mapping[str, int],
    split_rule: str,
    published: Counts,
    list_order: Iterable[str] = (),
) -> Listing:
    """The images in `parts` (places with their splits) by place; classes are the sorted WordNet ids.

    Args:
        images: By place.
        parts: `TRAIN` or `TEST` by place.
        split_rule: As the protocol states it.
        published: The counts to be compared with.
        list_order: WordNet ids in the numbering of the split's list, where it has one.
    """
    classes = sorted({images[place].wnid for place in parts})
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    items = [
        Item(
            key=safe_key(place),
            label=numbers[images[place].wnid],
            split=parts[place],
            file=images[place].name,
        )
        for place in sorted(parts)
    ]
    return Listing(
        items=tuple(items),
        classes=tuple(classes),
        split_rule=split_rule,
        list_order=tuple(numbers[wnid] for wnid in list_order),
        published=published,
    )


def _roots(source: Source) -> dict[str, dict[str, Image]]:
    """Images by place, for each folder that holds folders of WordNet ids."""
    roots: dict[str, dict[str, Image]] = {}
    for name in source.names:
        if found := _IMAGE.fullmatch(name):
            place = name[len(found["root"]) :]
            roots.setdefault(found["root"], {})[place] = Image(found["wnid"], place, name)
    return {root: dict(sorted(images.items())) for root, images in roots.items()}


def _say(roots: Iterable[str]) -> str:
    return ", ".join(f"'{root or './'}'" for root in sorted(roots)) or "no place"
