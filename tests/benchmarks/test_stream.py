"""The stream's promises: only its own samples, each once an epoch, the same batches for any processes and workers."""

import gc
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import stream
from benchmarks.stream import TrainStream, epoch_order
from benchmarks.transforms import Transform, Windows
from fmlora_dist.errors import UserError

MANY = 1 << 30
WHOLE = Transform(crop_scale=(1.0, 1.0), flip=False)
several = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def train_stream(samples, **options) -> TrainStream:
    return TrainStream(samples, **{"seed": 0, "task": 1, **options})


def global_batches(samples, world_size, epoch=0, start=0, **options):
    """Per step: positions and cropped images of all processes together, without those of weight 0."""
    shares = [
        list(train_stream(samples, rank=rank, world_size=world_size, **options).epoch(epoch, start))
        for rank in range(world_size)
    ]
    for step in zip(*shares, strict=True):
        real = [batch for batch in step if batch.weight > 0]
        yield (
            np.concatenate([batch.positions for batch in real]),
            torch.cat([batch.images for batch in real]),
        )


def equal(left, right):
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(left, right, strict=True))


# -- order ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(0, 2**63), st.integers(1, 50), st.integers(0, 500))
def test_epoch_order_is_a_permutation_and_a_function_of_seed_task_and_epoch(n, seed, task, epoch):
    order = epoch_order(n, seed=seed, task=task, epoch=epoch)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed=seed, task=task, epoch=epoch))


def test_epoch_order_differs_with_each_argument_and_is_the_same_on_every_machine():
    orders = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0)]
    assert len({tuple(epoch_order(40, seed=s, task=t, epoch=e)) for s, t, e in orders}) == len(orders)
    assert list(epoch_order(10, seed=0, task=1, epoch=0)) == [8, 0, 3, 1, 7, 9, 5, 6, 4, 2]


def test_every_place_of_the_order_is_equally_likely():
    n, draws = 6, 3000
    orders = np.array([epoch_order(n, seed=seed, task=1, epoch=0) for seed in range(draws)])
    counts = np.stack([np.bincount(column, minlength=n) for column in orders.T])
    assert np.abs(counts / draws - 1 / n).max() < 4 * np.sqrt(1 / n / draws)


# -- training ------------------------------------------------------------------------------------------------------


@several
@given(st.integers(1, 72), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 3), st.data())
def test_global_batches_are_the_same_for_any_number_of_processes_and_any_start(tiny, n, size, seed, epoch, data):
    samples = tiny.samples(np.flatnonzero(tiny.index.split == 0)[:n], cache_bytes=MANY)
    options = {"batch_size": size, "seed": seed, "epoch": epoch}
    alone = list(global_batches(samples, 1, **options))
    assert len(alone) == train_stream(samples, batch_size=size).steps_per_epoch == -(-n // size)
    assert sorted(np.concatenate([positions for positions, _ in alone])) == list(range(n))
    assert [len(positions) for positions, _ in alone[:-1]] == [size] * (len(alone) - 1)
    world_size = data.draw(st.integers(1, 5))
    start = data.draw(st.integers(0, len(alone)))
    shared = list(global_batches(samples, world_size, start=start, **options))
    assert len(shared) == len(alone) - start
    assert all(equal(left, right) for left, right in zip(shared, alone[start:], strict=True))


@several
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 6))
def test_weighted_losses_average_to_the_loss_of_the_global_batch(tiny, n, size, world_size):
    samples = tiny.samples(np.arange(n), cache_bytes=MANY)
    values = torch.arange(n, dtype=torch.float64) ** 2
    for step in zip(
        *(train_stream(samples, batch_size=size, rank=r, world_size=world_size).epoch(0) for r in range(world_size)),
        strict=True,
    ):
        weighted = [batch.weight * values[batch.positions].mean() for batch in step]
        together = np.concatenate([batch.positions for batch in step if batch.weight])
        assert torch.isclose(sum(weighted) / world_size, values[together].mean())
        assert all(len(batch.images) >= 1 for batch in step)


