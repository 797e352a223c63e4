"""Images of a task: its own only, each opened once when they fit, the same whoever reads them and wherever they lie."""

import dataclasses
import threading
import zlib

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.samples import Samples, decoded_bytes
from benchmarks.shards import Sample, write_shards
from benchmarks.store import Store
from benchmarks.stream import TrainStream, epoch_order
from benchmarks.tasks import TaskSequence
from benchmarks.transforms import Transform, draw_crops, view
from fmlora_dist.errors import UserError

MANY = 1 << 30
SHAPES = [(40, 60), (60, 40), (16, 30), (10, 8), (33, 33), (200, 17)]


def read_epochs(samples, epochs=1, start=0, batch_size=10):
    stream = TrainStream(samples, batch_size=batch_size, seed=0, task=1)
    return [batch for epoch in range(epochs) for batch in stream.epoch(epoch, start)]


def opened_in(samples, run) -> list[str]:
    keys: list[str] = []
    samples.opened = keys.extend
    run()
    return keys


@pytest.fixture(scope="module")
def ragged(tmp_path_factory, encode):
    """(index, folder, pictures uint8 [H, W, 3]) of images of many shapes."""
    folder = tmp_path_factory.mktemp("ragged")
    draw = np.random.default_rng(1)
    pictures = [draw.integers(0, 256, (*SHAPES[n % len(SHAPES)], 3), dtype=np.uint8) for n in range(24)]
    made = [Sample(key=f"k{n}", image=encode(p), label=0, suffix="png") for n, p in enumerate(pictures)]
    return write_shards(folder, "ragged", made, ["a"], ["d"], 0), folder, pictures


def samples_of(ragged, **options) -> Samples:
    index, folder, _ = ragged
    n = len(index)
    labels = np.zeros(n, dtype=np.int64)
    return Samples(index, Store(folder, index), np.arange(n), labels, **{"image_size": 16, **options})


