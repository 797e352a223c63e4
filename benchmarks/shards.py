"""Images to WebDataset shards with their index. The only code of the project that writes tars.

Each sample is two members of a tar, `<key>.<suffix>` (the encoded image) and `<key>.json` (what it shows), so any
WebDataset reader can read them: `webdataset.WebDataset("train-0000.tar").decode("pil").to_tuple("webp", "json")`.

`write_tar` and `read_tar` are pure functions on bytes, for whoever writes many shards at once; `join` makes the index
of their results. `write_shards` is the three in a row, for data that are quickly written.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.folder import open_folder
from benchmarks.index import COLUMNS, FORMATS, SPLITS, TEST, TRAIN, Index, Shard
from fmlora_dist.errors import UserError

__all__ = ["Sample", "Tar", "join", "read_tar", "shard_name", "write_shards", "write_tar"]

_BLOCK = 512  # tar's unit: a header is one block, and every member is padded to whole blocks
_END = 10240  # tar's default record: a file's length is a multiple of it
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to be stored."""

    key: str
    """Unique; letters, digits, `-` and `_` only, since WebDataset cuts a member's name at its first dot."""
    image: bytes
    """The encoded image."""
    label: int
    """Position of its class in `classes`."""
    domain: int = 0
    """Position of its domain in `domains`."""
    split: int = TRAIN
    """`TRAIN` or `TEST`; a shard holds one split only."""
    suffix: str = "webp"
    """Name of the image's encoding: webp, jpg, png …"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tar:
    """One finished shard and the index rows of its images, in the order in which they lie in it."""

    shard: Shard
    keys: tuple[str, ...]
    columns: dict[str, NDArray[np.int64]]
    """(n,) each; the index's columns by name, without `shard`."""


def shard_name(split: int, number: int) -> str:
    """Name of the number-th shard (from 0) of a split."""
    return f"{SPLITS[split]}-{number:04d}.tar"


