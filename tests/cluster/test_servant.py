"""Ray's scratch folder, the capacity of clusters, and the grid's own log."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from cluster.capacity import Coming, check_requests, nodes_to_come
from cluster.journal import Journal
from cluster.plan import PlannedRun, Resources
from cluster.servant import scratch_folder
from fmlora_dist.config import make_config
from fmlora_dist.errors import UserError
from running import REPOSITORY


def planned(**resources: object) -> PlannedRun:
    needs = Resources.model_validate(resources)
    config = make_config({"benchmark": "icons_mini", "method": "lora", "threads": 1})
    return PlannedRun(config=config, folder=Path("x"), resources=needs, variant="lora", train_images=(8,))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_the_scratch_folder_goes_away_and_takes_those_of_dead_owners_with_it(temporary: Path) -> None:
    names = ("fmlora-ray-dead", "fmlora-ray-live", "fmlora-ray-new", "fmlora-other")
    stale, working, new, foreign = (temporary / name for name in names)
    for folder in (stale, working, new, foreign):
        folder.mkdir()
    for folder in (stale, new):  # the new one's owner is about to lock it
        (folder / "owner.lock").touch()
    os.utime(stale / "owner.lock", (0, 0))
    (stale / "ray").mkdir()
    with open(working / "owner.lock", "w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        with scratch_folder() as mine, scratch_folder() as another:
            assert mine != another and mine.is_dir() and another.is_dir()
            assert not stale.exists()
        assert sorted(folder.name for folder in temporary.iterdir()) == [
            "fmlora-other",
            "fmlora-ray-live",
            "fmlora-ray-new",
        ]


def test_ray_starts_with_its_token_where_it_was_imported_before() -> None:
    script = (
        "import sys, ray\n"
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "from cluster.servant import ray_cluster, scratch_folder\n"
        "with scratch_folder() as scratch, ray_cluster(scratch, Console(quiet=True)):\n"
        "    from ray._raylet import AuthenticationMode, get_authentication_mode\n"
        "    assert get_authentication_mode() == AuthenticationMode.TOKEN\n"
        "    print(ray.cluster_resources()['CPU'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) >= 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": 1}, "asks for 1 CPUs and 1 GPUs, but there are never more than 8 CPUs and 0 GPUs"),
        ({"cpus": 5}, "asks for 5 CPUs, but there are never more than 8 CPUs (on one node at most 4 CPUs)"),
        ({"processes": 9}, "asks for 9 CPUs in 9 processes"),
        ({"memory": "1TiB"}, "bytes of memory"),
    ],
)
def test_more_than_the_cluster_has_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_requests([planned(**asked)], [{"CPU": 4.0, "memory": 1e9}] * 2, Coming())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_an_autoscaler_could_add_counts_on_its_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bootstrap.yaml"
    types = {
        "head": {"resources": {"CPU": 4}},
        "small": {"resources": {"CPU": 4, "GPU": 1}, "min_workers": 0, "max_workers": 2},
        "gpu": {"resources": {"CPU": 16, "GPU": 8}, "min_workers": 0, "max_workers": 3},
    }
    file.write_text(yaml.safe_dump({"max_workers": 2, "head_node_type": "head", "available_node_types": types}))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert nodes_to_come(file) == Coming(), "this machine alone"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    to_come = nodes_to_come(file)
    best = to_come.best({"CPU": 1.0, "GPU": 1.0})
    assert [node.get("GPU", 0.0) for node in best] == [0.0, 8.0, 8.0], "never more than two workers of all types"
    now = [{"CPU": 4.0}]
    assert check_requests([planned(gpus=16)], now, to_come) == 1
    assert check_requests([planned()], now, to_come) == 4
    with pytest.raises(UserError, match="asks for 24 CPUs and 24 GPUs in 24 processes"):
        check_requests([planned(gpus=24)], now, to_come)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "available_node_types: 3"])
def test_a_cluster_without_an_autoscaler_expects_no_nodes(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    (tmp_path / "x.yaml").write_text(text)
    assert nodes_to_come(tmp_path / "x.yaml") == nodes_to_come(tmp_path / "none.yaml") == Coming()


@pytest.mark.parametrize(
    ("asked", "bundle", "processes"),
    [
        ({}, {"CPU": 1.0}, 1),
        ({"cpus": 3, "gpus": 0.25}, {"CPU": 3.0, "GPU": 0.25}, 1),
        ({"cpus": 8, "gpus": 4, "memory": "4KiB"}, {"CPU": 2.0, "GPU": 1.0, "memory": 1024.0}, 4),
        ({"processes": 2}, {"CPU": 1.0}, 2),
    ],
)
def test_each_process_of_a_run_gets_its_share(asked: dict, bundle: dict, processes: int) -> None:  # type: ignore[type-arg]
    needs = Resources.model_validate(asked)
    assert (needs.bundle(), needs.n_processes) == (bundle, processes)


@pytest.mark.parametrize("asked", [{"gpus": 1.5}, {"gpus": 0.5, "processes": 2}, {"gpus": 4, "processes": 2}])
def test_a_process_has_one_gpu_or_a_part_of_one(asked: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected (a whole number|one on each)"):
        Resources.model_validate(asked)


def test_the_grids_log_outlives_a_full_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mine")
    journal.write("start", run="a")
    journal.file.rename(tmp_path / "kept")
    journal.file.symlink_to("/dev/full")
    journal.write("done", run="a")
    assert "No space left" in journal.broken
    assert json.loads((tmp_path / "kept").read_text())["run"] == "a"


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/fmlora")):  # what root, too, cannot write
        with pytest.raises(UserError, match="out: cannot write to"):
            Journal(folder, "mine")


def test_only_runs_that_went_through_in_one_piece_tell_how_long_they_take(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mine")
    journal.write("done", run="a", seconds=3.5, resumed=False)
    journal.write("done", run="b", seconds=1.5, resumed=True)
    journal.write("failed", run="c", seconds=1.0)
    with open(journal.file, "a") as file:
        file.write('{"event": "do')
    assert Journal.seconds(tmp_path) == {"a": 3.5}
