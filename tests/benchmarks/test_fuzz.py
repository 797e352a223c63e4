"""Damaged shards, indexes, caches and images: a named error or exactly the right image and label, whatever the damage.

`FUZZ_CASES=10000 python -m pytest tests/benchmarks/test_fuzz.py` spreads that many cases over the tests of this file.
"""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.folder import Folder, LocalFolder, RemoteFolder
from benchmarks.index import INDEX_FILE, Index
from benchmarks.samples import Samples
from benchmarks.shards import Sample, join, read_tar, write_shards, write_tar
from benchmarks.store import Store
from fmlora_dist.errors import UserError

SIZE = 8
CLASSES, DOMAINS = ["ant", "bee", "cat", "dog"], ["ink", "chalk"]
FORMATS = [("png", "PNG", {}), ("jpg", "JPEG", {"quality": 80}), ("webp", "WEBP", {"lossless": True})]

N_TESTS = 6
cases = settings(
    max_examples=-(-int(os.environ.get("FUZZ_CASES", "300")) // N_TESTS),
    deadline=5000,  # milliseconds: what takes longer counts as a hang
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Intact:
    """A benchmark of 24 images in three shards, as it should be."""

    files: dict[str, bytes]
    index: Index
    truth: dict[str, tuple[str, str, int, bytes]]
    """By key: class, domain, split and pixels [3, S, S]."""
    local: Path
    """A folder to damage."""

    def damaged(self, changed: dict[str, bytes], remote: bool) -> Folder:
        """A folder with these files in place of the intact ones."""
        files = self.files | changed
        if not remote:
            for name, content in files.items():
                (self.local / name).write_bytes(content)
            return LocalFolder(self.local)
        memory = fsspec.filesystem("memory")
        for name, content in files.items():
            memory.pipe_file(f"/fuzz/{name}", content)
        return RemoteFolder("memory://fuzz", tries=2, pause=0)

    def judge(self, folder: Folder, *, check_shards: bool = False, cache: Path | None = None) -> str:
        """All that the folder gives is the truth, and what it does not give it refuses by name. Returns how it went."""
        try:
            index = Index.load(folder, check_shards=check_shards)
        except UserError as error:
            assert folder.where in str(error) and "\n" not in str(error)
            return "the index is refused"
        assert set(index.keys) == self.truth.keys() and len(index) == len(self.truth)
        samples = Samples(index, Store(folder, index, cache), np.arange(len(index)), index.label, image_size=SIZE)
        refused = 0
        for row, key in enumerate(index.keys):
            label, domain, split, pixels = self.truth[key]
            assert (index.classes[samples.labels[row]], index.domains[index.domain[row]]) == (label, domain)
            assert index.split[row] == split
            try:
                image = samples.images([row])
            except UserError as error:
                assert folder.where in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert image.numpy().tobytes() == pixels
        return "some images are refused" if refused else "nothing is refused"


def encode(n: int, kind: str, options: dict[str, Any]) -> bytes:
    pixels = np.random.default_rng(n).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def decode(encoded: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).transpose(2, 0, 1).tobytes()


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Intact:
    samples = []
    for n in range(24):
        suffix, kind, options = FORMATS[n % 3]
        image = encode(n, kind, options)
        samples.append(Sample(key=f"k{n}", image=image, label=n % 4, domain=n % 2, split=int(n % 8 > 4), suffix=suffix))
    folder = tmp_path_factory.mktemp("intact")
    index = write_shards(folder, "fuzz", samples, CLASSES, DOMAINS, SIZE, shard_bytes=36 << 10)
    assert len(index.shards) == 3
    return Intact(
        files={path.name: path.read_bytes() for path in folder.iterdir()},
        index=index,
        truth={s.key: (CLASSES[s.label], DOMAINS[s.domain], s.split, decode(s.image)) for s in samples},
        local=tmp_path_factory.mktemp("damaged"),
    )


# -- damage to bytes --------------------------------------------------------------------------------------------------

places = st.integers(0, 1 << 20)
lengths = st.one_of(st.integers(1, 16), st.integers(1, 5000))
byte_damage = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("put"), places, st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("cut"), places, lengths),
        st.tuples(st.just("clear"), places, lengths),
        st.tuples(st.just("swap"), places, places, lengths),
        st.tuples(st.just("end"), places),
    ),
    min_size=1,
    max_size=3,
)


def damage(content: bytes, changes: list[tuple]) -> bytes:
    for kind, place, *more in changes:
        at = place % max(1, len(content))
        if kind == "flip":
            content = content[:at] + bytes(byte ^ 1 << more[0] for byte in content[at : at + 1]) + content[at + 1 :]
        elif kind == "put":
            content = content[:at] + more[0] + content[at + len(more[0]) :]
        elif kind == "insert":
            content = content[:at] + more[0] + content[at:]
        elif kind == "cut":
            content = content[:at] + content[at + more[0] :]
        elif kind == "clear":
            content = content[:at] + bytes(len(content[at : at + more[0]])) + content[at + more[0] :]
        elif kind == "swap":
            content = swap(content, at, more[0] % max(1, len(content)), more[1], more[1])
        else:
            content = content[:at]
    return content


def swap(content: bytes, one: int, two: int, one_length: int, two_length: int) -> bytes:
    """The content with two ranges in each other's place; untouched where they overlap."""
    if one > two:
        one, two, one_length, two_length = two, one, two_length, one_length
    if one + one_length > two:
        return content
    first, second = content[one : one + one_length], content[two : two + two_length]
    return content[:one] + second + content[one + one_length : two] + first + content[two + two_length :]


