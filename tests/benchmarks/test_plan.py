"""Before anything is written: counts beside the published ones, keys, and which image goes into which shard."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.image_folder import safe_key
from benchmarks.index import TEST, TRAIN
from benchmarks.listing import Counts, Item, Listing
from benchmarks.preparation.counts import differences
from benchmarks.preparation.places import Place
from benchmarks.preparation.plan import Options, make_plan
from benchmarks.preparation.sources import Source
from fmlora_dist.errors import UserError


def listing(published: Counts) -> Listing:
    items = [Item(key=f"{n}", label=n % 3, domain=n % 2, split=n // 9, file=f"{n}") for n in range(12)]
    return Listing(items=tuple(items), classes=("a", "b", "c"), domains=("x", "y"), published=published)


def test_counts_that_differ_from_published_ones_are_told_with_both() -> None:
    fine = Counts(classes=3, train=9, test=3, images=12, train_per_class=3, test_per_class=1, train_per_domain={"x": 5})
    assert differences(listing(fine)) == []
    found = differences(
        listing(dataclasses.replace(fine, classes=4, test=2, test_per_class=2, test_per_domain={"z": 1}))
    )
    assert found[:2] == ["classes: found 3, published 4", "test images: found 3, published 2"]
    assert "test images of class 'b': found 1, published 2" in found
    assert "test images of domain 'z': found 0, published 1" in found


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, unique=True))
def test_keys_of_any_names_are_valid_and_unique(names: list[str]) -> None:
    keys = {safe_key(name.encode(errors="replace").decode() + f"{n}.jpg") for n, name in enumerate(names)}
    assert len(keys) == len(names)
    assert all(re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]{0,89}", key) for key in keys)


@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=60),
    splits=st.lists(st.sampled_from((TRAIN, TEST)), min_size=60, max_size=60),
    limit=st.integers(1, 20_000),
    kind=st.sampled_from(("file", "stream")),
)
def test_a_plan_has_every_image_once_and_one_split_a_shard(
    sizes: list[int], splits: list[int], limit: int, kind: str
) -> None:
    order = list(range(len(sizes)))[::-1]  # of the archive
    source = Source("x", {f"{n}.jpg": Place(path="x", size=sizes[n], kind=kind, offset=n) for n in order})
    items = tuple(
        Item(key=f"k{n}", label=0, split=split, file=f"{n}.jpg")
        for n, split in zip(range(len(sizes)), splits, strict=False)
    )
    plan = make_plan("x", Listing(items=items, classes=("a",)), source, Options(shard_size=limit))
    rows = [row for shard in plan.shards for row in shard.items]
    assert sorted(rows) == list(range(len(items)))
    for shard in plan.shards:
        assert {items[row].split for row in shard.items} == {("train", "test").index(shard.name[:-9])}
        assert len(shard.items) == 1 or sum(sizes[row] for row in shard.items) <= limit
        ascending = list(shard.items) == sorted(shard.items)
        assert ascending == (kind == "file" or len(shard.items) == 1)
    assert plan == make_plan("x", Listing(items=items, classes=("a",)), source, Options(shard_size=limit))
    assert plan.digest != make_plan("y", Listing(items=items, classes=("a",)), source, Options(shard_size=limit)).digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "a.b"},
        {"key": "x" * 91},
        {"key": "k0"},
        {"label": 1},
        {"domain": -1},
        {"split": 2},
        {"file": ""},
        {"file": "nowhere.jpg"},
        {"pixels": np.zeros((2, 2), np.uint8)},
    ],
)
def test_what_a_reader_must_keep_is_checked_before_anything_is_written(wrong: dict[str, object]) -> None:
    source = Source("x", {"0.jpg": Place(path="x", size=1), "1.jpg": Place(path="x", size=1)})
    items = [Item(key="k0", label=0, file="0.jpg"), dataclasses.replace(Item(key="k1", label=0, file="1.jpg"), **wrong)]
    with pytest.raises(UserError):
        make_plan("x", Listing(items=tuple(items), classes=("a",)), source, Options())
