"""`fmlora profile run`: all of a run's time is some part's, and its training stands beside the floor's."""

import json
from pathlib import Path

import pytest

from fmlora_dist.config import make_config
from fmlora_dist.profile.whole_run import micro_batch
from running import command, command_here, finished, result, run_arguments


def test_the_parts_are_the_whole_and_the_whole_is_within_the_process(tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "run", method="lora", epochs=1))
    assert done.code == 0, done.err
    seconds = result(tmp_path / "run")["seconds"]
    total = seconds.pop("total")
    assert total == round(sum(seconds.values()), 3)
    assert all(part >= 0 for part in seconds.values())
    assert total <= done.seconds


def test_the_table_gives_every_part_the_steps_and_the_floor(tmp_path: Path) -> None:
    run, file = finished("lora"), tmp_path / "figures.json"
    done = command_here(["profile", "run", run, "--rounds", 2, "--json", file])
    figures, facts = json.loads(file.read_text()), result(run)
    assert figures["seconds"] == facts["seconds"]
    assert figures["steps"] == sum(facts["steps"]) == 3 * 2 * 4
    assert figures["train_over_floor"] == pytest.approx(
        facts["seconds"]["train"] / (figures["steps"] * figures["floor"])
    )
    assert all(name in done.out for name in facts["seconds"])
    (bound,) = figures["bounds"]
    assert bound["most"] == 1.15 and done.code == (0 if bound["met"] else 1)


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "at_once"), [(32, 1, 1, 32), (32, 1, 4, 8), (32, 3, 4, 3), (7, 2, 2, 2)]
)
def test_the_floor_is_that_of_one_process(batch: int, accumulation: int, processes: int, at_once: int) -> None:
    config = make_config({"method": "lora", "batch_size": batch, "train": {"accumulation": accumulation}})
    assert micro_batch(config, processes) == at_once


def test_only_a_complete_run_has_a_profile(tmp_path: Path) -> None:
    done = command_here(["profile", "run", tmp_path])
    assert done.code == 2 and "is no run directory" in done.err
    (tmp_path / "config.yaml").write_bytes((finished("lora") / "config.yaml").read_bytes())
    done = command_here(["profile", "run", tmp_path])
    assert done.code == 2 and "finish the run with --resume first" in done.err
    facts = result(finished("lora"))
    del facts["steps"]
    (tmp_path / "result.json").write_text(json.dumps(facts))
    done = command_here(["profile", "run", tmp_path])
    assert done.code == 2 and "train it again" in done.err
