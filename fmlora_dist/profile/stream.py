"""`fmlora profile stream`: the stream beside torchvision's ImageFolder and DataLoader, on the same JPEGs in one run."""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks.index import Index
from benchmarks.samples import Samples
from benchmarks.store import Store
from benchmarks.stream import Batch, TrainStream
from benchmarks.tasks import TaskSequence
from benchmarks.transforms import Normalisation, Transform, Windows, normalise
from fmlora_dist.distributed import World
from fmlora_dist.profile.bounds import Bound, as_json, bound_table
from fmlora_dist.profile.machine import machine
from fmlora_dist.profile.photographs import CLASSES, HEIGHT, WIDTH, write_photographs

__all__ = ["StreamProfile", "profile_stream"]

SIZE = 224
MEAN = STD = (0.5, 0.5, 0.5)
BUDGET = 8 << 30
PROCESSES, WORKERS = (1, 2, 4), (0, 1, 3)


@dataclass(frozen=True, kw_only=True)
class StreamProfile:
    """What to measure; the defaults are those for which the bounds hold."""

    images: int = 2000
    """Training images, in 20 classes."""
    epochs: int = 10
    batch_size: int = 64
    workers: int = 2
    """Threads of the stream, and processes of the DataLoader."""
    rounds: int = 2
    """Most times that both are measured, in turn."""
    patience: float = 60.0
    """Seconds after which no further round is begun, so that a slow machine is done in three minutes, too."""
    repeats: int = 11
    """Times that a task's first batch is waited for."""
    device: str = "auto"


