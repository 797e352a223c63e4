"""A user's mistake ends with one clear line on stderr and exit code 2, before any training."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.index import Index
from fmlora_dist.method import TaskData
from running import (
    REPOSITORY,
    Done,
    checkpoint,
    command,
    command_here,
    events,
    finished,
    result,
    run_arguments,
    tiny_data,
)
from tiny_benchmark import write_tiny


def _assert_refused(done: Done, *parts: str) -> None:
    assert done.code == 2, done.err
    assert done.err.startswith("fmlora: error: ")
    assert done.err.count("\n") == 1, done.err
    assert done.out == ""
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--method fmlor", ["unknown method 'fmlor'", "did you mean 'fmlora'?"]),
        ("--benchmark icnos", ["unknown benchmark 'icnos'", "did you mean 'icons'?"]),
        ("--method.rnk 3", ["unknown field '--method.rnk'", "did you mean '--method.rank'?"]),
        ("--epochz 3", ["unknown field '--epochz'", "did you mean '--epochs'?"]),
        ("--lr 0.1", ["unknown field '--lr'", "did you mean '--train.lr'?"]),
        ("--tasks 5", ["tasks: found 5", "divides the 12 classes", "nearest are 3, 4, 6"]),
        ("--tasks x", ["tasks: ", "integer", "found 'x'"]),
        ("--tasks 0", ["tasks: ", "found '0'"]),
        ("--scenario dil --tasks 3", ["tasks: found 3, expected 2"]),
        ("--scenario online", ["scenario: ", "'cil' or 'dil'", "found 'online'"]),
        ("--method.rank 0", ["method.rank: ", "found '0'"]),
        ("--method.rank -4", ["method.rank: ", "found '-4'"]),
        ("--method.rank 49", ["method.rank: ", "49", "width", "48"]),
        ("--method lora --method.rank 49", ["method.rank: ", "49", "width", "48"]),
        ("--method inflora --method.rank 49", ["method.rank: ", "49", "width", "48"]),
        ("--method sdlora --method.rank 49", ["method.rank: ", "49", "width", "48"]),
        ("--method.candidates 8,4", ["method: candidates must ascend"]),
        ("--method.drs maybe", ["method.drs: ", "boolean", "found 'maybe'"]),
        ("--train.lr -0.1", ["train.lr: ", "greater than 0", "found '-0.1'"]),
        ("--train.lr nan", ["train.lr: ", "finite", "found 'nan'"]),
        ("--method.drs_price inf", ["method.drs_price: ", "finite", "found 'inf'"]),
        ("--method sdlora --method.alpha 1e400", ["method.alpha: ", "finite"]),
        ("--threads 100000", ["threads: ", "1024", "found '100000'"]),
        ("--batch_size 0", ["batch_size: ", "found '0'"]),
        ("--batch-size 0", ["batch_size: ", "found '0'"]),
        ("--device tpu", ["device: unknown 'tpu'; expected auto, cpu, cuda or cuda:N"]),
        ("--data-root /nowhere", ["data-root: found no folder /nowhere"]),
        ("--config nowhere.yaml", ["config: cannot read nowhere.yaml", "No such file"]),
        ("--backbone.weights /nowhere", ["backbone.weights: no file /nowhere"]),
        ("--backbone.name vit_tinny", ["backbone.name: timm knows no 'vit_tinny'"]),
        (
            "--method l2p --method.key_loss all_pairs --train.accumulation 2",
            ["train.accumulation: found 2, expected 1"],
        ),
        (
            "--method dualprompt --method.general_layers 99 --method.expert_layers 1",
            ["method.general_layers and expert_layers: found 99, 1"],
        ),
        ("--backbone.normalisation units", ["backbone.normalisation: unknown 'units'", "'unit'"]),
        ('--backbone.options {"depth":', ["backbone.options"]),
        ("--train.validation 0.001", ["train.validation: 0.001 leaves 0 of 32 images"]),
        ("--epochs", ["--epochs: expected one argument"]),
        ("stray", ["unrecognized arguments: stray"]),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_expected(words: str, parts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    _assert_refused(command_here([*run_arguments(out), *words.split()]), *parts)
    assert not out.exists(), "nothing is left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    _assert_refused(command_here(run_arguments(tmp_path / "run", device="cuda")), "device: 'cuda'", "no GPU")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("metod: lora", ["unknown field 'metod'", "did you mean 'method'?"]),
        ("method: {name: lora, rnk: 3}", ["unknown field 'method.rnk'", "did you mean 'rank'?"]),
        ("method: {name: loora}", ["unknown method 'loora'", "'lora'"]),
        ("method: [lora]", ["method: found ['lora']", "{name: fmlora}"]),
        ("train: {lr: [", ["is no YAML"]),
        ("- a list", ["holds a list, expected fields and values"]),
        ("", ["holds a NoneType"]),
    ],
)
def test_a_wrong_config_file_is_named_with_what_was_expected(text: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    _assert_refused(command_here(["run", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run"]), *parts)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    words = ["run", "--method", "frozen", "--out"]
    _assert_refused(command_here([*words, finished("frozen")]), "already holds a run")  # all modules are imported now
    me = os.geteuid()
    os.seteuid(me or 65534)  # root may enter all
    try:
        done = command_here([*words, closed / "run"])
    finally:
        os.seteuid(me)
    _assert_refused(done, f"{closed / 'run'}", "permission denied")


def test_an_unknown_command_is_named_with_the_nearest_one() -> None:
    _assert_refused(command_here(["evalute"]), "unknown command 'evalute'", "'evaluate'")


def test_a_mistake_under_plain_python_ends_with_exit_code_2(tmp_path: Path) -> None:
    words = [sys.executable, str(REPOSITORY / "train.py"), "--method", "fmlor", "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fmlora: error: unknown method 'fmlor': did you mean 'fmlora'?\n"


# -- data ---------------------------------------------------------------------------------------------------------


def _first(index: Index, shard: int) -> int:
    """The row of the first sample in a shard."""
    rows = [row for row in range(len(index)) if index.shard[row] == shard]
    return min(rows, key=lambda row: int(index.offset[row]))


def _remove(folder: Path, index: Index) -> list[str]:
    (folder / index.shards[1].name).unlink()
    return [f"{folder / index.shards[1].name}: found no such shard", f"expected {index.shards[1].bytes} bytes"]


def _truncate(folder: Path, index: Index) -> list[str]:
    path = folder / index.shards[1].name
    path.write_bytes(path.read_bytes()[:5000])
    return [f"{path}: found a truncated shard that ends at byte 5000", f"expected {index.shards[1].bytes} bytes"]


def _lengthen(folder: Path, index: Index) -> list[str]:
    path = folder / index.shards[1].name
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    return [str(path), "the index does not match its shard"]


def _corrupt_image(folder: Path, index: Index) -> list[str]:
    row = _first(index, 1)
    start = int(index.offset[row])
    path = folder / index.shards[1].name
    content = bytearray(path.read_bytes())
    content[start : start + 100] = b"\xff" * 100
    path.write_bytes(content)
    return [f"{path}: corrupt at sample '{index.keys[row]}', byte {start}"]


def _swap_shards(folder: Path, index: Index) -> list[str]:
    one, other = (folder / index.shards[number].name for number in (0, 2))
    if one.stat().st_size != other.stat().st_size:
        pytest.fail("the fixture's shards must be of one length")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [str(one)]


def _retouch(folder: Path, index: Index) -> list[str]:
    path = folder / index.shards[1].name
    content = bytearray(path.read_bytes())
    content[-1] = 1  # in the padding at the tar's end: every image is as it was
    path.write_bytes(content)
    return [str(path), "the index does not match its shard", f"bytes 0 to {len(content)}"]


def _index_beyond(folder: Path, index: Index) -> list[str]:
    document = json.loads((folder / "index.json").read_text())
    document["samples"]["offset"][3] = 10**9
    (folder / "index.json").write_text(json.dumps(document))
    return [f"sample '{index.keys[3]}'", "ending at byte 10000", f"expected <= {index.shards[index.shard[3]].bytes}"]


def _no_index(folder: Path, index: Index) -> list[str]:
    (folder / "index.json").unlink()
    return ["index.json: found no such file"]


def _broken_index(folder: Path, index: Index) -> list[str]:
    (folder / "index.json").write_text((folder / "index.json").read_text()[:200])
    return ["index.json", "invalid JSON"]


def _other_benchmark(folder: Path, index: Index) -> list[str]:
    dataclasses.replace(index, name="cifar100").save(folder)
    return ["found the index of benchmark 'cifar100', expected 'icons'"]


@pytest.mark.parametrize(
    "damage",
    [
        _remove,
        _truncate,
        _lengthen,
        _corrupt_image,
        _swap_shards,
        _retouch,
        _index_beyond,
        _no_index,
        _broken_index,
        _other_benchmark,
    ],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_damaged_data_are_found_before_any_training(damage: Callable[[Path, Index], list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    index = write_tiny(folder)
    parts = damage(folder, index)
    _assert_refused(command_here(run_arguments(tmp_path / "run", data_root=folder)), *parts)
    assert not (tmp_path / "run").exists()


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.npz"])
def test_weights_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("no weights")
    done = command_here(run_arguments(tmp_path / "run", backbone__weights=tmp_path / name))
    _assert_refused(done, "backbone.weights", str(tmp_path / name))


def test_weights_of_another_architecture_are_refused_by_the_first_keys_that_differ(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3), "cls_token": torch.zeros(1, 1, 7)}, tmp_path / "w.safetensors")
    done = command_here(run_arguments(tmp_path / "run", backbone__weights=tmp_path / "w.safetensors"))
    _assert_refused(done, "another architecture", "missing: pos_embed", "unknown: conv1.weight")
    assert "of another shape: cls_token" in done.err


# -- run directories ----------------------------------------------------------------------------------------------


def test_a_directory_with_a_run_in_it_is_refused_without_resume() -> None:
    out = finished("fmlora")
    before = (out / "result.json").read_bytes()
    _assert_refused(command_here(run_arguments(out, method="fmlora")), f"out: {out} already holds a run", "--resume")
    assert (out / "result.json").read_bytes() == before


def test_a_directory_of_another_config_is_refused_by_the_field_that_differs() -> None:
    out = finished("fmlora")
    done = command([*run_arguments(out, method="fmlora", epochs=3, cache_budget="1GiB"), "--resume"])
    _assert_refused(done, "the run of another config", "epochs is 2 there and 3 here")


def test_data_may_lie_elsewhere_when_a_run_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command(run_arguments(out, method="frozen"), kill_at_replace=(4, True)).code == -9
    shutil.copytree(tiny_data(), tmp_path / "data")
    words = run_arguments(out, method="frozen", data_root=tmp_path / "data", workers=0, cache_budget=0)
    assert command([*words, "--resume"]).code == 0
    assert result(out)["accuracy_matrix"] == result(finished("frozen"))["accuracy_matrix"]


def test_an_out_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _assert_refused(command_here(run_arguments(tmp_path / "file" / "run")), "out: cannot write to", "another --out")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command(run_arguments(out, method="frozen"), kill_at_replace=(4, True)).code == -9
    (out / "checkpoint.safetensors").write_bytes((out / "checkpoint.safetensors").read_bytes()[:-10])
    done = command([*run_arguments(out, method="frozen"), "--resume"])
    _assert_refused(done, f"checkpoint: {out / 'checkpoint.safetensors'} is damaged")


@pytest.mark.parametrize("damage", ["position", "field", "name"])
def test_a_checkpoint_of_another_version_is_named(damage: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished("lora"), out)
    tensors, position = checkpoint(out)
    if damage == "position":
        position = [position]
    elif damage == "field":
        position["unheard_of"] = 1
    else:
        tensors["method/unheard_of"] = tensors.pop("method/head.past_weight")
    save_file(tensors, out / "checkpoint.safetensors", metadata={"position": json.dumps(position)})
    _assert_refused(command_here(["evaluate", out]), f"checkpoint: that of {out} is damaged, or of another version")
    (out / "result.json").unlink()
    done = command_here([*run_arguments(out, method="lora"), "--resume"])
    _assert_refused(done, f"checkpoint: that of {out} is damaged, or of another version")


def test_evaluate_refuses_what_is_no_complete_run(tmp_path: Path) -> None:
    _assert_refused(command_here(["evaluate", tmp_path]), "is no run directory")
    out = tmp_path / "run"
    assert command(run_arguments(out, method="frozen"), kill_at_replace=(4, True)).code == -9
    _assert_refused(command_here(["evaluate", out]), "not complete", "--resume")
    _assert_refused(command_here(["evaluate", finished("frozen"), "--batch-size", "0"]), "--batch-size: found 0")


# -- in the middle of a run ---------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_checkpoint_good(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = run_arguments(out, method="sdlora")  # whose checkpoint grows from task to task
    sizes = (checkpoint_size_after(1, tmp_path), (finished("sdlora") / "checkpoint.safetensors").stat().st_size)
    done = command(words, largest_file=sum(sizes) // 2)
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1 and "cannot be written" in done.err and "--resume" in done.err
    position = checkpoint(out)[1]
    assert position["task"] > 1, "the earlier checkpoint opens, and is one"
    assert not [path for path in out.iterdir() if "tmp" in path.name], "nothing half written is left to fill the disk"
    assert command([*words, "--resume"]).code == 0
    assert result(out)["accuracy_matrix"] == result(finished("sdlora"))["accuracy_matrix"]
    assert [event["event"] for event in events(out)].count("error") == 1


def checkpoint_size_after(task: int, folder: Path) -> int:
    """Bytes of SD-LoRA's largest checkpoint in that task, the one with the optimizer's state."""
    out = folder / "sized"
    assert command(run_arguments(out, method="sdlora"), kill_at_replace=(4 * task - 1, True)).code == -9
    return (out / "checkpoint.safetensors").stat().st_size


def test_a_disk_that_is_full_from_the_start_is_one_line_too(tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "run", method="lora"), largest_file=300)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "cannot" in done.err


def test_a_loss_that_is_not_finite_stops_the_run_and_names_task_and_step(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = run_arguments(out, method="finetune", train__optimizer="sgd", train__lr=1e30)
    done = command(words)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "the loss is nan at task 1, epoch 1, step" in done.err
    tensors, position = checkpoint(out)
    assert (position["task"], position["epoch"]) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert events(out)[-1]["event"] == "error"


def test_what_a_method_does_after_a_task_must_be_finite_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.simplecil import SimpleCil

    usual = SimpleCil.end_task

    def spoilt(method: SimpleCil, data: TaskData) -> None:
        usual(method, data)
        if method.task and method.task.number == 2:
            method.head.past_weight[0, 0] = torch.nan

    monkeypatch.setattr(SimpleCil, "end_task", spoilt)
    done = command_here(run_arguments(tmp_path / "run", method="simplecil"))
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "what simplecil does after task 2 leaves values in head.past_weight that are not finite" in done.err
    tensors, position = checkpoint(tmp_path / "run")
    assert position["task"] == 2 and all(tensor.isfinite().all() for tensor in tensors.values())


def test_parameters_that_overflow_in_an_epochs_last_step_are_not_saved(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = run_arguments(out, method="frozen", train__optimizer="sgd", train__lr=1e38, train__clip=0, batch_size=32)
    done = command(words)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "at task 1, epoch" in done.err and ", step 1" in done.err
    assert all(tensor.isfinite().all() for tensor in checkpoint(out)[0].values())
