"""Who holds a run in a store without locks: one process at a time, and nobody for ever."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.memory import MemoryFileSystem

from cluster.lease import Lease

BEAT = 0.05
Store = tuple[Any, str]


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """(file system, folder of a run in it)."""
    place = tmp_path / "runs" / "x"
    files, folder = url_to_fs(f"{request.param}://{place}", use_listings_cache=False)
    files.makedirs(folder, exist_ok=True)
    yield files, folder
    files.rm(folder, recursive=True)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def content(store: Store, number: int) -> dict[str, Any]:
    files, folder = store
    while not (found := files.cat_file(f"{folder}/lease-{number}")):
        pass  # a disk, unlike a store, shows a file while it is written
    read: dict[str, Any] = json.loads(found)
    return read


def numbers(store: Store) -> list[str]:
    return sorted(path.rsplit("/", 1)[-1] for path in store[0].ls(store[1], detail=False))


def test_the_second_taker_sees_that_the_first_lives_and_leaves_it_the_run(store: Store) -> None:
    first, second = (Lease(*store, beat=BEAT, patience=30) for _ in range(2))
    assert not second.alive() and first.take()
    started = time.monotonic()
    assert not second.take()
    assert time.monotonic() - started < 20, "it need not wait until its patience is over"
    assert second.alive() and not first.overtaken()
    first.release()
    assert numbers(store) == ["lease-1"]


def test_a_released_run_is_free_at_once(store: Store) -> None:
    first, second = (Lease(*store, patience=600) for _ in range(2))
    assert first.take()
    first.release()
    assert content(store, 1)["released"] and not second.alive()
    assert second.take()
    assert numbers(store) == ["lease-1", "lease-2"]
    second.release()


def test_a_run_whose_holder_stands_still_is_taken_over_and_not_before(store: Store) -> None:
    files, folder = store
    for number in (9, 10):  # the greatest, not the last by its name
        files.pipe_file(f"{folder}/lease-{number}", json.dumps({"owner": "dead", "count": 3}).encode())
    lease = Lease(*store, beat=BEAT, patience=0.6)
    started = time.monotonic()
    assert lease.take()
    assert time.monotonic() - started >= 0.6
    assert content(store, 11)["owner"] != "dead"
    lease.release()


def test_a_holder_that_was_thought_dead_learns_of_it_and_marks_nothing(store: Store) -> None:
    frozen, other = Lease(*store, beat=600), Lease(*store, beat=BEAT, patience=0.3)
    assert frozen.take() and not frozen.overtaken()
    assert other.take()
    assert frozen.overtaken() and frozen.lost
    frozen.release()
    assert not content(store, 1)["released"] and not other.overtaken()
    other.release()


def test_a_holder_finds_out_by_itself_within_a_beat_or_two(store: Store) -> None:
    holder = Lease(*store, beat=BEAT)
    assert holder.take()
    store[0].pipe_file(f"{store[1]}/lease-2", b"{}")
    assert wait_until(lambda: holder.lost)
    holder.release()


def test_a_holder_counts_as_long_as_it_lives(store: Store) -> None:
    holder = Lease(*store, beat=BEAT)
    assert holder.take()
    assert wait_until(lambda: content(store, 1)["count"] >= 3)
    holder.release()
    last = content(store, 1)
    time.sleep(4 * BEAT)
    assert content(store, 1) == last


class Forgetful(MemoryFileSystem):
    """Creates, loses the answer, asks again, and so is told that it is there already."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, mode=mode, **options)
        if mode == "create":
            raise FileExistsError(path)


def test_a_lease_whose_answer_was_lost_is_ones_own(tmp_path: Path) -> None:
    lease = Lease(Forgetful(), f"{tmp_path}/x")
    assert lease.take()
    lease.release()


class Overtaken(MemoryFileSystem):
    """Somebody else creates the same object just before."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create":
            super().pipe_file(path, b'{"owner": "another"}')
        super().pipe_file(path, value, mode=mode, **options)


def test_of_two_that_create_the_same_lease_one_has_it(tmp_path: Path) -> None:
    files = Overtaken()
    assert not Lease(files, f"{tmp_path}/x").take()
    assert json.loads(files.cat_file(f"{tmp_path}/x/lease-1")) == {"owner": "another"}