def profile_stream(options: StreamProfile, console: Console) -> dict[str, Any]:
    """Measure, print the table, and give the figures.

    Returns:
        ``bounds`` (name, found, least or most, met), ``images_per_second`` of both sides, and what was measured where.
    """
    started = time.perf_counter()
    world = World(options.device, threads=1)
    with tempfile.TemporaryDirectory(prefix="fmlora-profile-") as name, console.status("") as status:
        folder = Path(name)
        status.update(f"writing {options.images} JPEGs")
        index = write_photographs(folder, options.images)
        shards = folder / "shards"
        seconds: dict[str, list[list[float]]] = {"loader": [], "stream": []}
        for number in range(options.rounds):
            if number and time.perf_counter() - started > options.patience:
                break
            for side, epochs in (("loader", _loader_epochs), ("stream", _stream_epochs)):
                status.update(f"{side}, round {number + 1} of {options.rounds}")
                seconds[side].append(list(epochs(folder, index, options, world)))
        status.update("the first batch of each task")
        first = _first_batches(shards, index, options)
        status.update("bytes and memory, task by task")
        (tasks,) = _in_processes(_tasks, [(shards, options)])
        status.update("images of 1, 2 and 4 processes")
        hashes = _hashes(shards, options)
    rates = {side: _rates(rounds, options) for side, rounds in seconds.items()}
    bounds = [
        Bound(
            name=f"images/s, {options.epochs} epochs, over ImageFolder + DataLoader",
            found=rates["stream"]["whole"] / rates["loader"]["whole"],
            least=3.0,
        ),
        Bound(
            name="images/s, first epoch, over ImageFolder + DataLoader",
            found=rates["stream"]["first_epoch"] / rates["loader"]["first_epoch"],
            least=1.0,
        ),
        Bound(name="bytes read for a task over bytes of its samples", found=max(tasks["bytes"]), most=1.05),
        Bound(name="time to first batch, task 20 over task 1", found=first[-1] / first[0], most=1.2),
        Bound(name="growth of memory from task 1 to task 20", found=tasks["rss"][-1] / tasks["rss"][0] - 1, most=0.05),
        Bound(name="different sequences of images", found=len(set(hashes.values())), most=1),
    ]
    figures = {
        "bounds": as_json(bounds),
        "images_per_second": rates,
        "seconds_of_epochs": seconds,
        "seconds_to_first_batch": first,
        "bytes_read_over_bytes_of_samples": tasks["bytes"],
        "rss_mib": [round(size / 2**20, 1) for size in tasks["rss"]],
        "hashes": hashes,
        "bytes_of_an_image": float(index.size.mean()),
        "options": asdict(options),
        "machine": machine(world, "torchvision"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _print(bounds, figures, options, console)
    return figures


# -- the two sides -------------------------------------------------------------------------------------------------


def _loader_epochs(folder: Path, index: Index, options: StreamProfile, world: World) -> Iterator[float]:
    """Seconds of each epoch with torchvision, as the public codes have it; workers live on from epoch to epoch."""
    pipeline = T.Compose(
        [T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)],
    )
    started = time.perf_counter()
    loader = DataLoader(
        ImageFolder(str(folder / "images" / "train"), pipeline),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=world.on_gpu,
    )
    for _ in range(options.epochs):
        batches = (images.to(world.device, non_blocking=True) for images, _ in loader)
        _consume(batches, options.images)
        yield time.perf_counter() - started
        started = time.perf_counter()


def _stream_epochs(folder: Path, index: Index, options: StreamProfile, world: World) -> Iterator[float]:
    """Seconds of each epoch with the stream, from its first look at the shards on."""
    started = time.perf_counter()
    shards = folder / "shards"
    task = _sequence(index, 1)[0]
    stream = _stream(_samples(shards, index, task.train, options.workers, pin=world.on_gpu), options, world=world)
    for epoch in range(options.epochs):
        batches = (_delivered(batch.images, world.device) for batch in stream.epoch(epoch))
        _consume(batches, options.images)
        yield time.perf_counter() - started
        started = time.perf_counter()


def _delivered(images: Tensor | Windows, device: torch.device) -> Tensor:
    """What a network is given: float32 [b, 3, S, S], normalised, on the device."""
    moved = images.to(device) if isinstance(images, Windows) else images.to(device, non_blocking=True)
    return normalise(moved, Normalisation(MEAN, STD))


def _consume(batches: Iterator[Tensor], n: int) -> None:
    """Take all batches; the last value of the last one is waited for."""
    seen = 0
    for images in batches:
        assert images.shape[1:] == (3, SIZE, SIZE) and images.dtype == torch.float32
        seen += len(images)
    assert images[-1, -1, -1, -1].item() == images[-1, -1, -1, -1].item()
    assert seen == n, f"{seen} images of {n}"


def _rates(rounds: Sequence[Sequence[float]], options: StreamProfile) -> dict[str, float]:
    """Images a second, medians over the rounds."""
    whole = statistics.median(sum(seconds) for seconds in rounds)
    first = statistics.median(seconds[0] for seconds in rounds)
    return {"whole": options.images * options.epochs / whole, "first_epoch": options.images / first}


# -- task by task --------------------------------------------------------------------------------------------------


def _first_batches(shards: Path, index: Index, options: StreamProfile) -> list[float]:
    """Median seconds until the first batch of the first and the last task, measured in turn."""
    sequence = _sequence(index, CLASSES)
    seconds: list[list[float]] = [[], []]
    for _ in range(options.repeats):
        for number, place in enumerate((0, CLASSES - 1)):
            started = time.perf_counter()
            samples = _samples(shards, index, sequence[place].train, options.workers)
            batches = _stream(samples, options, task=place + 1).epoch(0)
            next(batches)
            seconds[number].append(time.perf_counter() - started)
            del batches  # not before: its end waits for the batch that is made ahead
    return [statistics.median(times) for times in seconds]


def _tasks(shards: Path, options: StreamProfile) -> dict[str, list[float]]:
    """For each task, two epochs of it: bytes read over bytes of its samples, and the memory while it is kept."""
    index = Index.load(shards)
    store = Store(shards, index)
    found: dict[str, list[float]] = {"bytes": [], "rss": []}
    for task in _sequence(index, CLASSES):
        before = store.bytes_read
        samples = _samples(shards, index, task.train, options.workers, store=store)
        for epoch in range(2):
            for batch in _stream(samples, options, task=task.number).epoch(epoch):
                _delivered(batch.images, torch.device("cpu"))
        found["bytes"].append((store.bytes_read - before) / int(index.size[task.train].sum()))
        found["rss"].append(_resident())
        samples.release()
    return found


def _resident() -> float:
    """Bytes of this process in memory now; its most until now, where the system does not say."""
    try:
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


# -- the same images for any number of processes and workers ---------------------------------------------------------


def _hashes(shards: Path, options: StreamProfile) -> dict[str, str]:
    """SHA-256 of the keys and pixels in the order of the global batches, by number of processes and of workers."""
    found = {}
    for size in PROCESSES:
        shares = _in_processes(_share, [(shards, options, rank, size) for rank in range(size)])
        for workers in WORKERS:
            steps = zip(*(share[workers] for share in shares), strict=True)
            text = "\n".join("".join(parts) for parts in steps)
            found[f"{size} processes, {workers} workers"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _share(shards: Path, options: StreamProfile, rank: int, size: int) -> dict[int, list[str]]:
    """For each number of workers, one process's images of two epochs of a task, a text for each step."""
    index = Index.load(shards)
    task = _sequence(index, CLASSES)[CLASSES // 2]
    found: dict[int, list[str]] = {}
    for workers in WORKERS:
        samples = _samples(shards, index, task.train, workers)
        stream = _stream(samples, options, task=task.number, rank=rank, size=size)
        found[workers] = [_text(samples, batch) for epoch in range(2) for batch in stream.epoch(epoch)]
    return found


def _text(samples: Samples, batch: Batch) -> str:
    """Keys and hashes of the pixels, in order, without the image that only fills up a step."""
    assert isinstance(batch.images, Tensor)
    if not batch.weight:
        return ""
    pairs = zip(batch.positions, batch.images.numpy(), strict=True)
    return "".join(f"{samples.keys[position]} {hashlib.sha256(pixels).hexdigest()} " for position, pixels in pairs)


def _in_processes(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """work(*arguments) in a new process for each of the arguments, all at once."""
    context = multiprocessing.get_context("spawn")
    children = []
    for words in arguments:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_send, args=(send, work, words))
        child.start()
        send.close()
        children.append((child, receive))
    try:
        return [receive.recv() for _, receive in children]
    finally:
        for child, receive in children:
            child.join()
            receive.close()


def _send(send: Connection, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    send.send(work(*words))
    send.close()


# -- small things ----------------------------------------------------------------------------------------------------


def _sequence(index: Index, n_tasks: int) -> TaskSequence:
    return TaskSequence(index, scenario="cil", n_tasks=n_tasks, order_seed=0)


def _samples(
    shards: Path,
    index: Index,
    rows: np.ndarray,
    workers: int,
    *,
    store: Store | None = None,
    pin: bool = False,
) -> Samples:
    return Samples(
        index,
        store or Store(shards, index),
        rows,
        index.label[rows].astype(np.int64),
        image_size=SIZE,
        transform=Transform(),
        cache_bytes=BUDGET,
        workers=workers,
        pin=pin,
    )


def _stream(
    samples: Samples, options: StreamProfile, *, task: int = 1, rank: int = 0, size: int = 1, world: World | None = None
) -> TrainStream:
    return TrainStream(
        samples,
        batch_size=options.batch_size,
        seed=0,
        task=task,
        rank=rank,
        world_size=size,
        resize_later=world is not None and world.on_gpu,
    )


def _print(bounds: Sequence[Bound], figures: dict[str, Any], options: StreamProfile, console: Console) -> None:
    machine, rates = figures["machine"], figures["images_per_second"]
    title = (
        f"{options.images} JPEGs of {WIDTH}x{HEIGHT}, {figures['bytes_of_an_image'] / 1000:.0f} kB each, in {CLASSES}"
        f" classes; {options.epochs} epochs, batches of {options.batch_size}, {options.workers} workers"
    )
    caption = f"{machine['device']}, {machine['cores']} cores, {figures['seconds']:.0f} s"
    console.print(bound_table(bounds, title=title, caption=caption))
    for name, key in (("all epochs", "whole"), ("first epoch", "first_epoch")):
        console.print(f"images/s, {name}: {rates['stream'][key]:.0f}, DataLoader {rates['loader'][key]:.0f}")
