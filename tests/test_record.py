"""The run directory: whole or not at all, and held by one process."""

import json
import stat
from pathlib import Path

import pytest
import torch

from fmlora_dist.config import RunConfig, parse_config
from fmlora_dist.errors import UserError
from fmlora_dist.record import SCHEMA, RunDirectory, write_atomically
from running import events, finished, result, tiny_data
from tiny_benchmark import tiny_arguments


@pytest.fixture
def config() -> RunConfig:
    return parse_config(tiny_arguments(tiny_data(), method="lora"), prog="fmlora run")[0]


@pytest.fixture
def record(tmp_path: Path, config: RunConfig) -> RunDirectory:
    record = RunDirectory(tmp_path / "run")
    record.open(config)
    return record


def test_the_result_has_all_that_its_schema_names() -> None:
    facts = result(finished("fmlora"))
    names = "schema status benchmark scenario n_tasks method seed order_seed world_size global_batch_size threads"
    names += (
        " accuracy_matrix test_sizes metrics parameters ranks complexity seconds steps protocol protocol_hash config"
    )
    names += " versions git"
    assert set(names.split()) <= set(facts)
    assert facts["schema"] == SCHEMA and facts["status"] == "complete"
    assert [len(row) for row in facts["accuracy_matrix"]] == [1, 2, 3]
    assert all(0 <= accuracy <= 100 for row in facts["accuracy_matrix"] for accuracy in row)
    assert set(facts["metrics"]) >= {"acc", "aaa", "forgetting", "bwt", "acc_samples", "aaa_samples"}
    parts = ["import", "start", "data", "begin_task", "train", "end_task", "eval", "checkpoint", "other"]
    assert set(facts["seconds"]) == {*parts, "total"}
    assert len(facts["steps"]) == 3 and all(n > 0 for n in facts["steps"])
    assert len(facts["parameters"]["trainable"]) == len(facts["parameters"]["stored"]) == 3
    assert facts["ranks"][0] == 16 and len(facts["ranks"]) == len(facts["complexity"]) == 3
    assert facts["seconds"]["total"] == round(sum(facts["seconds"][name] for name in parts), 3)


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_comes_back_as_it_was_saved(record: RunDirectory) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(7), "c": torch.empty(0, 5), "d": torch.ones(2).bfloat16()}
    position = {"task": 2, "accuracy_matrix": [[1 / 3]]}
    assert record.load_checkpoint() is None
    record.save_checkpoint(tensors, position)
    loaded = record.load_checkpoint()
    assert loaded is not None and loaded[1] == position
    assert all(loaded[0][name].equal(value) and loaded[0][name].dtype == value.dtype for name, value in tensors.items())


def test_whoever_may_read_the_config_may_read_the_checkpoint(record: RunDirectory) -> None:
    record.save_checkpoint({"a": torch.ones(1)}, {})
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (record.config_file, record.checkpoint_file)]
    assert modes[0] == modes[1]


def test_what_a_killed_process_left_half_written_is_cleared_away(record: RunDirectory, config: RunConfig) -> None:
    record.event("start")
    record.close()
    for name in (".checkpoint.safetensors.123.tmp", ".tmpAbC123"):
        (record.folder / name).write_text("half")
    with open(record.events_file, "a") as file:
        file.write('{"event": "ta')
    again = RunDirectory(record.folder)
    again.open(config)
    again.event("start")
    again.close()
    assert {path.name for path in record.folder.iterdir()} == {".lock", "config.yaml", "events.jsonl"}
    lines = record.events_file.read_text().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[2])] == ["start", "start"]


def test_a_directory_is_held_by_one_process_at_a_time(record: RunDirectory, config: RunConfig) -> None:
    second = RunDirectory(record.folder)
    with pytest.raises(UserError, match="another process is working"):
        second.open(config)
    record.close()
    second.open(config)
    second.close()


def test_a_directory_whose_config_is_gone_is_refused(record: RunDirectory, config: RunConfig) -> None:
    record.save_checkpoint({"a": torch.ones(1)}, {})
    record.config_file.unlink()
    with pytest.raises(UserError, match=r"holds a run without its config\.yaml"):
        record.check(config, resume=True)


def test_another_config_is_told_by_a_field_that_counts(record: RunDirectory) -> None:
    words = tiny_arguments(tiny_data(), method="lora", seed=3, data_root="/elsewhere", cache_budget=0)
    other = parse_config(words, prog="fmlora run")[0]
    with pytest.raises(UserError, match="order_seed is 0 there and 3 here"):
        record.check(other, resume=True)


def test_events_are_json_lines_with_their_time_and_reach_the_listeners(record: RunDirectory) -> None:
    heard: list[str] = []
    record.listeners.append(lambda event: heard.append(event["event"]))
    record.event("start", n_tasks=3)
    record.event("complete", acc=1.5)
    assert heard == ["start", "complete"]
    assert [(event["event"], event.get("acc")) for event in events(record.folder)] == [
        ("start", None),
        ("complete", 1.5),
    ]
    assert all(event["time"] > 1e9 for event in events(record.folder))


def test_a_result_holds_no_number_that_json_has_not(record: RunDirectory) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write_result({"acc": float("nan")})
    assert not record.complete
