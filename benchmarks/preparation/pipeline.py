"""`fmlora prepare`: from a data set's published files to shards, index and manifest.

The order of events makes it restartable. A shard is written whole, then its record; when all records are there, the
index, then the manifest, and then the records go. Whenever it is killed, the same command finds the finished shards.
The plan depends on the listing and the file sizes alone, so neither workers nor interruptions change a byte.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from rich.console import Console

from benchmarks.folder import open_folder
from benchmarks.index import INDEX_FILE, Index
from benchmarks.listing import Listing
from benchmarks.preparation.counts import differences
from benchmarks.preparation.manifest import MANIFEST_FILE, make_manifest, parse_manifest
from benchmarks.preparation.plan import Options, Plan, make_plan
from benchmarks.preparation.progress import ImageProgress
from benchmarks.preparation.records import Record, Records, Skipped, read_if_there
from benchmarks.preparation.shard_jobs import broken, make_shard, shard_jobs
from benchmarks.preparation.sources import Source, open_source
from benchmarks.preparation.splits import Split
from benchmarks.preparation.workers import run_jobs
from benchmarks.shards import join
from benchmarks.spec import BenchmarkSpec
from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError

__all__ = ["Prepared", "prepare"]

_ALONE = 32 << 20
"""Bytes that one process has written before others have started."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` has made, or found made."""

    index: Index
    skipped: int
    """Number of images that were left out."""
    already: bool
    """Whether it was there before."""
    rate: float
    """Images a second."""


def prepare(
    spec: BenchmarkSpec,
    source_path: Path | str,
    out: str,
    split: Split,
    options: Options,
    *,
    version: str,
    skip: bool = False,
    allow_partial: bool = False,
    workers: int | None = None,
    console: Console,
) -> Prepared:
    """Make the shards of `spec`'s data set in the folder `out`, a path or fsspec URL.

    Args:
        spec: Its ``read`` lists the source.
        source_path: The published files: see ``open_source``.
        out: Made if it is not there. Nothing that is there is changed but what an unfinished call left.
        split: As ``parse_split`` gives it.
        options: What changes the shards' bytes.
        version: The tool's, for the manifest.
        skip: Leave broken images out, and say so in the manifest and in the split's rule.
        allow_partial: Go on where counts differ from the published ones, and say so in the split's rule.
        workers: Processes; None for one a core where there is enough to do.
        console: Where progress is shown.

    Raises:
        UserError: If the source is not the data set, an image is broken, or `out` holds something else.
    """
    if spec.read is None:
        raise UserError(
            f"prepare: found data set '{spec.name}', whose images {'ship with the package' if spec.embedded else ''}"
            f"{'are those of ' + spec.cut.of if spec.cut else ''}; expected one with published files, see fmlora list"
        )
    out = out if "://" in out else str(Path(out).expanduser())
    _check_apart(source_path, out)
    source = open_source(source_path)
    listing = _listed(spec, source, split, allow_partial=allow_partial)
    plan = make_plan(spec.name, listing, source, options)
    described = {
        "data_set": spec.name,
        "source": source.name,
        "split": listing.split_rule,
        "images": len(listing.items),
        **dataclasses.asdict(options),
    }
    records = Records(out)
    with records.claimed():
        if (complete := _complete(out, plan, unfinished=records.begun())) is not None:
            _clean(out, plan, records)  # a kill may have come between the manifest and this
            index, left_out = complete
            _check_whole(source, left_out, skip=skip)
            return Prepared(index=index, skipped=len(left_out), already=True, rate=0.0)
        if not records.begun():
            _check_free(out, plan)
        records.begin(plan.digest, described)
        done, rate = _make_shards(out, listing, source, plan, records, options, skip, workers, console)
        in_order = [done[shard.name] for shard in plan.shards]
        skipped = [one for record in in_order for one in record.skipped]
        index = _index(spec.name, listing, in_order, len(skipped))
        index.save(out)
        folder = open_folder(out)
        manifest = make_manifest(
            index,
            folder.read(INDEX_FILE),
            options=described,
            skipped=skipped,
            plan=plan.digest,
            versions={"fmlora-dist": version, "pillow": PIL.__version__},
        )
        folder.write(MANIFEST_FILE, manifest)
        _clean(out, plan, records)
    return Prepared(index=index, skipped=len(skipped), already=False, rate=rate)


def _make_shards(
    out: str,
    listing: Listing,
    source: Source,
    plan: Plan,
    records: Records,
    options: Options,
    skip: bool,
    workers: int | None,
    console: Console,
) -> tuple[dict[str, Record], float]:
    """The records of all shards by name, those of earlier calls too; and images a second."""
    done = records.read([shard.name for shard in plan.shards], open_folder(out).sizes())
    for record in done.values():
        _check_whole(source, record.skipped, skip=skip)
    todo = [shard for shard in plan.shards if shard.name not in done]
    workers = max(1, min(workers or _enough_workers(listing, source), len(todo)))
    jobs = shard_jobs(out, listing, source, todo, short_side=options.short_side, skip=skip)
    with ImageProgress("prepare", len(listing.items), console) as progress:
        progress.already(sum(len(shard.items) for shard in plan.shards if shard.name in done))
        for record in run_jobs(make_shard, jobs, workers):
            done[record.tar.shard.name] = record
            progress.advance(len(record.tar.keys) + len(record.skipped))
            for one in record.skipped:
                console.print(f"skipped {one.file}: {one.reason}", soft_wrap=True, markup=False, highlight=False)
        return done, progress.rate


