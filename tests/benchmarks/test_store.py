"""The store: the sample's own bytes and no others, from a disk, from memory, and from a server that misbehaves."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from benchmarks.folder import RemoteFolder
from benchmarks.index import Index
from benchmarks.shards import join, read_tar
from benchmarks.store import Store
from fmlora_dist.errors import UserError
from range_server import FAULTS, serving


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny.folder, tmp_path / "shards")


@pytest.fixture
def server(folder):
    with serving(folder) as running:
        yield running


@pytest.fixture
def images(tiny):
    """The encoded images by row, read in the plainest way."""
    index = tiny.index
    shards = [(tiny.folder / shard.name).read_bytes() for shard in index.shards]
    return [
        shards[shard][start : start + size]
        for shard, start, size in zip(index.shard, index.offset, index.size, strict=True)
    ]


def remote(url, **options):
    return RemoteFolder(url, **{"tries": 4, "pause": 0.01, "timeout": 0.5} | options)


def refusal(store, row):
    with pytest.raises(UserError) as caught:
        store.read(row)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def open_files():
    return len(os.listdir("/proc/self/fd"))


# -- local ------------------------------------------------------------------------------------------------------------


def test_a_local_store_reads_the_samples_bytes_and_no_others(tiny, images):
    store = Store(tiny.folder, tiny.index)
    assert [store.read(row) for row in range(len(images))] == images
    assert store.bytes_read == sum(map(len, images)) == tiny.index.size.sum()


def test_many_threads_read_through_one_descriptor_for_each_shard(tiny, images):
    before = open_files()
    store = Store(tiny.folder, tiny.index)
    rows = np.random.default_rng(0).integers(0, len(images), 2000).tolist()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.read, rows)) == [images[row] for row in rows]
    assert open_files() <= before + len(tiny.index.shards) + 1
    assert store.bytes_read == sum(len(images[row]) for row in rows)
    store.close()
    gc.collect()
    assert open_files() <= before
    assert store.read(3) == images[3]


def test_a_shard_that_is_missing_short_or_corrupt_is_named_with_the_byte_at_once(tiny, folder):
    index = tiny.index
    row = len(index) - 1
    path, start = folder / index.shards[index.shard[row]].name, int(index.offset[row])
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\0" + content[start + 1 :])
    assert f"{path}: byte {start}: found {index.size[row]} bytes with another CRC-32" in refusal(
        Store(folder, index), row
    )
    path.write_bytes(content[: start + 7])
    assert f"{path}: byte {start}: found 7 bytes in place of {index.size[row]}" in refusal(Store(folder, index), row)
    path.unlink()
    assert f"{path}: byte {start}: found an unreadable file (No such file" in refusal(Store(folder, index), row)


def test_a_local_store_makes_no_cache(tiny, tmp_path):
    Store(tiny.folder, tiny.index, tmp_path / "cache").read(0)
    assert not (tmp_path / "cache").exists()


# -- behind a URL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["memory", "local", "file"])
def test_any_fsspec_url_is_read_by_range(tiny, images, protocol, tmp_path):
    root = f"/{tmp_path.name}" if protocol == "memory" else str(tmp_path)
    files = fsspec.filesystem(protocol)
    files.put(str(tiny.folder), f"{root}/tiny", recursive=True)
    store = Store(f"{protocol}://{root}/tiny/", Index.load(f"{protocol}://{root}/tiny"))
    assert [store.read(row) for row in range(len(images))] == images
    assert store.bytes_read == sum(map(len, images))


def test_a_server_is_asked_for_exactly_the_range(tiny, images, server):
    index = Index.load(server.url)
    server.asked.clear()
    store = Store(server.url, index)
    assert store.read(5) == images[5]
    start = int(index.offset[5])
    name = index.shards[index.shard[5]].name
    assert server.asked == [(f"/{name}", f"bytes={start}-{start + len(images[5]) - 1}")]
    assert store.bytes_read == len(images[5])


def test_many_threads_read_over_http(tiny, images, server):
    store = Store(server.url, tiny.index)
    rows = list(range(len(images))) * 2
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.read, rows)) == [images[row] for row in rows]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_tried_again(tiny, images, server, fault):
    server.faults = [fault] * 3
    assert Store(remote(server.url), tiny.index).read(7) == images[7]
    assert len(server.asked) == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_reported_with_url_and_range(tiny, server, fault):
    server.always = fault
    index = tiny.index
    start, size = int(index.offset[7]), int(index.size[7])
    found = refusal(Store(remote(server.url), index), 7)
    assert f"{server.url}/{index.shards[index.shard[7]].name}: bytes {start} to {start + size - 1}: found " in found
    said = {
        "stall": "no answer in time",
        "500": "500",
        "503": "503",
        "short": f"{size // 2} bytes in place of {size}",
        "ignore": "a server that ignores the byte range",
        "change": "another CRC-32",
    }
    assert said.get(fault, "") in found and "in 4 tries" in found
    assert len(server.asked) == (8 if fault == "reset" else 4)  # aiohttp itself asks once more after a reset


def test_the_pause_doubles_from_try_to_try(tiny, server, monkeypatch):
    server.always = "500"
    pauses = []
    monkeypatch.setattr("benchmarks.folder.time", SimpleNamespace(sleep=pauses.append))
    refusal(Store(remote(server.url, tries=4, pause=0.1), tiny.index), 0)
    assert pauses == [0.1, 0.2, 0.4]


def test_a_shard_that_is_not_there_is_not_asked_for_again(tiny, folder, server):
    (folder / tiny.index.shards[0].name).unlink()
    assert f"{server.url}/train-0000.tar: found no such shard" in refusal(Store(remote(server.url), tiny.index), 0)
    assert len(server.asked) == 1


def test_a_shard_that_is_replaced_under_the_reader_is_never_taken_for_the_old_one(tiny, images, folder, server):
    store = Store(remote(server.url), tiny.index)
    assert store.read(0) == images[0]
    for path in folder.glob("*.tar"):
        path.write_bytes(path.read_bytes()[::-1])
    assert "another CRC-32" in refusal(store, 0)


def test_a_server_that_is_gone_is_reported(tiny, folder):
    with serving(folder) as server:
        store = Store(remote(server.url), tiny.index)
        store.read(0)
    assert server.url in refusal(store, 1)


def test_what_to_check_is_that_of_the_call(tiny, server):
    server.always = "500"
    with pytest.raises(UserError, match=r"; check the connection, and that files can be written to this URL$"):
        remote(server.url, tries=2).write("train-0000.tar", b"shard")
    with pytest.raises(UserError, match=r"; check the connection, and the URL$"):
        remote(server.url, tries=2).read("index.json")
    assert refusal(Store(remote(server.url, tries=2), tiny.index), 0).endswith("that the shards are those of the index")


def test_an_index_is_tried_again_too(server):
    server.faults = ["500", "reset", "truncate"]
    assert len(Index.load(remote(server.url))) == 108
    server.always = "500"
    with pytest.raises(UserError, match=rf"{server.url}/index\.json: found .*500.*in 4 tries"):
        Index.load(remote(server.url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("gs://bucket/x", r"no installed package that reads gs:// \(Please install gcsfs"),
        ("nope://x", r"URL that fsspec does not know \(Protocol not known: nope\)"),
    ],
)
def test_a_protocol_without_its_package_says_which_to_install(tiny, url, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # cannot be imported, installed or not
    with pytest.raises(UserError, match=expected):
        Store(url, tiny.index)


def _child(store, row, results):
    try:
        results.put(store.read(row))
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.parametrize("where", ["local", "http"])
def test_a_forked_process_reads_through_the_store_that_it_inherits(tiny, images, server, where):
    store = Store(tiny.folder if where == "local" else remote(server.url, timeout=10), tiny.index)
    store.read(0)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_child, args=(store, row, results)) for row in (3, 50)]
    try:
        with ThreadPoolExecutor(4) as threads:
            busy = [threads.submit(store.read, row) for row in range(40)]
            for child in children:
                child.start()
            found = [results.get(timeout=30) for _ in children]
            assert [future.result() for future in busy] == images[:40]
        for child in children:
            child.join(30)
            assert child.exitcode == 0
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
    assert sorted(found) == sorted([images[3], images[50]])


# -- the cache on disk ------------------------------------------------------------------------------------------------


def test_what_was_read_once_is_not_asked_for_again_by_a_later_run(tiny, images, server, tmp_path):
    rows = range(0, len(images), 3)
    first = Store(server.url, tiny.index, tmp_path / "cache")
    assert [first.read(row) for row in rows] == [images[row] for row in rows]
    asked = len(server.asked)
    again = Store(server.url, tiny.index, tmp_path / "cache")
    assert [again.read(row) for row in rows] == [images[row] for row in rows]
    assert len(server.asked) == asked and again.bytes_read == 0
    assert again.read(1) == images[1] and len(server.asked) == asked + 1
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names <= {shard.sha256 for shard in tiny.index.shards}


def test_a_damaged_cache_is_read_again_and_mended(tiny, images, server, tmp_path):
    store = Store(server.url, tiny.index, tmp_path)
    store.read(0)
    for path in tmp_path.glob("?" * 64):
        path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
    asked = len(server.asked)
    assert store.read(0) == store.read(0) == images[0] and len(server.asked) == asked + 1


def test_a_cache_of_other_data_never_answers(tiny, images, server, folder, tmp_path):
    """The shard of the same name and length has other images now: its index has other hashes."""
    store = Store(server.url, tiny.index, tmp_path / "cache")
    for row in range(4):
        store.read(row)
    order = [shard.name for shard in tiny.index.shards[:2]]
    contents = {name: (folder / other).read_bytes() for name, other in zip(order, reversed(order), strict=True)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    names = [shard.name for shard in tiny.index.shards]
    tars = [read_tar(name, (folder / name).read_bytes(), tiny.index.domains) for name in names]
    index = join("tiny", tars, tiny.index.classes, tiny.index.domains, 16)
    changed = Store(server.url, index, tmp_path / "cache")
    whole = dict(zip(tiny.index.keys, images, strict=True))
    assert [changed.read(row) for row in range(4)] == [whole[key] for key in index.keys[:4]]


@pytest.mark.parametrize("kind", ["file", "readonly"])
def test_without_a_usable_cache_the_images_come_all_the_same(tiny, images, server, tmp_path, kind):
    place = tmp_path / "cache"
    if kind == "file":
        place.write_text("not a folder")
    else:
        place.mkdir()
        (place / tiny.index.shards[0].sha256).mkdir()  # opens neither for reading nor for writing, even by root
    store = Store(server.url, tiny.index, place)
    assert [store.read(row) for row in range(10)] == images[:10]


_READ_WITH_LITTLE_ROOM = """
import resource, signal, sys
from pathlib import Path
from benchmarks.index import Index
from benchmarks.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
index = Index.load(sys.argv[1])
store = Store(sys.argv[1], index, Path(sys.argv[2]))
for _ in range(2):
    for row in range(len(index)):
        store.read(row)
