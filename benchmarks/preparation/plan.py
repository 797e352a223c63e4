"""Which image goes into which shard: decided before anything is read, from the listing and the source's sizes alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.index import SPLITS
from benchmarks.listing import Item, Listing
from benchmarks.preparation.sources import Source
from benchmarks.shards import shard_name
from fmlora_dist.errors import UserError

__all__ = ["Options", "Plan", "PlannedShard", "make_plan"]

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,89}")  # a tar's header has room for 100 characters with the suffix
_AROUND = 4 * 512  # bytes of a tar around an image: two headers, the description, padding


@dataclass(frozen=True, kw_only=True)
class Options:
    """What changes the shards' bytes, beside the source and its split."""

    short_side: int = 0
    """Length in pixels to which a longer shorter side is resized; 0 keeps the original bytes."""
    shard_size: int = 64 << 20
    """Bytes of source files in a shard, at most; one larger file has a shard of its own."""


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """One shard to be written."""

    name: str
    items: tuple[int, ...]
    """Positions in the listing, in the order in which they are stored."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All shards to be written: those of the training images, then those of the test images."""

    shards: tuple[PlannedShard, ...]
    digest: str
    """SHA-256 in hex of all that decides the output."""


def make_plan(name: str, listing: Listing, source: Source, options: Options) -> Plan:
    """Cut a listing into shards of one split each.

    The images of a split keep the listing's order; where the source is a compressed tar they come in the archive's,
    since it is read in one pass.

    Raises:
        UserError: If the listing names a file that the source lacks, or is otherwise wrong.
    """
    _check(listing)
    position = {file: number for number, file in enumerate(source.names)} if source.sequential else {}
    shards: list[PlannedShard] = []
    for split in range(len(SPLITS)):
        rows = [row for row, item in enumerate(listing.items) if item.split == split]
        if position:
            rows.sort(key=lambda row: position.get(listing.items[row].file, -1))
        groups: list[list[int]] = []
        room = 0
        for row in rows:
            size = _size(listing.items[row], source) + _AROUND
            if not groups or size > room:
                groups.append([])
                room = options.shard_size
            groups[-1].append(row)
            room -= size
        shards += (
            PlannedShard(name=shard_name(split, number), items=tuple(group)) for number, group in enumerate(groups)
        )
    return Plan(shards=tuple(shards), digest=_digest(name, listing, source, options, shards))


def _size(item: Item, source: Source) -> int:
    return source.size(item.file) if item.pixels is None else item.pixels.nbytes


def _check(listing: Listing) -> None:
    """What a reader must keep; a plugin's may not."""
    seen: set[str] = set()
    for item in listing.items:
        if not _KEY.fullmatch(item.key) or item.key in seen:
            raise UserError(
                f"key of {item.file or 'an image'}: found {item.key!r}{' twice' if item.key in seen else ''}, expected"
                " unique keys of at most 90 letters, digits, '-' and '_'; mend the data set's reader"
            )
        seen.add(item.key)
        numbers = (item.label, listing.classes), (item.domain, listing.domains), (item.split, SPLITS)
        if not all(0 <= number < len(names) for number, names in numbers):
            raise UserError(
                f"image {item.key!r}: found class {item.label}, domain {item.domain} and split {item.split}, expected"
                f" numbers below {len(listing.classes)}, {len(listing.domains)} and {len(SPLITS)}; mend the reader"
            )
        if bool(item.file) == (item.pixels is not None):
            raise UserError(f"image {item.key!r}: found a file and pixels, or neither; expected one; mend the reader")


def _digest(name: str, listing: Listing, source: Source, options: Options, shards: Sequence[PlannedShard]) -> str:
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update(json.dumps(values).encode() + b"\n")

    add(name, options.short_side, listing.split_rule, listing.list_order, listing.classes, listing.domains)
    for shard in shards:
        add(shard.name)
        for row in shard.items:
            item = listing.items[row]
            add(row, item.key, item.label, item.domain, item.split, item.file, _size(item, source))
            if item.pixels is not None:
                digest.update(hashlib.sha256(item.pixels.tobytes()).digest())
    return digest.hexdigest()
