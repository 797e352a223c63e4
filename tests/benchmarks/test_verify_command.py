"""`fmlora verify`: whatever was changed after `fmlora prepare` is found and named."""

import dataclasses
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.index import Index
from running import Done, command, command_here
from tiny_benchmark import write_tiny


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A small data set, prepared into several shards."""
    for split, copies in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for copy in range(copies):
                pixels = np.random.default_rng(copy).integers(0, 255, (30, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{copy}.png")
    words = ["prepare", "folder", "--source", tmp_path / "photos", "--out", tmp_path / "out", "--shard-size", "12KiB"]
    done = command_here([*words, "--workers", "1"])
    assert done.code == 0, done.err
    return tmp_path / "out"


def verify(folder: Path) -> Done:
    return command_here(["verify", folder, "--workers", "1"])


def spoil(folder: Path, row: int, place: int = 20) -> tuple[str, str, int]:
    """Change one byte of an image; gives its shard, key and offset."""
    index = Index.load(folder)
    shard, offset = index.shards[index.shard[row]].name, int(index.offset[row])
    content = bytearray((folder / shard).read_bytes())
    content[offset + place] ^= 0x55
    (folder / shard).write_bytes(content)
    return shard, index.keys[row], offset


def test_untouched_shards_are_as_they_were_written(shards: Path) -> None:
    done = verify(shards)
    assert done.code == 0, done.err
    assert re.match(
        r"folder: 12 images \(8 train, 4 test\), 2 classes, .*\d shards as manifest and index say", done.out
    )
    assert command(["verify", shards, "--workers", 2]).out.split(" (")[:-1] == done.out.split(" (")[:-1]


def test_changed_images_are_named_with_shard_and_byte(shards: Path) -> None:
    changed = [spoil(shards, row) for row in (1, 7)]
    done = verify(shards)
    assert done.code == 2
    for shard, key, offset in changed:
        assert f"{shards}/{shard}: sample '{key}' at byte {offset}: found CRC-32" in done.err
    assert f"{shards}: found 2 faults" in done.err


def test_a_byte_outside_the_images_is_found(shards: Path) -> None:
    index = Index.load(shards)
    path = shards / index.shards[0].name
    content = bytearray(path.read_bytes())
    content[int(index.offset[0]) - 512] ^= 1  # in the name of the first member
    path.write_bytes(content)
    done = verify(shards)
    assert done.code == 2
    assert "found another SHA-256 than the index says, though every image is whole" in done.err


@pytest.mark.parametrize("length", [0, 700, -1])
def test_a_truncated_shard_is_named(length: int, shards: Path) -> None:
    path = shards / "train-0000.tar"
    path.write_bytes(path.read_bytes()[:length])
    done = verify(shards)
    assert done.code == 2
    assert re.search(rf"train-0000\.tar: found {path.stat().st_size} bytes, expected \d+", done.err)


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "test-0000.tar").unlink()
    done = verify(shards)
    assert done.code == 2
    assert "test-0000.tar: found no such shard" in done.err


def test_an_index_that_is_not_the_manifests_is_found(shards: Path) -> None:
    index = Index.load(shards)
    dataclasses.replace(index, label=1 - index.label).save(shards)
    done = verify(shards)
    assert done.code == 2
    assert "index.json: found index.json as" in done.err
    text = (shards / "index.json").read_text()
    (shards / "index.json").write_text(text.replace('"b"', '"c"'))
    assert "the file was changed after it was written" in verify(shards).err


def test_counts_that_are_not_the_manifests_are_found(shards: Path) -> None:
    document = json.loads((shards / "manifest.json").read_text())
    document["counts"]["classes"]["a"]["train"] += 1
    (shards / "manifest.json").write_text(json.dumps(document))
    done = verify(shards)
    assert done.code == 2
    assert "found other counts of classes than manifest.json says" in done.err


def test_an_image_that_was_broken_when_it_was_written_is_found(tmp_path: Path) -> None:
    index = write_tiny(tmp_path / "tiny", n_classes=2)
    shard, key, offset = spoil(tmp_path / "tiny", 3, 50)
    content = (tmp_path / "tiny" / shard).read_bytes()
    image = content[offset : offset + int(index.size[3])]
    with pytest.raises(Exception, match=r".*"), Image.open(io.BytesIO(image)) as broken:
        broken.load()
    crc32 = index.crc32.copy()
    crc32[3] = zlib.crc32(image)
    dataclasses.replace(index, crc32=crc32).save(tmp_path / "tiny")
    done = verify(tmp_path / "tiny")
    assert done.code == 2
    assert f"sample '{key}' at byte {offset}: found bytes that cannot be decoded" in done.err


def test_without_a_manifest_the_index_is_the_measure(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    done = verify(tmp_path / "tiny")
    assert done.code == 0, done.err
    assert "as the index (there is no manifest) say" in done.out


def test_many_faults_are_counted(shards: Path) -> None:
    for row in range(12):
        spoil(shards, row)
    done = verify(shards)
    assert done.code == 2
    assert done.err.count("\n") <= 11
    assert re.search(r"found \d+ faults", done.err)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": 1, "files": 3, "counts": {}}', '{"schema": 2, "files": {}}']
)
def test_a_broken_manifest_is_named(text: str, shards: Path) -> None:
    (shards / "manifest.json").write_text(text)
    done = verify(shards)
    assert done.code == 2
    assert "manifest.json: found a broken manifest" in done.err


def test_a_folder_without_an_index_is_told(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert done.code == 2
    assert "index.json: found no such file" in done.err