@cases
@given(which=st.integers(0, 2), changes=byte_damage, check_shards=st.booleans(), remote=st.booleans())
def test_a_damaged_shard_gives_the_right_images_or_an_error(intact, which, changes, check_shards, remote):
    name = intact.index.shards[which].name
    folder = intact.damaged({name: damage(intact.files[name], changes)}, remote)
    event(intact.judge(folder, check_shards=check_shards))


@cases
@given(
    rows=st.lists(st.integers(0, 23), min_size=2, max_size=6), shards=st.permutations(range(3)), remote=st.booleans()
)
def test_images_in_each_others_place_are_never_taken_for_each_other(intact, rows, shards, remote):
    """Whole images change places within a shard, with or without their lengths, and shards change names."""
    index = intact.index
    files = dict(intact.files)
    for one, two in zip(rows[::2], rows[1::2], strict=False):
        name = index.shards[index.shard[one]].name
        if index.shard[one] == index.shard[two]:
            spans = [(int(index.offset[row]), int(index.size[row])) for row in (one, two)]
            files[name] = swap(files[name], spans[0][0], spans[1][0], spans[0][1], spans[1][1])
    names = [shard.name for shard in index.shards]
    moved = {names[place]: files[names[shard]] for place, shard in enumerate(shards)}
    event(intact.judge(intact.damaged(moved, remote)))


@cases
@given(changes=byte_damage, remote=st.booleans())
def test_an_index_with_damaged_bytes_is_refused_or_true(intact, changes, remote):
    event(intact.judge(intact.damaged({INDEX_FILE: damage(intact.files[INDEX_FILE], changes)}, remote)))


# -- damage to fields -------------------------------------------------------------------------------------------------

strange = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([1 << 31, 1 << 63, -(1 << 63), 1 << 200]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 30), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
field_damage = st.lists(
    st.tuples(
        st.lists(places, min_size=1, max_size=4),
        st.sampled_from(["replace", "delete", "double", "swap", "reverse", "next", "rename"]),
        strange,
        places,
    ),
    min_size=1,
    max_size=3,
)


def damage_field(document: Any, way: list[int], kind: str, value: Any, other: int) -> None:
    """Change one entry of the document, found by going down the `way`."""
    parent, key = None, None
    for step in way:
        inner = document if parent is None else parent[key]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        parent, key = inner, list(inner)[step % len(inner)] if isinstance(inner, dict) else step % len(inner)
    keys = list(parent) if isinstance(parent, dict) else range(len(parent))
    sibling = keys[other % len(parent)]
    if kind == "replace":
        parent[key] = value
    elif kind == "delete":
        del parent[key]
    elif kind == "double" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == "swap":
        parent[key], parent[sibling] = parent[sibling], parent[key]
    elif kind == "reverse" and isinstance(parent[key], list):
        parent[key].reverse()
    elif kind == "next" and type(parent[key]) is int:
        parent[key] += 1
    elif kind == "rename" and isinstance(parent, dict):
        parent[str(value)] = parent.pop(key)


@cases
@given(changes=field_damage, check_shards=st.booleans())
def test_an_index_with_changed_fields_is_refused_or_true(intact, changes, check_shards):
    document = json.loads(intact.files[INDEX_FILE])
    for change in changes:
        if document:
            damage_field(document, *change)
    folder = intact.damaged({INDEX_FILE: json.dumps(document).encode()}, remote=False)
    event(intact.judge(folder, check_shards=check_shards))


# -- damage to the cache, and to an image before it is stored ---------------------------------------------------------


@cases
@given(which=st.integers(0, 2), changes=byte_damage)
def test_a_damaged_cache_costs_no_image(intact, tmp_path, which, changes):
    folder = intact.damaged({}, remote=True)
    assert intact.judge(folder, cache=tmp_path) == "nothing is refused"
    kept = tmp_path / intact.index.shards[which].sha256
    kept.write_bytes(damage(kept.read_bytes(), changes))
    assert intact.judge(folder, cache=tmp_path) == "nothing is refused"


@cases
@given(n=st.integers(0, 23), changes=byte_damage)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_was_broken_before_it_was_stored_is_an_error_or_what_pillow_sees(intact, n, changes):
    suffix, kind, options = FORMATS[n % 3]
    broken = damage(encode(n, kind, options), changes)
    content = write_tar([Sample(key="k", image=broken, label=0, suffix=suffix)], CLASSES, DOMAINS)
    try:
        tar = read_tar("train-0000.tar", content, DOMAINS)
        index = join("fuzz", [tar], CLASSES, DOMAINS, 0)
        folder = intact.damaged({"train-0000.tar": content}, remote=False)
        image = Samples(index, Store(folder, index), np.arange(1), index.label, image_size=SIZE).images([0])
    except UserError as error:
        assert "train-0000.tar: sample 'k'" in str(error) and "\n" not in str(error)
        event("the broken image is refused")
    else:
        assert image.shape == (1, 3, SIZE, SIZE)
        if (index.height[0], index.width[0]) == (SIZE, SIZE):
            assert image.numpy().tobytes() == decode(broken)
        event("the broken image is decoded")


def test_what_is_not_damaged_is_all_right(intact):
    for remote in (False, True):
        assert intact.judge(intact.damaged({}, remote), check_shards=True) == "nothing is refused"
