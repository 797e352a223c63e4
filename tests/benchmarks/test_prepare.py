"""`fmlora prepare`: the same bytes whatever happens on the way, and nothing that a user must find out by himself."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.image_folder import safe_key
from benchmarks.index import TEST, TRAIN, Index
from benchmarks.listing import Counts, Item, Listing
from benchmarks.preparation.counts import differences
from benchmarks.preparation.images import BrokenImage, check_image, encode_pixels, shrink
from benchmarks.preparation.places import Place
from benchmarks.preparation.plan import Options, make_plan
from benchmarks.preparation.records import Records
from benchmarks.preparation.sources import Source
from fmlora_dist.errors import InUseError, UserError
from running import REPOSITORY, Done, command, command_here

CLASSES = ("ant", "bee é", "Cat.1")
SMALL = ["--workers", "1", "--shard-size", "6KiB"]  # about three images a shard


def picture(seed: int, form: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 images of three classes, in root/train/class and root/test/class; and a file that is none."""
    root = tmp_path / "photos"
    for split, copies in (("train", 6), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for copy in range(copies):
                suffix, form = ((".jpg", "JPEG"), (".PNG", "PNG"), (".webp", "WEBP"), (".JPeG", "JPEG"))[copy % 4]
                (folder / f"img {copy}{suffix}").write_bytes(picture(100 * label + 10 * copy + len(split), form))
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    return root


def prepare(source: Path, out: object, *words: object, data_set: str = "folder") -> Done:
    return command_here(["prepare", data_set, "--source", source, "--out", out, *(words or SMALL)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def images(folder: Path) -> dict[str, bytes]:
    """The encoded images by key, read as the index says."""
    index = Index.load(folder)
    found = {}
    for row, key in enumerate(index.keys):
        shard = (folder / index.shards[index.shard[row]].name).read_bytes()
        found[key] = shard[index.offset[row] : index.offset[row] + index.size[row]]
    return found


# -- what is stored -----------------------------------------------------------------------------------------------


def test_every_image_is_stored_byte_for_byte_with_its_class_and_split(photos: Path, tmp_path: Path) -> None:
    done = prepare(photos, tmp_path / "out")
    assert done.code == 0, done.err
    index, stored = Index.load(tmp_path / "out"), images(tmp_path / "out")
    files = {
        safe_key(str(path.relative_to(photos))): path
        for path in photos.rglob("*")
        if path.is_file() and path.suffix != ".txt"
    }
    assert index.classes == tuple(sorted(CLASSES))
    assert stored == {key: path.read_bytes() for key, path in files.items()}
    for row, key in enumerate(index.keys):
        assert index.classes[index.label[row]] == files[key].parent.name
        assert ("train", "test")[index.split[row]] == files[key].parents[1].name
    assert (index.height == 30).all() and (index.width == 40).all()
    assert (index.image_size, index.split_rule) == (0, "folders")
    assert sorted(index.split.tolist()) == index.split.tolist()


def test_the_end_says_what_there_is_and_what_to_do_next(photos: Path, tmp_path: Path) -> None:
    done = prepare(photos, tmp_path / "out")
    assert re.match(r"folder: 24 images \(18 train, 6 test\), 3 classes, 1 domain, split folders: ", done.out)
    assert (
        f"\nnext: fmlora run --benchmark folder --data-root {tmp_path / 'out'} --tasks 3 --method fmlora\n" in done.out
    )


def test_the_manifest_holds_counts_checksums_and_no_place_or_time(photos: Path, tmp_path: Path) -> None:
    assert prepare(photos, tmp_path / "out", "--workers", "1", "--short-side", "20").code == 0
    found, index = manifest(tmp_path / "out"), Index.load(tmp_path / "out")
    assert found["counts"]["splits"] == {"train": 18, "test": 6}
    assert found["counts"]["classes"] == {name: {"train": 6, "test": 2} for name in CLASSES}
    assert found["counts"]["domains"] == {"all": {"train": 18, "test": 6}}
    assert found["options"]["source"] == "photos"
    assert found["options"]["short_side"] == 20
    assert found["versions"]["fmlora-dist"]
    assert set(found["files"]) == {"index.json", *(shard.name for shard in index.shards)}
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert sorted(os.listdir(tmp_path / "out")) == ["index.json", "manifest.json", "test-0000.tar", "train-0000.tar"]


def test_short_side_makes_larger_images_smaller_and_keeps_the_others(tmp_path: Path) -> None:
    for form, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB")):
        buffer = io.BytesIO()
        smooth = Image.open(io.BytesIO(picture(0, "PNG"))).resize((300, 200), Image.Resampling.BICUBIC)
        smooth.convert(mode).save(buffer, form)
        whole = buffer.getvalue()
        small, suffix = shrink(whole, 50)
        with Image.open(io.BytesIO(small)) as image, Image.open(io.BytesIO(whole)) as original:
            assert (image.size, image.format) == ((75, 50), form)
            assert image.mode == ("L" if mode == "L" else "RGB")
            expected = np.asarray(original.convert(image.mode).resize((75, 50), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(np.asarray(image) - expected).mean() < 3
        assert suffix == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[form]
        assert shrink(whole, 200) == (whole, suffix)


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_pixels_are_stored_without_loss(height: int, width: int, grey: bool, seed: int) -> None:
    shape = (height, width) if grey else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    encoded, suffix = encode_pixels(pixels)
    with Image.open(io.BytesIO(encoded)) as image:
        assert np.array_equal(np.asarray(image), pixels)
    assert suffix == check_image(encoded) == "png"


# -- always the same bytes ----------------------------------------------------------------------------------------


def test_neither_workers_nor_the_form_of_the_source_change_a_byte(photos: Path, tmp_path: Path) -> None:
    assert prepare(photos, tmp_path / "one").code == 0
    expected = content(tmp_path / "one")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, "photos")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(photos))
    done = command(["prepare", "folder", "--source", photos, "--out", tmp_path / "two", "--workers", 2, *SMALL[2:]])
    assert done.code == 0, done.err
    assert content(tmp_path / "two") == expected
    for form in ("photos.tar", "photos.zip"):
        assert prepare(tmp_path / form, tmp_path / f"of {form}").code == 0
        found = content(tmp_path / f"of {form}")
        assert manifest(tmp_path / f"of {form}")["options"].pop("source") == form
        del found["manifest.json"]
        # Keys come from names, and the tar has a folder around them, which its reader takes away.
        assert found == {name: value for name, value in expected.items() if name != "manifest.json"}


def test_a_compressed_tar_gives_the_same_list_in_shards_of_the_order_of_the_archive(
    photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "photos.tgz", "w:gz") as tar:
        for path in sorted(photos.rglob("*.*"), key=lambda path: path.name[::-1]):
            if path.is_file():
                tar.add(path, path.relative_to(photos))
    assert prepare(photos, tmp_path / "one").code == 0
    words = ["prepare", "folder", "--source", tmp_path / "photos.tgz", *SMALL[2:]]
    for workers in (1, 2):
        done = command([*words, "--out", tmp_path / f"{workers}", "--workers", workers])
        assert done.code == 0, done.err
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert images(tmp_path / "1") == images(tmp_path / "one")
    one, archive = Index.load(tmp_path / "one"), Index.load(tmp_path / "1")
    assert archive.keys == one.keys
    for column in ("label", "split", "domain", "crc32"):
        assert np.array_equal(getattr(archive, column), getattr(one, column))


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_any_file_it_goes_on_without_doing_finished_shards_again(
    late: bool, photos: Path, tmp_path: Path
) -> None:
    words = ["prepare", "folder", "--source", photos, "--workers", "1", "--shard-size", "20KiB"]
    assert command_here([*words, "--out", tmp_path / "whole"]).code == 0
    expected = content(tmp_path / "whole")
    killed, finished_before = 0, set()
    for at in range(100):
        out = tmp_path / f"killed {at}"
        done = command([*words, "--out", out], kill_at_replace=(at, late))
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL
        killed += 1
        noted = {path.name.removesuffix(".json") for path in (out / ".prepare").glob("t*.json")}
        finished = {name: (out / name).stat().st_ino for name in noted}
        finished_before.add(len(finished))
        assert command_here([*words, "--out", out]).code == 0
        assert content(out) == expected
        assert {name: (out / name).stat().st_ino for name in finished} == finished
        shutil.rmtree(out)
    shards = sum(name.endswith(".tar") for name in expected)
    assert shards > 3
    assert killed == 2 * shards + 3  # the plan, each shard and its record, the index, the manifest
    assert finished_before == set(range(shards + 1))


def test_the_real_command_is_killed_with_its_workers_and_goes_on(tmp_path: Path) -> None:
    for split, copies in (("train", 40), ("test", 4)):
        for name in ("a", "b"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for copy in range(copies):
                (folder / f"{copy}.png").write_bytes(picture(copy, "PNG", (700, 700)))
    words = [sys.executable, "-m", "fmlora_dist.cli", "prepare", "folder", "--source", str(tmp_path / "photos")]
    words += ["--workers", "2", "--shard-size", "2MiB"]
    out = tmp_path / "killed"
    process = subprocess.Popen([*words, "--out", str(out)], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (finished := list((out / ".prepare").glob("t*.tar.json"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert not (out / "index.json").exists()
    assert len(children) >= 2
    while any(_running(child) for child in children):
        assert time.monotonic() < deadline, "workers outlive their main process"
        time.sleep(0.05)
    before = {path.stem: (out / path.stem).stat().st_mtime_ns for path in finished}
    for target in (out, tmp_path / "whole"):
        done = subprocess.run(
            [*words, "--out", str(target)], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
    assert content(out) == content(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def _running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_is_one_line_and_leaves_what_is_finished(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "bee é" / "large.png").write_bytes(picture(1, "PNG", (400, 300)))
    words = ["prepare", "folder", "--source", photos, "--out", tmp_path / "out", *SMALL]
    done = command(words, largest_file=60_000)
    assert done.code == 2
    assert re.fullmatch(r"fmlora: error: .*train-00\d\d\.tar: found no way to write .*make room\n", done.err), done.err
    finished = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("train-*.tar")}
    assert finished
    assert command_here(words).code == 0
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in finished} == finished
    assert not list((tmp_path / "out").glob(".*"))


# -- other folders, other options -----------------------------------------------------------------------------------


def test_a_complete_folder_is_told_and_left_alone(photos: Path, tmp_path: Path) -> None:
    assert prepare(photos, tmp_path / "out").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = prepare(photos, tmp_path / "out")
    assert again.code == 0
    assert "complete already" in again.out
    other = prepare(photos, tmp_path / "out", "--short-side", "20")
    assert other.code == 2
    assert "found a complete data set" in other.err
    (photos / "test" / "ant" / "one more.jpg").write_bytes(picture(5))
    assert "found a complete data set" in prepare(photos, tmp_path / "out").err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_restart_with_other_options_or_files_does_not_mix(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["prepare", "folder", "--source", photos, "--out", out, *SMALL]
    assert command(words, kill_at_replace=(4, True)).code == -signal.SIGKILL
    before = content(out)
    other = command_here([*words, "--short-side", "20"])
    assert other.code == 2
    assert "short_side 0, now 20" in other.err
    extra = photos / "test" / "ant" / "one more.jpg"
    extra.write_bytes(picture(5))
    assert "images 24, now 25" in command_here(words).err
    extra.unlink()
    assert content(out) == before
    assert command_here(words).code == 0


def test_files_of_others_in_the_folder_are_not_touched(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert prepare(photos, out).code == 0
    assert (out / "mine.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "test-0000.tar").write_text("mine")
    done = prepare(photos, other)
    assert done.code == 2
    assert "found a file test-0000.tar" in done.err
    assert content(other) == {"test-0000.tar": b"mine"}


def test_an_out_folder_inside_the_source_is_refused(photos: Path) -> None:
    before = content(photos)
    for out in (photos, photos / "shards", f"file://{photos}/shards"):
        done = prepare(photos, out)
        assert done.code == 2
        assert "inside the source" in done.err
    assert content(photos) == before


def test_a_second_process_in_the_same_folder_is_told_to_wait(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Records(str(out)).claimed():
        done = command(["prepare", "folder", "--source", photos, "--out", out, *SMALL])
    assert done.code == InUseError.exit_code
    assert f"another process is preparing into {out}" in done.err
    assert prepare(photos, out).code == 0
    assert not (out / ".prepare").exists()


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_shards_are_written_to_any_fsspec_url(protocol: str, photos: Path, tmp_path: Path) -> None:
    assert prepare(photos, tmp_path / "local").code == 0
    url = f"{protocol}://{tmp_path}/remote"
    assert prepare(photos, url).code == 0
    files, root = fsspec.url_to_fs(url)
    found = {name.rpartition("/")[2]: files.cat_file(name) for name in files.find(root)}
    assert found == content(tmp_path / "local")
    assert "complete already" in prepare(photos, url).out
    verified = command_here(["verify", url])
    assert verified.code == 0, verified.err


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


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_images_of_more_pixels_than_memory_should_hold_are_broken(side: int) -> None:
    large = bytearray(picture(0, "PNG"))
    large[16:24] = side.to_bytes(4, "big") * 2
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, "big")
    with pytest.raises(BrokenImage, match="more pixels than 134217728"):
        check_image(bytes(large))


# -- counts, splits, the data set `folder` --------------------------------------------------------------------------


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


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, unique=True))
def test_keys_of_any_names_are_valid_and_unique(names: list[str]) -> None:
    keys = {safe_key(name.encode(errors="replace").decode() + f"{n}.jpg") for n, name in enumerate(names)}
    assert len(keys) == len(names)
    assert all(re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]{0,89}", key) for key in keys)


# -- the plan -----------------------------------------------------------------------------------------------------


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
