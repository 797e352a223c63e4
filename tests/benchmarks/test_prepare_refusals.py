"""What `fmlora prepare` says of broken images, and of folders, splits and counts that are not what they should be."""

import json
import re
import shutil
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.index import Index
from benchmarks.preparation.images import BrokenImage, check_image
from preparing import SMALL, content, manifest, picture, prepare
from running import command_here

# -- broken images ------------------------------------------------------------------------------------------------

BROKEN = {
    "cut.jpg": picture(0, size=(300, 300))[:-200],
    "empty.png": b"",
    "text.jpg": b"no image",
    "gif.jpg": picture(0, "GIF"),
    "half.png": picture(0, "PNG")[:-80],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_stops_it_and_is_named(name: str, photos: Path, tmp_path: Path) -> None:
    (photos / "test" / "ant" / name).write_bytes(BROKEN[name])
    done = prepare(photos, tmp_path / "out")
    assert done.code == 2
    assert f"photos/test/ant/{name}: found " in done.err
    assert "--on-error skip" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out" / "index.json").exists()


def test_broken_images_are_skipped_where_the_user_says_so_and_listed(photos: Path, tmp_path: Path) -> None:
    whole = Counter(path.parent.name for path in photos.glob("train/*/*") if path.suffix != ".txt")
    for name, data in BROKEN.items():
        (photos / "train" / "ant" / name).write_bytes(data)
    out = tmp_path / "out"
    assert prepare(photos, out).code == 2
    finished = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    done = prepare(photos, out, *SMALL, "--on-error", "skip")
    assert done.code == 0, done.err
    assert "skipped 5 broken images" in done.out
    assert sorted(one["file"] for one in manifest(out)["skipped"]) == sorted(f"train/ant/{name}" for name in BROKEN)
    assert {name: counts["train"] for name, counts in manifest(out)["counts"]["classes"].items()} == whole
    assert Index.load(out).split_rule == "folders, 5 skipped"
    assert {name: (out / name).stat().st_ino for name in finished} == finished
    assert command_here(["verify", out]).code == 0


def test_a_complete_folder_that_lacks_images_is_refused_without_skip_and_counted_with_it(
    photos: Path, tmp_path: Path
) -> None:
    (photos / "test" / "ant" / "text.jpg").write_bytes(BROKEN["text.jpg"])
    out = tmp_path / "out"
    assert prepare(photos, out, *SMALL, "--on-error", "skip").code == 0
    again = prepare(photos, out, *SMALL, "--on-error", "skip")
    assert again.code == 0
    assert "complete already" in again.out and "skipped 1 broken images" in again.out
    before = content(out)
    done = prepare(photos, out)
    assert done.code == 2
    assert done.err.startswith("fmlora: error: photos/test/ant/text.jpg: found ") and done.err.count("\n") == 1
    assert "--on-error skip" in done.err
    assert content(out) == before
    changed = manifest(out)
    changed["skipped"] = [{"file": "test/ant/text.jpg"}]
    (out / "manifest.json").write_text(json.dumps(changed))
    assert "found a broken manifest (ValueError: skipped {'file': " in prepare(photos, out).err


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_images_of_more_pixels_than_memory_should_hold_are_broken(side: int) -> None:
    large = bytearray(picture(0, "PNG"))
    large[16:24] = side.to_bytes(4, "big") * 2
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, "big")
    with pytest.raises(BrokenImage, match="more pixels than 134217728"):
        check_image(bytes(large))


# -- places and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PermissionError("no list for you"), RuntimeError("403, Forbidden")])
def test_a_remote_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    error: Exception, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path}/out"
    fsspec.filesystem("memory").pipe_file(f"{url}/train-0000.tar", b"mine")
    monkeypatch.setattr(MemoryFileSystem, "ls", Mock(side_effect=error))
    done = prepare(photos, url)
    assert done.code == 2
    assert f"{url}: found no way to list this folder ({type(error).__name__}: {error})" in done.err
    assert done.err.count("\n") == 1
    assert fsspec.filesystem("memory").cat_file(f"{url}/train-0000.tar") == b"mine"


def test_shards_are_read_where_nobody_may_list_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path}/out"
    assert prepare(photos, url).code == 0
    monkeypatch.setattr(MemoryFileSystem, "ls", Mock(side_effect=PermissionError("no list for you")))
    assert len(Index.load(url)) == 24


def test_who_writes_to_an_unreachable_url_is_told_to_check_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.folder.time", SimpleNamespace(sleep=lambda seconds: None))
    done = prepare(photos, "http://127.0.0.1:9/shards")
    assert done.code == 2
    assert re.fullmatch(
        r"fmlora: error: http://127\.0\.0\.1:9/shards/\S+: found .*, in 4 tries; check the connection, and the URL\n",
        done.err,
    ), done.err


@pytest.mark.parametrize("size", ["0", "0KiB", "0.0001KiB"])
def test_a_shard_of_no_bytes_is_refused(size: str, photos: Path, tmp_path: Path) -> None:
    done = prepare(photos, tmp_path / "out", "--shard-size", size)
    assert done.code == 2
    assert f"--shard-size: found '{size}', expected at least 1 byte" in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# -- counts, splits, the data set `folder` --------------------------------------------------------------------------


def test_a_part_of_a_data_set_is_refused_unless_the_user_says_that_it_is_one(tmp_path: Path) -> None:
    for n in range(2):
        folder = tmp_path / "imagenet-a" / f"n0000000{n}"
        folder.mkdir(parents=True)
        for copy in range(5):
            (folder / f"{copy}.jpg").write_bytes(picture(copy))
    words = ["--split", "random", "--split-seed", "3", *SMALL]
    done = prepare(tmp_path / "imagenet-a", tmp_path / "out", *words, data_set="imagenet_a")
    assert done.code == 2
    assert "classes: found 2, published 200; images: found 10, published 7500" in done.err
    assert not (tmp_path / "out").exists()
    done = prepare(tmp_path / "imagenet-a", tmp_path / "out", *words, "--allow-partial", data_set="imagenet_a")
    assert done.code == 0, done.err
    assert "not comparable with published ones" in done.out
    assert Index.load(tmp_path / "out").split_rule == "random:3, partial"


def test_the_user_must_choose_a_split_where_the_data_set_has_none(photos: Path, tmp_path: Path) -> None:
    done = prepare(photos, tmp_path / "out", data_set="imagenet_r")
    assert done.code == 2
    assert "--split coda:FILE, --split random, --split folders" in done.err


def test_a_benchmark_without_published_files_cannot_be_prepared(photos: Path, tmp_path: Path) -> None:
    done = prepare(photos, tmp_path / "out", data_set="icons_mini")
    assert done.code == 2
    assert "icons_mini" in done.err


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_in_one_split_only_is_named(split: str, photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / split / "bee é")
    done = prepare(photos, tmp_path / "out")
    assert f"found no image in {split}/bee é/" in done.err
    (photos / split / "bee é").mkdir()
    (photos / split / "bee é" / "notes.txt").write_text("no image")
    assert f"found no image in {split}/bee é/" in prepare(photos, tmp_path / "out").err


def test_a_folder_without_train_and_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "expected .jpg, .jpeg, .png, .webp files" in prepare(tmp_path / "empty", tmp_path / "out").err
