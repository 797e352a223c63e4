"""cluster/grid.yaml, before anybody pays for it: Ray's own schema, what it copies, and what README says of it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from cluster.capacity import nodes_to_come
from cluster.plan import load_grid, plan_runs
from cluster.simulate import fitting
from running import REPOSITORY

CONFIG = REPOSITORY / "cluster" / "grid.yaml"


@pytest.fixture
def config() -> Any:
    return yaml.safe_load(CONFIG.read_text())


def test_ray_accepts_it_and_would_not_accept_a_misspelt_key(config: Any) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        jsonschema.validate(config | {"max_wokers": 1}, schema)


def test_gpu_workers_have_a_least_and_a_greatest_number(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = config["available_node_types"]
    workers = {name: kind for name, kind in kinds.items() if name != config["head_node_type"]}
    assert workers and all(kind["resources"]["GPU"] >= 1 for kind in workers.values())
    assert all(0 <= kind["min_workers"] < kind["max_workers"] <= config["max_workers"] for kind in workers.values())
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # as cluster/grid.py sets it
    to_come = nodes_to_come(CONFIG)  # what the grid knows of nodes that are not there yet
    assert to_come.most_workers == config["max_workers"] < len(to_come.workers)
    assert max(node["GPU"] for node in to_come.workers) == 4


def test_every_type_has_an_image_and_the_paper_fits_the_usual_gpu_node(config: Any, tmp_path: Path) -> None:
    kinds = config["available_node_types"]
    assert all("ImageId" in kind["node_config"] for kind in kinds.values()), "Ray's own has a Python that is too old"
    node = {name: float(amount) for name, amount in kinds["gpu"]["resources"].items()}
    runs = plan_runs(load_grid("paper"), tmp_path, check=False)
    assert len(runs) > 100
    assert [run.name for run in runs if not fitting([node], run.resources.bundle())] == []


def test_it_copies_what_the_setup_installs_and_nothing_secret(config: Any) -> None:
    mounts = config["file_mounts"]
    assert all((REPOSITORY / local).exists() for local in mounts.values()), "paths are relative to the clone"
    assert all(remote == f"~/fmlora-dist/{local}" for remote, local in mounts.items())
    project = (REPOSITORY / "pyproject.toml").read_text()
    for package in ("fmlora_dist", "baselines", "benchmarks", "cluster"):
        assert package in mounts.values() and f'"{package}"' in project
    assert any("pip install" in command and "~/fmlora-dist" in command for command in config["setup_commands"])
    text = CONFIG.read_text()
    assert "ssh_private_key" not in text and "cluster_synced_files" not in config
    assert not any(word in text for word in ("AKIA", "SECRET", "PASSWORD", "TOKEN", ".aws", ".netrc", ".ssh"))


def test_readme_shows_the_submit_line_that_ray_takes(config: Any) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (line,) = [line for line in readme.splitlines() if line.endswith("--out s3://bucket/paper")]
    assert line.startswith("ray submit cluster/grid.yaml cluster/grid.py -- paper ")
    assert any("pip install" in command and ".[s3]" in command for command in config["setup_commands"])
    assert "`ray submit cluster/grid.yaml` alone" in readme