print(store.bytes_read, int(index.size.sum()))
"""


def test_a_full_disk_ends_the_cache_and_not_the_run(tiny, images, server, tmp_path):
    """A limit on the length of files stands for the full disk: the kernel refuses the write in the same way."""
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", _READ_WITH_LITTLE_ROOM, server.url, str(cache)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    read, size = map(int, done.stdout.split())
    assert size < read <= 2 * size
    assert all(path.stat().st_size <= 8192 for path in cache.iterdir())
    store = Store(server.url, tiny.index, cache)
    assert [store.read(row) for row in range(len(images))] == images


_READ_FOR_EVER = """
import sys
from pathlib import Path
from benchmarks.index import Index
from benchmarks.store import Store
index = Index.load(sys.argv[1])
print("ready", flush=True)
while True:
    store = Store(sys.argv[1], index, Path(sys.argv[2]))
    for row in range(len(index)):
        store.read(row)
"""


def test_processes_share_a_cache_and_may_be_killed_at_any_time(tiny, images, server, tmp_path):
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", _READ_FOR_EVER, server.url, str(cache)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "ready\n"
        for _ in range(5):
            store = Store(server.url, tiny.index, cache)
            assert [store.read(row) for row in range(len(images))] == images
            for path in cache.iterdir():
                os.truncate(path, path.stat().st_size // 2)
        readers[0].send_signal(signal.SIGKILL)
        assert [store.read(row) for row in range(len(images))] == images
        assert readers[1].poll() is None
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
            reader.stdout.close()
    assert [Store(server.url, tiny.index, cache).read(row) for row in range(len(images))] == images
