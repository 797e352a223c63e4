"""A run from config to result: what it measures, and that it is the same every time."""

import shutil
from pathlib import Path

import pytest
import torch

from fmlora_dist.config import parse_config
from fmlora_dist.distributed import World
from fmlora_dist.errors import UserError
from fmlora_dist.metrics import summarize
from fmlora_dist.record import RunDirectory
from fmlora_dist.registry import list_methods
from fmlora_dist.restore import restore
from fmlora_dist.run import Run, evaluate
from running import assert_same_run, checkpoint, command, events, finished, result, run_arguments, tiny_data
from tiny_benchmark import tiny_arguments


@pytest.mark.parametrize("method", ["inflora", "finetune"])
def test_the_same_config_gives_the_same_run_bit_for_bit(method: str, tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "again", method=method))
    assert done.code == 0, done.err
    assert_same_run(tmp_path / "again", finished(method))


@pytest.mark.parametrize("method", list_methods())
def test_every_method_runs_to_a_complete_result(method: str) -> None:
    facts = result(finished(method))
    rows = [3] if method == "joint" else [1, 2, 3]
    assert [len(row) for row in facts["accuracy_matrix"]] == rows
    assert len(facts["parameters"]["trainable"]) == len(facts["drift"]) == len(rows)
    assert facts["metrics"] == summarize(facts["accuracy_matrix"], facts["test_sizes"])
    assert facts["test_sizes"] == [16, 16, 16]
    assert "complete" in facts["status"]


def test_training_learns_what_there_is_to_learn(tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "run", method="joint", epochs=40, train__lr=3e-3))
    assert done.code == 0, done.err
    assert result(tmp_path / "run")["metrics"]["acc"] > 60, "twelve kinds of stripes; chance is 8.3"


def test_drift_is_how_far_task_1s_test_features_have_turned_since_task_1() -> None:
    folder = finished("finetune")
    tensors, _ = checkpoint(folder)
    method, data, _ = restore(folder, device="cpu")
    (images, _), *others = data.test(data.tests[0])
    assert not others, "all in one batch"
    with torch.no_grad(), method.merged():
        now = method.features(images)
    cosine = torch.nn.functional.cosine_similarity(now, tensors["reference"], dim=1)
    assert result(folder)["drift"][-1] == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    assert result(folder)["drift"][0] == pytest.approx(0, abs=1e-6), "the reference is that of task 1's end"


def test_the_drift_of_frozen_features_is_zero_and_of_trained_ones_is_not() -> None:
    assert result(finished("frozen"))["drift"] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert result(finished("finetune"))["drift"][0] == 0.0
    assert min(result(finished("finetune"))["drift"][1:]) > 1e-4


def test_what_is_stored_is_counted_without_the_backbone() -> None:
    facts, (tensors, _) = result(finished("fmlora")), checkpoint(finished("fmlora"))
    assert facts["parameters"]["stored"][-1] == sum(
        value.numel() for name, value in tensors.items() if name.startswith("method/")
    )
    assert not any("backbone" in name for name in tensors)
    whole = result(finished("finetune"))["parameters"]
    assert whole["stored"][-1] > whole["backbone"]


def test_evaluation_leaves_the_method_as_it_was() -> None:
    method, data, precision = restore(finished("sdlora"), device="cpu")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    first = evaluate(method, data, precision, data.n_tasks)
    assert first == evaluate(method, data, precision, data.n_tasks, batch_size=5)
    assert first == result(finished("sdlora"))["accuracy_matrix"][-1]
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_run_goes_on_and_is_tested_in_the_precision_that_it_was_started_in(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished("frozen"), folder)
    assert restore(folder, device="cpu")[2].name == "fp32"
    tensors, position = checkpoint(folder)
    assert position["precision"] == "fp32", "what auto is on a CPU"
    RunDirectory(folder).save_checkpoint(tensors, position | {"precision": "bf16"})
    assert restore(folder, device="cpu")[2].name == "bf16"
    (folder / "result.json").unlink()
    assert command([*run_arguments(folder, method="frozen"), "--resume"]).code == 0
    assert result(folder)["protocol"]["recipe"]["train"]["precision"] == "bf16"


@pytest.mark.parametrize("words", [["evaluate"], ["export", "--out", "model.safetensors"]], ids=str)
def test_a_run_is_not_taken_up_on_other_data_than_it_was_trained_on(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished("lora"), run)
    tensors, position = checkpoint(run)
    RunDirectory(run).save_checkpoint(tensors, position | {"protocol": "0123456789abcdef"})
    refused = command([words[0], run, *words[1:]], folder=tmp_path)
    assert refused.code == 2 and "other backbone weights or other data" in refused.err
    (run / "result.json").unlink()
    resumed = command([*run_arguments(run, method="lora"), "--resume"])
    assert resumed.code == 2 and "other backbone weights or other data" in resumed.err


def test_passes_and_tests_are_signs_of_life_where_steps_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmlora_dist.run._SIGN_EVERY", 0.0)
    config, _ = parse_config(tiny_arguments(tiny_data(), method="simplecil"), prog="fmlora run")
    record = RunDirectory(tmp_path / "run")
    record.open(config)
    Run(config, World("cpu", 1)).go(record)
    record.close()
    found = [(event["event"], event.get("task")) for event in events(tmp_path / "run")]
    kinds = [kind for kind, _ in found]
    assert kinds[0] == "start" and kinds[-1] == "complete" and set(kinds) == {"start", "alive", "task", "complete"}
    assert {task for kind, task in found if kind == "alive"} == {1, 2, 3}


def test_a_run_with_steps_every_second_needs_no_other_sign_of_life() -> None:
    assert "alive" not in {event["event"] for event in events(finished("fmlora"))}


def test_whatever_is_wrong_is_said_when_the_run_is_made() -> None:
    config, _ = parse_config(tiny_arguments(tiny_data(), tasks=7), prog="fmlora run")
    with pytest.raises(UserError, match="tasks: found 7"):
        Run(config, World("cpu", 1))


def test_a_run_in_half_precision_is_a_run_too(tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "run", method="fmlora", train__precision="bf16"))
    assert done.code == 0, done.err
    assert result(tmp_path / "run")["protocol"]["recipe"]["train"]["precision"] == "bf16"
    assert result(tmp_path / "run")["drift"] != result(finished("fmlora"))["drift"]
