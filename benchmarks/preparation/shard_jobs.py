"""The making of one shard, in whatever process: read, look at, encode, write, note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.folder import open_folder
from benchmarks.listing import Item, Listing
from benchmarks.preparation.images import BrokenImage, check_image, encode_pixels, shrink
from benchmarks.preparation.places import Place, read_place
from benchmarks.preparation.plan import PlannedShard
from benchmarks.preparation.records import Record, Records, Skipped
from benchmarks.preparation.sources import Source
from benchmarks.shards import Sample, read_tar, write_tar
from fmlora_dist.errors import UserError

__all__ = ["ShardJob", "make_shard", "shard_jobs"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardJob:
    """All that a worker needs to make one shard."""

    out: str
    """Output folder: a path or URL."""
    name: str
    items: tuple[Item, ...]
    contents: tuple[Place | bytes | None, ...]
    """For each item where its file lies, or what it holds; None for pixels."""
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    source: str
    """Name of the source, for errors."""
    short_side: int
    skip: bool
    """Whether broken images are left out; they are errors if not."""


def shard_jobs(
    out: str, listing: Listing, source: Source, shards: Sequence[PlannedShard], *, short_side: int, skip: bool
) -> Iterator[ShardJob]:
    """The jobs of the given shards. From a compressed tar, in the order in which the pass over it completes them."""

    def job(shard: PlannedShard, contents: dict[int, bytes]) -> ShardJob:
        items = tuple(listing.items[row] for row in shard.items)
        return ShardJob(
            out=out,
            name=shard.name,
            items=items,
            contents=tuple(
                None if item.pixels is not None else contents[row] if row in contents else source.place(item.file)
                for row, item in zip(shard.items, items, strict=True)
            ),
            classes=listing.classes,
            domains=listing.domains,
            source=source.name,
            short_side=short_side,
            skip=skip,
        )

    if not source.sequential:
        yield from (job(shard, {}) for shard in shards)
        return
    wanted: dict[str, list[tuple[PlannedShard, int]]] = {}
    for shard in shards:
        for row in shard.items:
            if file := listing.items[row].file:
                wanted.setdefault(file, []).append((shard, row))
    missing = {shard.name: sum(bool(listing.items[row].file) for row in shard.items) for shard in shards}
    arrived: dict[str, dict[int, bytes]] = {shard.name: {} for shard in shards}
    for shard in shards:
        if not missing[shard.name]:
            yield job(shard, {})
    for file, content in source.stream(wanted):
        for shard, row in wanted[file]:
            arrived[shard.name][row] = content
            if len(arrived[shard.name]) == missing[shard.name]:
                yield job(shard, arrived.pop(shard.name))


def make_shard(job: ShardJob) -> Record:
    """Make and write one shard, and note that it is finished.

    Raises:
        UserError: If an image is broken and is not to be skipped, a file cannot be read, or the shard not be written.
    """
    samples, skipped = [], []
    for item, content in zip(job.items, job.contents, strict=True):
        try:
            image, suffix = _image(item, content, job.short_side)
        except BrokenImage as error:
            reason = f"found {error}"
            if not job.skip:
                raise UserError(broken(job.source, item.file, reason)) from error
            skipped.append(Skipped(key=item.key, file=item.file, reason=reason))
            continue
        samples.append(
            Sample(key=item.key, image=image, label=item.label, domain=item.domain, split=item.split, suffix=suffix)
        )
    content = write_tar(samples, job.classes, job.domains)
    record = Record(tar=read_tar(job.name, content, job.domains), skipped=tuple(skipped))
    open_folder(job.out).write(job.name, content)
    Records(job.out).write(record)
    return record


def broken(source: str, file: str, reason: str) -> str:
    """The error about a broken image."""
    return (
        f"{source}/{file}: {reason}, expected an image that can be decoded; download it again, or leave such files out"
        " with --on-error skip"
    )


def _image(item: Item, content: Place | bytes | None, short_side: int) -> tuple[bytes, str]:
    if item.pixels is not None:
        encoded, suffix = encode_pixels(item.pixels)
    else:
        assert content is not None
        encoded, suffix = read_place(content) if isinstance(content, Place) else content, ""
    if short_side:
        return shrink(encoded, short_side)
    return encoded, suffix or check_image(encoded)
