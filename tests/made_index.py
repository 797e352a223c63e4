"""An index without shards, to cut into tasks."""

import numpy as np

from benchmarks.index import Index


def make_index(n_classes: int, n_domains: int = 2, copies: int = 2, list_order: tuple[int, ...] = ()) -> Index:
    """Every class in every domain, `copies` times in each split; the rows shuffled."""
    label, domain, split, _ = np.meshgrid(
        np.arange(n_classes), np.arange(n_domains), np.arange(2), np.arange(copies), indexing="ij"
    )
    mixed = np.random.default_rng(7).permutation(label.size)
    zeros = np.zeros(label.size, dtype=np.int64)
    return Index(
        name="made",
        image_size=8,
        classes=tuple(f"class{number}" for number in range(n_classes)),
        domains=tuple(f"domain{number}" for number in reversed(range(n_domains))),
        shards=(),
        list_order=list_order,
        keys=tuple(f"key{number}" for number in range(label.size)),
        shard=zeros.astype(np.int32),
        offset=zeros,
        size=zeros + 1,
        crc32=zeros,
        height=zeros.astype(np.int32) + 8,
        width=zeros.astype(np.int32) + 8,
        label=label.ravel()[mixed].astype(np.int32),
        domain=domain.ravel()[mixed].astype(np.int32),
        split=split.ravel()[mixed].astype(np.int32),
    )
