"""`fmlora profile stream` on a few images: what it measures, and all that does not depend on the clock."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fmlora_dist.profile.bounds import Bound
from fmlora_dist.profile.photographs import CLASSES, HEIGHT, WIDTH, write_photographs
from running import REPOSITORY


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    path = tmp_path_factory.mktemp("profile") / "figures.json"
    command = [sys.executable, "-m", "fmlora_dist.cli", "profile", "stream", "--images", "60", "--epochs", "2"]
    done = subprocess.run([*command, "--json", path], capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert path.exists(), done.stderr
    return done, json.loads(path.read_text())


def test_the_table_and_the_file_state_every_bound_and_whether_it_is_met(measured) -> None:  # type: ignore[no-untyped-def]
    done, figures = measured
    demands = [(bound["least"], bound["most"]) for bound in figures["bounds"]]
    assert demands == [(3.0, None), (1.0, None), (None, 1.05), (None, 1.2), (None, 0.05), (None, 1)]
    for bound in figures["bounds"]:
        least, most = bound["least"] or float("-inf"), bound["most"] or float("inf")
        assert bound["met"] == (least <= bound["found"] <= most)
    assert done.returncode == (0 if all(bound["met"] for bound in figures["bounds"]) else 1), done.stderr
    assert done.stdout.count("NOT MET") == sum(not bound["met"] for bound in figures["bounds"])
    assert all(rate > 0 for side in figures["images_per_second"].values() for rate in side.values())
    assert [len(rounds) for rounds in figures["seconds_of_epochs"].values()] == [2, 2]


def test_a_task_reads_the_bytes_of_its_own_samples_and_no_other(measured) -> None:  # type: ignore[no-untyped-def]
    assert measured[1]["bytes_read_over_bytes_of_samples"] == [1.0] * CLASSES


def test_the_images_are_the_same_for_any_number_of_processes_and_workers(measured) -> None:  # type: ignore[no-untyped-def]
    hashes = measured[1]["hashes"]
    assert len(hashes) == 9
    assert len(set(hashes.values())) == 1


@pytest.mark.parametrize(
    ("found", "limits", "met"),
    [
        (3.0, {"least": 3.0}, True),
        (2.99, {"least": 3.0}, False),
        (1.2, {"most": 1.2}, True),
        (1.3, {"most": 1.2}, False),
        (1.03, {"least": 0.97, "most": 1.03}, True),
        (0.96, {"least": 0.97, "most": 1.03}, False),
    ],
)
def test_a_bound_is_met_on_its_edge(found: float, limits: dict[str, float], met: bool) -> None:
    assert Bound(name="x", found=found, **limits).met is met


def test_photographs_are_alike_in_both_forms_and_as_large_as_photographs(tmp_path: Path) -> None:
    index = write_photographs(tmp_path, 40)
    files = sorted((tmp_path / "images" / "train").glob("*/*.jpg"))
    assert [file.stem for file in files] == sorted(
        key for key, split in zip(index.keys, index.split, strict=True) if not split
    )
    assert sorted(file.stat().st_size for file in files) == sorted(index.size[index.split == 0].tolist())
    assert 40_000 < index.size.mean() < 60_000
    with Image.open(files[0]) as image:
        assert image.size == (WIDTH, HEIGHT) and image.format == "JPEG"
