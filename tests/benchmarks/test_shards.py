"""Shards: plain WebDataset tars, the same bytes for the same samples."""

import io
import tarfile
import zlib

import numpy as np
import pytest
import webdataset
from PIL import Image

from benchmarks.icons.benchmark import DATA
from benchmarks.index import INDEX_FILE, Index
from benchmarks.shards import Sample, join, read_tar, write_shards, write_tar
from fmlora_dist.errors import UserError

CLASSES, DOMAINS = ["cat", "dog"], ["x", "y", "z"]


def png(n, height=11, width=17):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def samples(count=40):
    return [
        Sample(key=f"k{n:03d}", image=png(n), label=n % 2, domain=n % 3, split=int(n % 4 == 3), suffix="png")
        for n in range(count)
    ]


def write(folder, **options):
    return write_shards(folder, "toy", options.pop("samples", samples()), CLASSES, DOMAINS, 8, **options)


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name, shard_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(files) > 3
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_any_webdataset_reader_reads_them(tmp_path):
    index = write(tmp_path, shard_bytes=30_000)
    seen = {}
    for shard in index.shards:
        assert shard.bytes <= 30_000
        for sample in webdataset.WebDataset(str(tmp_path / shard.name), shardshuffle=False, empty_check=False).decode():
            seen[sample["__key__"]] = sample
    assert seen.keys() == set(index.keys) and len(seen) == 40
    assert seen["k005"]["json"] == {"class": "dog", "domain": "z", "label": 1}
    assert seen["k005"]["png"] == png(5)


def test_a_shard_holds_one_split_only(tmp_path):
    index = write(tmp_path)
    for number, shard in enumerate(index.shards):
        splits = set(index.split[index.shard == number].tolist())
        assert splits == ({0} if shard.name.startswith("train") else {1})


def test_shards_of_an_earlier_call_are_replaced(tmp_path):
    write(tmp_path, shard_bytes=10_000)
    index = write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.tar")} == {shard.name for shard in index.shards}
    assert Index.load(tmp_path).fingerprint == index.fingerprint


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "-a"])
def test_keys_that_webdataset_would_cut_are_refused(tmp_path, key):
    with pytest.raises(UserError, match="sample key"):
        write(tmp_path, samples=[Sample(key=key, image=png(0), label=0)])


def test_a_key_twice_is_refused_and_leaves_no_index(tmp_path):
    with pytest.raises(UserError, match="twice"):
        write(tmp_path, samples=[Sample(key="a", image=png(0), label=0)] * 2)
    assert not (tmp_path / "index.json").exists()


def test_the_index_says_what_lies_in_the_tars(tmp_path):
    index = write(tmp_path, shard_bytes=30_000)
    images = {sample.key: sample.image for sample in samples()}
    for row, key in enumerate(index.keys):
        content = (tmp_path / index.shards[index.shard[row]].name).read_bytes()
        start = int(index.offset[row])
        image = content[start : start + int(index.size[row])]
        assert image == images[key] and zlib.crc32(image) == index.crc32[row]
    assert set(index.height) == {11} and set(index.width) == {17}


def test_tars_and_index_made_apart_are_those_of_write_shards(tmp_path):
    whole = write(tmp_path, samples=samples(8))
    parts = {0: [s for s in samples(8) if s.split == 0], 1: [s for s in samples(8) if s.split == 1]}
    contents = {shard.name: write_tar(parts[n], CLASSES, DOMAINS) for n, shard in enumerate(whole.shards)}
    for name, content in contents.items():
        assert (tmp_path / name).read_bytes() == content
    tars = [read_tar(name, content, DOMAINS) for name, content in contents.items()]
    assert join("toy", tars, CLASSES, DOMAINS, 8).fingerprint == whole.fingerprint
    other = join("toy", tars, CLASSES, DOMAINS, 8, split_rule="random:0", list_order=[1, 0])
    other.save(tmp_path)
    again = Index.load(tmp_path)
    assert (again.split_rule, again.list_order) == ("random:0", (1, 0)) and again.fingerprint != whole.fingerprint


@pytest.mark.skipif(not (DATA / INDEX_FILE).exists(), reason="the embedded shards are not built here")
def test_the_embedded_index_is_what_its_shards_give():
    index = Index.load(DATA)
    tars = [read_tar(shard.name, (DATA / shard.name).read_bytes(), index.domains) for shard in index.shards]
    assert join(index.name, tars, index.classes, index.domains, 48).fingerprint == index.fingerprint


def test_what_is_no_image_is_not_stored(tmp_path):
    with pytest.raises(UserError, match=r"train-0000.tar: sample 'a': found 3 bytes that are no image"):
        write(tmp_path, samples=[Sample(key="a", image=b"GIF", label=0)])


def test_a_tar_of_other_hands_is_refused():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("alone.png"), io.BytesIO())
    for name, found in (("train-0000.tar", content.getvalue()), ("train-0000.tar", b"x" * 600), ("other.tar", b"")):
        with pytest.raises(UserError, match="found no shard of this project"):
            read_tar(name, found, DOMAINS)


def test_a_benchmark_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="found no image to store"):
        write(tmp_path, samples=[])
