"""`fmlora prepare`: the same bytes whatever happens on the way, and nothing that a user must find out by himself."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.image_folder import safe_key
from benchmarks.index import Index
from benchmarks.preparation.images import check_image, encode_pixels, shrink
from benchmarks.preparation.records import Records
from fmlora_dist.errors import InUseError
from preparing import CLASSES, SMALL, content, images, manifest, picture, prepare
from running import REPOSITORY, command, command_here

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
