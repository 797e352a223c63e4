"""Grids and shards behind a real S3 API, on loopback."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from PIL import Image

from cluster.journal import Journal
from cluster.plan import load_grid, plan_runs
from running import assert_same_run, command, command_here, events, result, run_arguments, tiny_data
from s3_server import s3_server
from tiny_benchmark import BACKBONE

pytestmark = pytest.mark.long

EPOCHS = 60
"""Long enough for some rounds of ten seconds, in which checkpoints are put."""
LONG = 300
"""Long enough to be killed in the middle, on a fast machine too."""


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment of who speaks to a server with a bucket."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
        yield environment


def names(url: str) -> set[str]:
    root = url.removeprefix("s3://")
    found = fsspec.filesystem("s3", use_listings_cache=False).find(root)
    return {path.removeprefix(f"{root}/") for path in found}


def read(url: str) -> str:
    return str(fsspec.filesystem("s3", use_listings_cache=False).cat_file(url).decode())


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def write_grid(file: Path, epochs: int = EPOCHS) -> None:
    options = dict(zip(BACKBONE[::2], BACKBONE[1::2], strict=True))
    backbone: dict[str, Any] = {name.removeprefix("--backbone."): value for name, value in options.items()}
    backbone["options"] = json.loads(backbone["options"])
    settings = {"data_root": str(tiny_data()), "epochs": epochs, "batch_size": 8, "threads": 1, "backbone": backbone}
    axis = {"benchmark": "icons", "tasks": [3]}
    frozen = {"name": "frozen", "resources": {"processes": min(2, len(os.sched_getaffinity(0)))}}
    values = {"benchmarks": [axis], "methods": ["lora", frozen], "seeds": [0], "settings": settings}
    file.write_text(yaml.safe_dump(values))


def grid(file: Path, out: str, scratch: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "fmlora_dist.cli", "grid", str(file), "--out", out]
    env = environment | {"TMPDIR": str(scratch)}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_a_killed_grid_goes_on_from_its_bucket_with_nothing_else_left(s3: dict[str, str], tmp_path: Path) -> None:
    file, out = tmp_path / "paper.yaml", "s3://bucket/paper"
    write_grid(file, LONG)
    lora, frozen = (run.name for run in plan_runs(load_grid(str(file)), tmp_path))

    def trained() -> bool:
        if not {f"runs/{lora}/events.jsonl", f"runs/{lora}/checkpoint.safetensors"} <= names(out):
            return False
        said = map(json.loads, read(f"{out}/runs/{lora}/events.jsonl").splitlines())
        return any((event.get("task", 0), event.get("epoch", 0)) >= (1, 3) for event in said)

    # short, since sockets lie in it
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as one:
        driver = grid(file, out, Path(one), s3)
        try:
            assert wait_until(lambda: trained() or driver.poll() is not None, 900)
        finally:
            driver.kill()
            for number in processes(one):  # as when the machine is lost: a run that outlives its grid might end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            driver.communicate()
        assert wait_until(lambda: not processes(one), 300)
        assert f"runs/{lora}/result.json" not in names(out), "it was to be killed in the middle"
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as other:
        driver = grid(file, out, Path(other), s3)
        said, errors = driver.communicate(timeout=900)
        assert driver.returncode == 0, said + errors
        assert f"written: {out}/report/tables.md, {out}/report/tables.tex" in said
        assert not list(Path(other).glob("fmlora-*"))

    there = tmp_path / "there"
    fsspec.filesystem("s3", use_listings_cache=False).get(out, str(there), recursive=True)
    starts = [event for event in events(there / "runs" / lora) if event["event"] == "start"]
    assert len(starts) == 2 and starts[0]["resumed_at"] == {"task": 1, "epoch": 0}
    assert starts[1]["resumed_at"] not in ({"task": 1, "epoch": 0}, {"task": 4, "epoch": 0})
    done = command(run_arguments(tmp_path / "local", method="lora", epochs=LONG))
    assert done.code == 0, done.err
    assert_same_run(there / "runs" / lora, tmp_path / "local")
    assert result(there / "runs" / frozen)["status"] == "complete"
    assert (there / "runs" / frozen / "log-1.txt").exists() == (result(there / "runs" / frozen)["world_size"] == 2)
    assert "lora [" in (there / "report" / "tables.md").read_text()
    assert list((there / "runs" / lora / "tensorboard").glob("events.out.tfevents.*"))
    kinds = [event["event"] for event in Journal.read(there)]
    assert kinds.count("grid") == 2 and kinds.count("done") == 2 and kinds[-1] == "end"
    assert not {"failed", "retry"} & set(kinds)

    again = command_here(["grid", file, "--out", out])
    assert again.code == 0 and "2 runs, 2 finished, 0 to run" in again.out
    table = command_here(["report", out])
    assert table.code == 0 and "frozen" in table.out


def test_two_grids_over_one_bucket_share_the_runs_and_do_none_twice(s3: dict[str, str], tmp_path: Path) -> None:
    file, out = tmp_path / "shared.yaml", "s3://bucket/shared"
    write_grid(file)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as scratch:
        grids = [grid(file, out, Path(scratch), s3) for _ in range(2)]
        said = [driver.communicate(timeout=900) for driver in grids]
    assert [driver.returncode for driver in grids] == [0, 0] and "tried again" not in str(said), said
    for run in plan_runs(load_grid(str(file)), tmp_path):
        lines = read(f"{out}/runs/{run.name}/events.jsonl").splitlines()
        kinds = [(event["event"], event.get("task")) for event in map(json.loads, lines)]
        assert kinds.count(("task", 1)) == kinds.count(("task", 3)) == kinds.count(("complete", None)) == 1
    assert {"events.jsonl", "events-2.jsonl", "report/tables.md"} <= names(out)


def processes(part: str) -> list[int]:
    """Those with that path in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if part.encode() in (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def test_a_bucket_that_is_not_there_is_refused_and_not_made(s3: dict[str, str]) -> None:
    done = command_here(["grid", "demo", "--out", "s3://nowhere/paper"])
    assert done.code == 2 and done.err.count("\n") == 1
    assert "s3://nowhere/paper: found FileNotFoundError: The specified bucket does not exist; check" in done.err
    assert not fsspec.filesystem("s3", use_listings_cache=False).exists("nowhere")


def test_shards_are_prepared_into_a_bucket_and_learned_from_there(s3: dict[str, str], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, copies in (("train", 6), ("test", 2)):
        for label in range(4):
            folder = tmp_path / "photos" / split / f"class{label}"
            folder.mkdir(parents=True)
            for copy in range(copies):
                pixels = draw.integers(0, 60, (40, 40, 3)) + np.eye(3)[label % 3] * 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{copy}.png")
    for out in ("s3://bucket/photos", tmp_path / "shards"):
        done = command(["prepare", "folder", "--source", tmp_path / "photos", "--out", out, "--workers", 1])
        assert done.code == 0, done.err
        words = ["--data-root", out, "--benchmark", "folder", "--tasks", 2, "--method", "lora", "--epochs", 1]
        run = tmp_path / "runs" / str(out).split("/")[-1]
        done = command(["run", *words, *BACKBONE, "--threads", 1, "--batch-size", 4, "--out", run])
        assert done.code == 0, done.err
    assert {"index.json"} <= names("s3://bucket/photos")
    assert command(["verify", "s3://bucket/photos", "--workers", 1]).code == 0
    assert_same_run(tmp_path / "runs" / "photos", tmp_path / "runs" / "shards")
    shutil.rmtree(tmp_path / "runs")