def _listed(spec: BenchmarkSpec, source: Source, split: Split, *, allow_partial: bool) -> Listing:
    assert spec.read is not None
    listing = spec.read(source, split)
    if not listing.items:
        raise UserError(f"{source.name}: found no image of data set '{spec.name}', expected some; correct the source")
    if different := differences(listing):
        if not allow_partial:
            more = f" (and {len(different) - 5} more)" if len(different) > 5 else ""
            raise UserError(
                f"{source.name}: counts differ from those of '{spec.name}': {'; '.join(different[:5])}{more}; download"
                " what is missing, or go on with --allow-partial"
            )
        listing = dataclasses.replace(listing, split_rule=f"{listing.split_rule}, partial")
    return listing


def _check_apart(source: Path | str, out: str) -> None:
    """Shards among the source's files would be taken for its archives by the next call."""
    path, source = _local(out), os.path.realpath(Path(source).expanduser())
    if path is not None and os.path.commonpath((os.path.realpath(path), source)) == source:
        raise UserError(f"out: found {out} inside the source, expected a folder beside it; choose another --out")


def _local(out: str) -> Path | None:
    """The output folder where it is on a disk; None where it is remote."""
    path = out.removeprefix("file://")
    return None if "://" in path else Path(path)


def _check_whole(source: Source, left_out: Sequence[Skipped], *, skip: bool) -> None:
    """What an earlier call left out, this one takes for broken, too, unless it may skip it."""
    if left_out and not skip:
        raise UserError(broken(source.name, left_out[0].file, left_out[0].reason))


def _complete(out: str, plan: Plan, *, unfinished: bool) -> tuple[Index, list[Skipped]] | None:
    """The index in `out`, and what was left out of it, if it is that of the same plan; None where there is none yet."""
    folder = open_folder(out)
    content = read_if_there(folder, MANIFEST_FILE)
    if content is not None:
        manifest = parse_manifest(content, f"{out}/{MANIFEST_FILE}")
        if manifest["plan"] == plan.digest:
            return Index.load(folder), [Skipped(**one) for one in manifest["skipped"]]
        found = f"that of '{manifest['data_set']}', split {manifest.get('split_rule')}"
    elif not unfinished and read_if_there(folder, INDEX_FILE) is not None:
        found = "one without a manifest"
    else:
        return None
    raise UserError(
        f"out: found a complete data set in {out} ({found}), from another source or with other options, expected none;"
        " choose another --out, or remove it"
    )


def _check_free(out: str, plan: Plan) -> None:
    """A folder in which no call has begun must hold nothing that this one would replace."""
    present = open_folder(out).sizes()
    for shard in plan.shards:
        if shard.name in present:
            raise UserError(f"out: found a file {shard.name} in {out}, expected none; choose another --out")


def _enough_workers(listing: Listing, source: Source) -> int:
    """One a core, unless all is done before others have started."""
    size = sum(source.size(item.file) if item.pixels is None else item.pixels.nbytes for item in listing.items)
    return local_cores() if size > _ALONE else 1


def _clean(out: str, plan: Plan, records: Records) -> None:
    """Remove the records, and what killed calls had begun to write."""
    records.remove()
    if (path := _local(out)) is not None:
        for name in (*(shard.name for shard in plan.shards), INDEX_FILE, MANIFEST_FILE):
            for stale in path.glob(f".{name}.*.tmp"):
                stale.unlink(missing_ok=True)


def _index(name: str, listing: Listing, records: list[Record], skipped: int) -> Index:
    """The index of all shards; images that are skipped stand in the split's rule, since they change the benchmark."""
    if not any(record.tar.keys for record in records):
        raise UserError(f"prepare: found no image of '{name}' that can be decoded, expected some; correct the source")
    index = join(
        name,
        [record.tar for record in records],
        listing.classes,
        listing.domains,
        0,
        split_rule=f"{listing.split_rule}, {skipped} skipped" if skipped else listing.split_rule,
        list_order=listing.list_order,
    )
    side = int(index.height[0])
    square = bool(np.all(index.height == side) and np.all(index.width == side))
    # In the listing's order, whatever order the source could be read in: so the batches of a seed are the same.
    place = {item.key: number for number, item in enumerate(listing.items)}
    order = np.array(sorted(range(len(index)), key=lambda row: (index.split[row], place[index.keys[row]])))
    columns = {
        field.name: value[order]
        for field in dataclasses.fields(index)
        if isinstance(value := getattr(index, field.name), np.ndarray)
    }
    keys = tuple(index.keys[row] for row in order)
    return dataclasses.replace(index, image_size=side if square else 0, keys=keys, **columns)