def test_a_process_without_a_share_gets_an_image_of_weight_zero(tiny):
    samples = tiny.samples(np.arange(2))
    batches = [next(train_stream(samples, batch_size=8, rank=r, world_size=3).epoch(0)) for r in range(3)]
    assert sorted(batch.weight for batch in batches) == [0.0, 1.5, 1.5]
    assert all(len(batch.images) == len(batch.labels) == 1 for batch in batches)


def test_images_and_labels_are_those_of_the_positions(tiny):
    samples = tiny.samples(transform=WHOLE)
    for batch in train_stream(samples, batch_size=32).epoch(2):
        assert batch.images.dtype == torch.uint8 and batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == tiny.index.label[batch.positions].tolist()
        for image, position in zip(batch.images, batch.positions, strict=True):
            assert np.array_equal(image.numpy(), tiny.pixels[samples.keys[position]])


def test_crops_change_from_epoch_to_epoch_and_task_to_task(tiny):
    samples = tiny.samples(np.arange(1), cache_bytes=MANY)
    drawn = [(task, epoch) for task in (1, 2) for epoch in range(3)]
    images = [next(train_stream(samples, batch_size=1, task=task).epoch(epoch)).images for task, epoch in drawn]
    assert len({tuple(image.flatten().tolist()) for image in images}) == 6


@pytest.mark.parametrize("train_resize", [None, 64])
@pytest.mark.parametrize("brightness", [0.0, 63 / 255])
def test_crops_resized_where_they_are_moved_to_are_those_resized_while_reading(tiny, brightness, train_resize):
    transform = Transform(crop_scale=(0.2, 1.0), brightness=brightness, train_resize=train_resize)
    samples = tiny.samples(transform=transform)
    now, later = (list(train_stream(samples, batch_size=10, resize_later=later).epoch(1)) for later in (False, True))
    for one, other in zip(now, later, strict=True):
        assert isinstance(other.images, Windows) and len(other.images) == len(one.images)
        assert other.images.pixels.ndim == 1
        assert torch.equal(other.images.to(torch.device("cpu")), one.images)
        assert (one.brightness is None) == (brightness == 0)
        if one.brightness is not None:
            assert torch.equal(one.brightness, other.brightness) and one.brightness.std() > 0.05


def test_a_restricted_stream_gives_its_positions_only(tiny):
    chosen = np.array([3, 17, 5, 40])
    restricted = train_stream(tiny.samples(), batch_size=3, positions=chosen)
    assert restricted.steps_per_epoch == 2
    assert sorted(np.concatenate([batch.positions for batch in restricted.epoch(0)])) == sorted(chosen)


def test_a_batch_size_below_one_is_the_users_mistake(tiny):
    with pytest.raises(UserError, match="batch_size: found 0"):
        train_stream(tiny.samples(), batch_size=0)


def test_an_abandoned_epoch_leaves_no_thread_behind(tiny):
    batches = train_stream(tiny.samples(workers=2), batch_size=4).epoch(0)
    next(batches)
    del batches
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("stream", "decode"))]


# -- test ----------------------------------------------------------------------------------------------------------


@several
@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 6))
def test_test_batches_give_each_image_once_over_all_processes(tiny, n, size, world_size):
    samples = tiny.samples(np.arange(n), cache_bytes=MANY)
    batches = [batch for r in range(world_size) for batch in stream.test_batches(samples, size, r, world_size)]
    assert [p for batch in batches for p in batch.positions] == list(range(n))
    assert all(1 <= len(batch.images) <= size for batch in batches)


def test_test_batches_can_be_restricted(tiny):
    (batch,) = stream.test_batches(tiny.samples(), 8, positions=np.array([7, 2]))
    assert list(batch.positions) == [7, 2] and batch.labels.tolist() == tiny.index.label[[7, 2]].tolist()