def write_tar(samples: Iterable[Sample], classes: Sequence[str], domains: Sequence[str]) -> bytes:
    """Samples of one split -> the tar that holds them, in their order.

    Owner, mode and time of every member are constants, so equal samples give equal bytes.

    Raises:
        UserError: If a key is no valid one.
    """
    content = io.BytesIO()
    # By tarfile and not by webdataset's writer, which imports torch: 0.5 GB in each worker process of `prepare`.
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if not _KEY.fullmatch(sample.key):
                raise UserError(
                    f"sample key: found {sample.key!r}, expected letters, digits, '-' and '_'; rename the sample"
                )
            members = {sample.suffix: sample.image, "json": _description(sample, classes, domains)}
            for suffix, data in sorted(members.items()):  # as webdataset orders them
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode, member.uname, member.gname = len(data), 0o444, "root", "root"
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def read_tar(name: str, content: bytes, domains: Sequence[str]) -> Tar:
    """A tar that `write_tar` made -> its index rows: what is in the file, and not what was meant to be.

    Args:
        name: The shard's name, which begins with its split's.
        content: The whole tar.
        domains: Domain names.

    Raises:
        UserError: If the tar is none of `write_tar`'s, or an image is none of `FORMATS`.
    """
    keys, rows = [], []
    try:
        split = SPLITS.index(name.split("-")[0])
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            members = tar.getmembers()
        descriptions = {member.name: member for member in members if member.name.endswith(".json")}
        for member in members:
            if member.name in descriptions:
                continue
            key = member.name.split(".", 1)[0]
            shows = json.loads(_content(content, descriptions[f"{key}.json"]))
            image = _content(content, member)
            height, width = _shape(image, f"{name}: sample '{key}'")
            keys.append(key)
            rows.append(
                (
                    member.offset_data,
                    member.size,
                    zlib.crc32(image),
                    height,
                    width,
                    int(shows["label"]),
                    domains.index(shows["domain"]),
                    split,
                )
            )
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{name}: found no shard of this project ({type(error).__name__}: {error}), expected a tar of images with"
            " their descriptions; write it again"
        ) from error
    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(COLUMNS) - 1)
    return Tar(
        shard=Shard(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
        keys=tuple(keys),
        columns=dict(zip((name for name in COLUMNS if name != "shard"), table.T.copy(), strict=True)),
    )


def join(
    name: str,
    tars: Sequence[Tar],
    classes: Sequence[str],
    domains: Sequence[str],
    image_size: int,
    *,
    split_rule: str = "official",
    list_order: Sequence[int] = (),
) -> Index:
    """The index of a benchmark whose shards are `tars`, in that order.

    Raises:
        UserError: If there is no image, or a key comes twice.
    """
    if not tars:
        raise UserError(f"benchmark '{name}': found no image to store, expected at least one; check the source")
    keys = tuple(key for tar in tars for key in tar.keys)
    _check_unique(keys)
    columns = {"shard": np.repeat(np.arange(len(tars)), [len(tar.keys) for tar in tars])}
    for column in COLUMNS:
        if column != "shard":
            columns[column] = np.concatenate([tar.columns[column] for tar in tars])
    return Index(
        name=name,
        image_size=image_size,
        classes=tuple(classes),
        domains=tuple(domains),
        split_rule=split_rule,
        list_order=tuple(list_order),
        shards=tuple(tar.shard for tar in tars),
        keys=keys,
        **{field: columns[column].astype(kind) for column, (field, kind) in COLUMNS.items()},
    )


def write_shards(
    folder: Path | str,
    name: str,
    samples: Iterable[Sample],
    classes: Sequence[str],
    domains: Sequence[str],
    image_size: int,
    shard_bytes: int = 8 << 20,
) -> Index:
    """Write `samples` to `train-0000.tar …`, `test-0000.tar …` and `index.json` in `folder`.

    Equal samples give byte-identical files. The index is written last: an interrupted call leaves no index that
    describes half-written shards.

    Args:
        folder: Made if it is not there. Shards and an index of an earlier call in it are replaced.
        name: Name of the benchmark.
        samples: Consumed once; their order within a split is kept.
        classes: Class names.
        domains: Domain names.
        image_size: Height and width of all images in pixels, 0 where they differ.
        shard_bytes: A shard is closed before it would pass this length; one sample larger than that has its own.

    Raises:
        UserError: If a key is not unique or has a character that WebDataset cannot keep, or an image is none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    for split_name in SPLITS:
        for stale in folder.glob(f"{split_name}-[0-9][0-9][0-9][0-9].tar"):
            stale.unlink()
    files = open_folder(folder)
    tars: tuple[list[Tar], list[Tar]] = ([], [])
    for split, together in _parts(samples, classes, domains, shard_bytes):
        shard, content = shard_name(split, len(tars[split])), write_tar(together, classes, domains)
        tars[split].append(read_tar(shard, content, domains))
        files.write(shard, content)
    index = join(name, tars[TRAIN] + tars[TEST], classes, domains, image_size)
    index.save(files)
    return index


def _parts(
    samples: Iterable[Sample], classes: Sequence[str], domains: Sequence[str], limit: int
) -> Iterator[tuple[int, list[Sample]]]:
    """The samples of each shard with their split, each shard as long as the limit lets it be."""
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    lengths = [_END, _END]
    for sample in samples:
        split = sample.split
        if split not in (TRAIN, TEST):
            raise UserError(f"split of sample {sample.key!r}: found {split}, expected 0 (train) or 1 (test)")
        contents = sample.image, _description(sample, classes, domains)
        length = sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for content in contents)
        if parts[split] and lengths[split] + length > limit:
            yield split, parts[split].copy()
            parts[split].clear()
            lengths[split] = _END
        parts[split].append(sample)
        lengths[split] += length
    for split, part in enumerate(parts):
        if part:
            yield split, part


def _check_unique(keys: Sequence[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise UserError(f"sample key: found {key!r} twice, expected unique keys; rename one of them")
        seen.add(key)


def _description(sample: Sample, classes: Sequence[str], domains: Sequence[str]) -> bytes:
    description = {"label": sample.label, "class": classes[sample.label], "domain": domains[sample.domain]}
    return json.dumps(description, sort_keys=True).encode()


def _content(tar: bytes, member: tarfile.TarInfo) -> bytes:
    return tar[member.offset_data : member.offset_data + member.size]


def _shape(encoded: bytes, where: str) -> tuple[int, int]:
    """(height, width) from the image's head; the pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.height * image.width > (Image.MAX_IMAGE_PIXELS or math.inf):  # Pillow itself only warns
                raise ValueError(f"{image.width}x{image.height} pixels")
            return image.height, image.width
    except Exception as error:  # Pillow's decoders raise whatever the bytes make them stumble over.
        raise UserError(
            f"{where}: found {len(encoded)} bytes that are no image ({type(error).__name__}: {error}), expected one of"
            f" {', '.join(FORMATS)}; leave it out"
        ) from error
