"""Two processes under the deepspeed launcher: the same batches, losses and ranks as one, and the same promises."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from launching import finish, launch
from observing import observe, watched_arguments
from running import (
    REPOSITORY,
    assert_same_run,
    checkpoint,
    command,
    result,
    run_arguments,
    scratch,
    tiny_data,
    two_processes,
)

METHODS = ("fmlora", "inflora", "sdlora", "finetune", "l2p", "dualprompt", "coda_prompt", "hide_prompt")


@pytest.fixture(scope="module")
def together() -> Path:
    """The folder of runs that two processes did."""
    folder = scratch() / "together"
    folder.mkdir()
    script = REPOSITORY / "tests" / "observing.py"
    code, out, err = finish(launch(script, folder, tiny_data(), *METHODS))
    assert code == 0, out + err
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one process sees in the same runs."""
    return {method: observe(scratch() / "alone" / method, tiny_data(), method) for method in METHODS}


def _seen(together: Path, method: str) -> list[dict[str, Any]]:
    return [json.loads((together / f"{method}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_see_the_batches_of_one(method: str, together: Path, alone: dict[str, dict[str, Any]]) -> None:
    first, second = _seen(together, method)
    assert first["backend"] == second["backend"] == "gloo"
    shares = zip(first["positions"], second["positions"], strict=True)
    assert [[*mine, *others] for mine, others in shares] == alone[method]["positions"]
    assert {len(share) for share in first["positions"]} != {len(share) for share in second["positions"]}
    pixels = [[*mine, *others] for mine, others in zip(first["pixels"], second["pixels"], strict=True)]
    for both, one in zip(pixels, alone[method]["pixels"], strict=True):
        assert both == pytest.approx(one, abs=1e-2), "the same crops of the same images"


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_have_the_losses_and_accuracies_of_one(
    method: str, together: Path, alone: dict[str, dict[str, Any]]
) -> None:
    first, second = _seen(together, method)
    losses = [(mine + others) / 2 for mine, others in zip(first["losses"], second["losses"], strict=True)]
    assert len(losses) == 4 * 2 * 4
    assert losses == pytest.approx(alone[method]["losses"], abs=1e-5)
    both, one = result(together / method), result(scratch() / "alone" / method)
    assert both["world_size"] == 2 and one["world_size"] == 1
    assert both["metrics"]["acc"] == pytest.approx(one["metrics"]["acc"], abs=1.0)
    assert both["parameters"] == one["parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_with_the_model_of_one(method: str, together: Path, alone: dict[str, Any]) -> None:
    both, one = checkpoint(together / method)[0], checkpoint(scratch() / "alone" / method)[0]
    assert both.keys() == one.keys() and method in alone
    for name in both:
        apart = ~torch.isclose(both[name], one[name], atol=3e-4, rtol=0)
        # One in a hundred: where a gradient is zero but for rounding, Adam still goes a whole step, to either side.
        assert apart.sum() <= 0.01 * apart.numel(), name


def test_drs_chooses_the_same_rank_on_every_process(together: Path, alone: dict[str, dict[str, Any]]) -> None:
    first, second = _seen(together, "fmlora")
    assert first["diagnostics"] == second["diagnostics"]
    ranks = [figures["rank"] for figures in first["diagnostics"]]
    assert ranks == [figures["rank"] for figures in alone["fmlora"]["diagnostics"]]
    assert [figures["complexity"] for figures in first["diagnostics"]] == pytest.approx(
        [figures["complexity"] for figures in alone["fmlora"]["diagnostics"]], abs=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_engine_leaves_nothing_behind_from_task_to_task(method: str, together: Path) -> None:
    for seen in _seen(together, method):
        assert seen["hooks"] == [0, 0, 0, 0]
        assert max(seen["engines"]) <= 1, "the one just closed may be alive still; those before it must be gone"


# Methods without a step, and those that do more than SD-LoRA does (every direction after the first is absorbed).
OTHERS: dict[str, dict[str, object]] = {
    "simplecil": {},
    "ranpac": {"method__projection": 100},
    "sdlora_rr": {"method__rank": 4, "method__later_ranks": "3,2"},
    "sdlora_kd": {"method__threshold": 2.0},
}


@pytest.mark.parametrize("method", OTHERS)
def test_two_processes_end_with_the_statistics_and_directions_of_one(method: str, tmp_path: Path) -> None:
    runs = {}
    for name, start in (("both", two_processes), ("one", lambda words: [command(words)])):
        out = tmp_path / name
        done = start(run_arguments(out, method=method, batch_size=7, **OTHERS[method]))
        assert all(each.code == 0 for each in done), done[0].err
        runs[name] = out
    assert result(runs["both"])["world_size"] == 2
    for part in ("parameters", "ranks"):
        assert result(runs["both"])[part] == result(runs["one"])[part]
    both, one = (checkpoint(runs[name])[0] for name in ("both", "one"))
    assert both.keys() == one.keys()
    for name in both:
        assert torch.allclose(both[name], one[name], atol=3e-4, rtol=1e-4), name
    assert result(runs["both"])["metrics"]["acc"] == pytest.approx(result(runs["one"])["metrics"]["acc"], abs=3.0)


def test_two_processes_that_are_killed_and_resumed_equal_the_undisturbed_two(together: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*watched_arguments(tiny_data(), "fmlora"), "--out", str(out)]

    def in_task_2() -> bool:
        return (out / "checkpoint.safetensors").exists() and checkpoint(out)[1]["task"] >= 2

    killed = two_processes(["run", *words], kill_when=in_task_2)
    assert [done.code for done in killed] == [-9, -9], killed
    assert not (out / "result.json").exists()
    code, printed, err = finish(launch(REPOSITORY / "train.py", *words, "--resume"))
    assert code == 0, err
    assert printed.count("is complete: Acc") == 1
    assert_same_run(out, together / "fmlora")


def test_a_mistake_under_the_launcher_is_one_line_and_a_failedlaunch(tmp_path: Path) -> None:
    words = run_arguments(tmp_path / "run", method="lora", method__rank=49)[1:]
    code, out, err = finish(launch(REPOSITORY / "train.py", *words))
    assert code == 2
    assert (out + err).count("fmlora: error: ") == 1 and "method.rank: found 49, expected at most the width" in err
    assert "Traceback" not in out + err


def test_a_mistake_that_only_the_main_process_sees_ends_all_of_them(together: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(together / "sdlora", out)
    (out / "result.json").unlink()
    (out / "checkpoint.safetensors").write_bytes(b"damaged")
    words = [*watched_arguments(tiny_data(), "sdlora"), "--out", str(out), "--resume"]
    main, other = two_processes(["run", *words])
    assert main.code == 2 and main.err.count("\n") == 1, main.err
    assert main.err.startswith("fmlora: error: checkpoint: ")
    assert other.err == "", "which waits for the launcher to end it"
