"""The index: what is written is what is read, and nothing that does not fit its shards is believed."""

import dataclasses
import io
import json

import fsspec
import numpy as np
import pytest
from PIL import Image

from benchmarks.index import COLUMNS, Index, Shard
from benchmarks.shards import Sample, write_shards
from fmlora_dist.errors import UserError


def png(n):
    stream = io.BytesIO()
    Image.new("RGB", (48, 48 + n), (n, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    samples = [
        Sample(key=f"s{n}", image=png(n), label=n % 3, domain=n % 2, split=int(n > 5), suffix="png") for n in range(8)
    ]
    write_shards(tmp_path, "toy", samples, ["a", "b", "c"], ["ink", "chalk"], 48)
    return tmp_path


def change(folder, edit):
    path = folder / "index.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def message(folder):
    with pytest.raises(UserError) as caught:
        Index.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_keeps_every_field_and_every_byte(folder, tmp_path_factory):
    index = Index.load(folder)
    other = tmp_path_factory.mktemp("other")
    index.save(other)
    assert (other / "index.json").read_bytes() == (folder / "index.json").read_bytes()
    again = Index.load(other, check_shards=False)
    assert again.keys == index.keys and again.shards == index.shards and again.fingerprint == index.fingerprint
    np.testing.assert_array_equal(again.offset, index.offset)
    assert index.label.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and index.split.tolist() == [0] * 6 + [1] * 2


def test_offsets_point_at_the_image_bytes(folder):
    index = Index.load(folder)
    for n, key in enumerate(index.keys):
        content = (folder / index.shards[index.shard[n]].name).read_bytes()
        start = int(index.offset[n])
        assert content[start : start + int(index.size[n])] == png(int(key[1:]))
    assert index.height.tolist() == [48 + n for n in range(8)] and index.width.tolist() == [48] * 8


def test_the_fingerprint_changes_with_every_field(folder):
    index = Index.load(folder)
    changed = {
        "name": "other",
        "image_size": 47,
        "classes": ("a", "b", "d"),
        "domains": ("chalk", "ink"),
        "split_rule": "random:1",
        "list_order": (2, 0, 1),
        "shards": (Shard(name="x", bytes=1, sha256="0" * 64), *index.shards[1:]),
        "keys": (*index.keys[1:], index.keys[0]),
    }
    for field, _ in COLUMNS.values():
        changed[field] = np.roll(getattr(index, field), 1) + np.arange(8)
    assert changed.keys() == {field.name for field in dataclasses.fields(index)}
    fingerprints = {dataclasses.replace(index, **{name: value}).fingerprint for name, value in changed.items()}
    assert len(fingerprints | {index.fingerprint}) == len(changed) + 1


def test_the_split_hash_knows_images_and_labels_but_not_shards_or_the_order_in_them(folder):
    index = Index.load(folder)
    turned = {field: getattr(index, field)[::-1] for field, _ in COLUMNS.values()}
    elsewhere = dataclasses.replace(index, keys=index.keys[::-1], **turned)
    elsewhere = dataclasses.replace(elsewhere, offset=elsewhere.offset + 512)
    assert elsewhere.fingerprint != index.fingerprint and elsewhere.split_hash == index.split_hash
    for changed in ("crc32", "label", "domain", "split"):
        other = dataclasses.replace(index, **{changed: getattr(index, changed) + np.eye(8, dtype=np.int32)[3]})
        assert other.split_hash != index.split_hash
    assert dataclasses.replace(index, split_rule="random:1").split_hash != index.split_hash


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["samples"]["class"].__setitem__(0, 1),
        lambda d: d["samples"]["key"].reverse(),
        lambda d: d["classes"].reverse(),
        lambda d: d["samples"].update(width=49),
        lambda d: d.update(list_order=[2, 1, 0]),
        lambda d: d.update(fingerprint="0" * 64),
    ],
)
def test_an_index_that_was_edited_is_refused_even_where_it_could_be_true(folder, edit):
    change(folder, edit)
    assert "the file was changed after it was written" in message(folder)