# -- what is given out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache_bytes", [0, MANY])
@pytest.mark.parametrize("test_only", [False, True])
def test_images_do_not_depend_on_workers_or_cache(ragged, workers, cache_bytes, test_only):
    transform = Transform(test_resize=20)
    samples = samples_of(ragged, workers=workers, cache_bytes=cache_bytes, test_only=test_only, transform=transform)
    expected = torch.stack([view(torch.from_numpy(p).permute(2, 0, 1), 16, transform) for p in ragged[2]])
    for _ in range(2):
        assert torch.equal(samples.images(np.arange(len(samples))), expected)
    assert torch.equal(samples.images([5, 5, 0]), expected[[5, 5, 0]])
    assert samples.images([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("cache_bytes", [0, MANY])
def test_crops_are_cut_from_the_original_pixels(ragged, workers, cache_bytes):
    samples = samples_of(ragged, workers=workers, cache_bytes=cache_bytes, transform=Transform(flip=False))
    drawn = draw_crops(samples.heights, samples.widths, samples.transform, np.random.default_rng(0))
    windows = samples.windows(np.arange(len(samples)), drawn)
    parts = windows.pixels.split([3 * height * width for height, width in windows.shapes])
    for part, (top, left, height, width), picture in zip(parts, drawn.boxes, ragged[2], strict=True):
        assert np.array_equal(part.view(height, width, 3), picture[top : top + height, left : left + width])
    crops = samples.crops(np.arange(len(samples)), drawn)
    assert torch.equal(crops, windows.to(torch.device("cpu"))) and crops.is_contiguous()


@pytest.mark.parametrize("test_only", [False, True])
def test_what_is_given_out_is_a_copy_of_what_is_kept(tiny, test_only):
    samples = tiny.samples(cache_bytes=MANY, test_only=test_only)
    samples.images([0]).zero_()
    assert np.array_equal(samples.images([0])[0].numpy(), tiny.pixels[samples.keys[0]])


def test_images_without_a_size_need_one(ragged):
    with pytest.raises(ValueError, match="image_size"):
        samples_of(ragged, image_size=None)


# -- what is opened, and kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
def test_a_task_opens_its_own_images_only_and_once_if_they_fit(tiny, workers):
    sequence = TaskSequence(tiny.index, scenario="cil", n_tasks=4, order_seed=1)
    for task in sequence:
        samples = tiny.samples(task.train, workers=workers, cache_bytes=decoded_bytes(tiny.index, task.train))
        keys = opened_in(samples, lambda s=samples: read_epochs(s, 3, batch_size=5))
        assert sorted(keys) == sorted(tiny.index.keys[row] for row in task.train)


def test_images_that_do_not_fit_are_read_anew_and_none_is_kept(ragged):
    size = decoded_bytes(ragged[0], np.arange(24))
    assert size == sum(picture.size for picture in ragged[2])
    for cache_bytes, opened in ((size, 1), (size - 1, 2)):
        samples = samples_of(ragged, cache_bytes=cache_bytes)
        assert len(opened_in(samples, lambda s=samples: [s.images([1]), s.images([1])])) == opened


def test_images_that_are_only_tested_take_the_memory_of_the_tested_size(ragged):
    samples = samples_of(ragged, cache_bytes=24 * 3 * 16 * 16, test_only=True)
    assert len(opened_in(samples, lambda: [samples.images([1]), samples.images([1])])) == 1


def test_released_images_are_read_anew(ragged):
    samples = samples_of(ragged, cache_bytes=MANY)
    before = samples.images(np.arange(24))
    samples.release()
    assert samples._kept is None
    assert opened_in(samples, lambda: samples.images([3])) == ["k3"]
    assert torch.equal(samples.images(np.arange(24)), before)


def test_threads_that_want_the_same_images_open_each_once(tiny):
    samples = tiny.samples(cache_bytes=MANY)

    def run():
        threads = [threading.Thread(target=samples.images, args=(np.arange(len(samples)),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(opened_in(samples, run)) == len(samples)


def test_a_resumed_epoch_opens_nothing_of_the_steps_before(tiny):
    samples = tiny.samples()
    order = epoch_order(len(samples), seed=0, task=1, epoch=0)
    keys = opened_in(samples, lambda: read_epochs(samples, start=9))
    assert keys == [samples.keys[position] for position in order[90:]]


def test_shards_are_read_through_fsspec_urls(tiny):
    files = fsspec.filesystem("memory")
    for shard in tiny.index.shards:
        files.pipe(f"/tiny/{shard.name}", (tiny.folder / shard.name).read_bytes())
    remote = dataclasses.replace(tiny, folder="memory://tiny").samples(workers=2)
    assert torch.equal(remote.images(np.arange(20)), tiny.samples().images(np.arange(20)))


def test_exactly_the_bytes_of_the_samples_are_read(tiny):
    rows = np.arange(5, 60, 3)
    store = Store(tiny.folder, tiny.index)
    samples = Samples(tiny.index, store, rows, tiny.index.label[rows], workers=2, cache_bytes=MANY)
    read_epochs(samples, 3)
    assert store.bytes_read == tiny.index.size[rows].sum()


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tiny, tmp_path):
    """A copy of the benchmark whose shards may be spoilt."""
    for shard in tiny.index.shards:
        (tmp_path / shard.name).write_bytes((tiny.folder / shard.name).read_bytes())
    return dataclasses.replace(tiny, folder=tmp_path)


def spoil(tiny, row: int, damage) -> tuple[str, int]:
    """Change the shard of a row; give its name and the byte that the error must name."""
    shard, offset = tiny.index.shards[tiny.index.shard[row]].name, int(tiny.index.offset[row])
    path = tiny.folder / shard
    path.write_bytes(damage(path.read_bytes(), offset))
    return str(path), offset


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content, offset: content[:offset] + b"\0" * 200 + content[offset + 200 :],
        lambda content, offset: content[: offset + 40] + b"\xff" * 60 + content[offset + 100 :],
        lambda content, offset: content[: offset + 100],
        lambda content, offset: content[:offset],
    ],
    ids=["zeros", "garbage", "truncated", "nothing"],
)
def test_spoilt_bytes_are_reported_with_shard_and_byte(damaged, damage, workers):
    last = int(np.flatnonzero(damaged.index.shard == 0)[-1])
    shard, offset = spoil(damaged, last, damage)
    samples = damaged.samples(workers=workers)
    with pytest.raises(UserError) as caught:
        read_epochs(samples, batch_size=16)
    assert str(caught.value).startswith(shard) and str(offset) in str(caught.value)
    assert "\n" not in str(caught.value)
    samples.images(np.flatnonzero(damaged.index.shard != 0))  # the others are as good as before


def test_a_missing_shard_is_named(damaged):
    (damaged.folder / damaged.index.shards[1].name).unlink()
    with pytest.raises(UserError, match=damaged.index.shards[1].name):
        damaged.samples().images(np.flatnonzero(damaged.index.shard == 1)[:1])


def test_bytes_that_are_no_image_are_reported_with_shard_key_and_byte(tmp_path, ragged):
    index, folder, _ = ragged
    shard, offset, size = index.shards[index.shard[3]].name, int(index.offset[3]), int(index.size[3])
    content = bytearray((folder / shard).read_bytes())
    content[offset : offset + size] = b"\7" * size
    (tmp_path / shard).write_bytes(content)
    crc32 = index.crc32.copy()
    crc32[3] = zlib.crc32(b"\7" * size)
    spoilt = dataclasses.replace(index, crc32=crc32)
    with pytest.raises(UserError, match=rf"{shard}: sample 'k3' at byte {offset}: found {size} bytes that cannot be"):
        samples_of((spoilt, tmp_path, None)).images([3])


def test_an_image_of_another_size_than_the_index_says_is_refused(ragged):
    index, folder, _ = ragged
    wrong = dataclasses.replace(index, height=index.height + 1)
    with pytest.raises(UserError, match=r"sample 'k2' .*: found an image of 30x16 pixels, expected 30x17"):
        samples_of((wrong, folder, None)).images([2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 107), st.integers(0, 800), st.binary(min_size=1, max_size=40))
def test_overwritten_bytes_give_the_right_image_or_a_named_error(tmp_path_factory, tiny, row, where, junk):
    folder = tmp_path_factory.mktemp("fuzz")
    shard, offset, size = (getattr(tiny.index, name)[row] for name in ("shard", "offset", "size"))
    content = bytearray((tiny.folder / tiny.index.shards[shard].name).read_bytes())
    at = offset + where % size
    content[at : at + len(junk)] = junk
    (folder / tiny.index.shards[shard].name).write_bytes(content)
    samples = dataclasses.replace(tiny, folder=folder).samples(np.array([row]))
    try:
        assert np.array_equal(samples.images([0])[0].numpy(), tiny.pixels[samples.keys[0]])
    except UserError as error:
        assert str(offset) in str(error) and tiny.index.shards[shard].name in str(error)