def test_an_index_of_another_layout_but_the_same_content_is_the_same(folder):
    before = Index.load(folder).fingerprint
    change(folder, lambda document: document["samples"].update(width=[48] * 8))
    assert Index.load(folder).fingerprint == before


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda d: d.update(schema=7), "schema: found 7, expected 2"),
        (lambda d: d.pop("classes"), "classes"),
        (lambda d: d.update(classes=["a", "b", "a"]), "'a' twice"),
        (lambda d: d.pop("samples"), "samples: found nothing"),
        (lambda d: d["samples"]["size"].pop(), "samples.size: found 7 entries, expected 8"),
        (lambda d: d["samples"]["class"].__setitem__(2, 3), "samples.class of sample 's2': found 3, expected 0 to 2"),
        (lambda d: d["samples"]["domain"].__setitem__(0, -1), "samples.domain of sample 's0': found -1"),
        (lambda d: d["samples"]["split"].__setitem__(0, 2), "samples.split of sample 's0': found 2, expected 0 to 1"),
        (lambda d: d["samples"]["shard"].__setitem__(1, 9), "samples.shard of sample 's1': found 9"),
        (lambda d: d["samples"]["offset"].__setitem__(3, 1 << 40), "sample 's3': found its image ending at byte"),
        (lambda d: d["samples"]["offset"].__setitem__(3, (1 << 63) - 1), "sample 's3': found its image ending at byte"),
        (lambda d: d["samples"]["offset"].__setitem__(3, 1 << 70), "samples.offset: found an entry that is no integer"),
        (lambda d: d["samples"]["offset"].__setitem__(3, 1.5), "samples.offset: found an entry that is no integer"),
        (lambda d: d["samples"]["offset"].__setitem__(3, [1]), "samples.offset: found an entry that is no integer"),
        (lambda d: d["samples"]["crc32"].__setitem__(3, 1 << 32), "samples.crc32 of sample 's3'"),
        (lambda d: d["samples"].update(height=0), "samples.height of sample 's0': found 0"),
        (lambda d: d["samples"].update(width=1 << 70), "width: found int, expected list"),
        (lambda d: d.update(list_order=[0, 0, 1]), "list_order: found something else"),
        (lambda d: d.pop("fingerprint"), "fingerprint: found nothing"),
        (lambda d: d["shards"][0].update(sha256="../../escape"), "shards[0].sha256"),
        (lambda d: d["shards"][0].update(bytes=1 << 70), "shards[0].bytes"),
        (lambda d: d["samples"]["offset"].__setitem__(3, "x"), "samples.offset: found an entry that is no integer"),
        (lambda d: d["samples"]["key"].__setitem__(1, "s0"), "'s0' twice"),
        (lambda d: d["shards"][0].update(name="../evil.tar"), "shards[0].name"),
        (lambda d: d["shards"][0].pop("bytes"), "shards[0]: bytes: found nothing"),
    ],
)
def test_a_wrong_index_is_refused_with_the_field_at_fault(folder, edit, expected):
    change(folder, edit)
    found = message(folder)
    assert expected in found and "index.json" in found


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"schema": ' + "1" * 5000 + "}", ""])
def test_text_that_is_no_json_is_refused(folder, text):
    (folder / "index.json").write_text(text)
    assert "invalid JSON" in message(folder)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "index.json").write_bytes(b"\xff\xfe")
    assert "unreadable" in message(folder)


def test_a_missing_index_or_folder_is_named(tmp_path):
    assert "index.json: found no such file" in message(tmp_path)
    assert "nowhere: found no such folder" in message(tmp_path / "nowhere")


def test_a_missing_shard_is_named(folder):
    (folder / "test-0000.tar").unlink()
    assert "test-0000.tar: found no such shard" in message(folder)


def test_a_truncated_shard_is_named_with_the_byte_at_which_it_ends(folder):
    shard = folder / "train-0000.tar"
    whole = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:1000])
    found = message(folder)
    assert "train-0000.tar" in found and "ends at byte 1000" in found and str(whole) in found


def test_a_longer_shard_does_not_match_the_index(folder):
    shard = folder / "train-0000.tar"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert "does not match" in message(folder)


def test_an_index_behind_a_url_is_read_and_its_shards_are_checked_by_one_listing(folder):
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/indexed", recursive=True)
    url = "memory://indexed"
    try:
        index = Index.load(url)
        assert index.fingerprint == Index.load(folder).fingerprint
        index.save("memory://indexed/copied")
        assert files.cat("/indexed/copied/index.json") == (folder / "index.json").read_bytes()
        files.pipe("/indexed/test-0000.tar", b"short")
        with pytest.raises(UserError, match=r"memory://indexed/test-0000\.tar: .*truncated shard that ends at byte 5"):
            Index.load(url)
        files.rm("/indexed/test-0000.tar")
        with pytest.raises(UserError, match=r"test-0000\.tar: found no such shard"):
            Index.load(url)
        with pytest.raises(UserError, match=r"memory://nowhere/index\.json: found no such file"):
            Index.load("memory://nowhere")
    finally:
        files.rm("/indexed", recursive=True)


def test_600_000_samples_are_read_as_they_were_written(tmp_path):
    """DomainNet's size."""
    n = 600_000
    row = np.arange(n)
    index = Index(
        name="large",
        image_size=0,
        classes=tuple(f"class{number}" for number in range(345)),
        domains=tuple("abcdef"),
        shards=tuple(Shard(name=f"train-{number:04d}.tar", bytes=1 << 28, sha256="0" * 64) for number in range(100)),
        keys=tuple(f"clipart-{number:06d}-aircraft_carrier" for number in range(n)),
        shard=(row // 6000).astype(np.int32),
        offset=row % 6000 * 40_000,
        size=row % 39_999 + 1,
        crc32=row * 7919 % (1 << 32),
        height=(row % 500 + 100).astype(np.int32),
        width=(row % 400 + 100).astype(np.int32),
        label=(row % 345).astype(np.int32),
        domain=(row % 6).astype(np.int32),
        split=(row % 3 // 2).astype(np.int32),
    )
    index.save(tmp_path)
    again = Index.load(tmp_path, check_shards=False)
    assert again.fingerprint == index.fingerprint
