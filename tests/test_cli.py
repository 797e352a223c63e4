"""One run, however it is started; and every flag, command and line of help that the users were promised."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from fmlora_dist.config import RunConfig
from fmlora_dist.registry import get_method, list_benchmarks, list_methods
from running import (
    REPOSITORY,
    assert_same_run,
    command,
    command_here,
    events,
    finished,
    result,
    run_arguments,
    tiny_data,
)


def test_train_py_and_fmlora_run_are_the_same_run(tmp_path: Path) -> None:
    out = tmp_path / "x"
    words = run_arguments(out, method="fmlora")[1:]
    script = [sys.executable, str(REPOSITORY / "train.py"), *words]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert_same_run(out, finished("fmlora"))
    assert result(out)["config_key"] == result(finished("fmlora"))["config_key"]


def test_a_run_directory_can_be_run_again(tmp_path: Path) -> None:
    done = command(["run", "--config", finished("fmlora") / "config.yaml", "--out", tmp_path / "z"])
    assert done.code == 0, done.err
    assert_same_run(tmp_path / "z", finished("fmlora"))
    assert yaml.safe_load((tmp_path / "z" / "config.yaml").read_text()) == result(finished("fmlora"))["config"]


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": 3}, {"cache_budget": 0, "workers": 1}])
def test_neither_workers_nor_cache_change_a_number(changes: dict[str, object], tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "run", method="fmlora", **changes))
    assert done.code == 0, done.err
    assert_same_run(tmp_path / "run", finished("fmlora"))


def test_another_seed_or_order_is_another_run(tmp_path: Path) -> None:
    for name, changes in (("seed", {"seed": 1, "order_seed": 0}), ("order", {"order_seed": 1})):
        assert command(run_arguments(tmp_path / name, method="lora", **changes)).code == 0
        assert result(tmp_path / name)["config_key"] != result(finished("lora"))["config_key"]
        assert result(tmp_path / name)["drift"] != result(finished("lora"))["drift"]


def test_a_run_without_out_goes_into_a_folder_that_its_config_names(tmp_path: Path) -> None:
    words = run_arguments(tmp_path, method="frozen", tasks=2, epochs=1, seed=3)
    place = words.index("--out")
    done = command(words[:place] + words[place + 2 :], folder=tmp_path)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"icons-2-frozen-s3-[0-9a-f]{10}", folder.name)
    assert result(folder)["config_key"].startswith(folder.name[-10:])


def test_a_domain_incremental_run_has_a_task_for_each_domain(tmp_path: Path) -> None:
    words = run_arguments(tmp_path / "run", method="fmlora", scenario="dil")
    place = words.index("--tasks")
    done = command(words[:place] + words[place + 2 :])
    assert done.code == 0, done.err
    assert result(tmp_path / "run")["n_tasks"] == 2
    assert [len(row) for row in result(tmp_path / "run")["accuracy_matrix"]] == [1, 2]


def test_progress_is_told_a_line_a_task_and_the_end() -> None:
    out = finished("lora")
    kinds = [event["event"] for event in events(out) if event["event"] != "progress"]
    assert kinds == ["start", "task", "task", "task", "complete"]


# -- help ---------------------------------------------------------------------------------------------------------


def _fields(model: type[BaseModel]) -> Iterator[str]:
    """Dotted names of all fields."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{inner}" for inner in _fields(field.annotation))
        else:
            yield name


@pytest.mark.parametrize("method", [None, *list_methods()])
def test_help_explains_every_field_with_its_default(method: str | None) -> None:
    done = command(["run", *(["--method", method] if method else []), "--help"])
    assert done.code == 0
    text = " ".join(done.out[done.out.index("\noptions:") :].split())
    for flag in ("--config", "--out", "--resume"):
        assert flag in text
    own = get_method(method or "fmlora").Config
    fields = [*_fields(RunConfig), *(f"method.{name}" for name in own.model_fields)]
    assert len(fields) > 20
    for field in fields:
        found = re.search(rf"--{re.escape(field)} (?P<rest>.*?)(?= --[a-z_.]+ |$)", text)
        assert found, f"--{field} is not in the help"
        assert re.search(r"\S.{10,} \(default: .*\)", found["rest"]), found[0]


def test_dashes_and_underscores_are_the_same_in_flags(tmp_path: Path) -> None:
    words = run_arguments(tmp_path / "run", method="frozen", tasks=2, epochs=1)
    dashed = [re.sub("_", "-", word) if word.startswith("--") else word for word in words]
    assert "--batch-size" in dashed and "--data-root" in dashed
    done = command([*dashed, "--order-seed=2"])
    assert done.code == 0, done.err
    assert result(tmp_path / "run")["order_seed"] == 2


def test_list_shows_every_method_and_benchmark_with_a_line_each() -> None:
    done = command(["list"])
    assert done.code == 0
    for name in (*list_methods(), *list_benchmarks()):
        assert re.search(rf"^\s*(method|benchmark)\s+{name}\s+\S", done.out, re.MULTILINE), name


def test_usage_and_version_need_no_command() -> None:
    usage = command_here([])
    assert usage.code == 0
    assert all(f"\n  {name}" in usage.out for name in ("run", "grid", "demo", "report", "evaluate", "list"))
    assert re.fullmatch(r"fmlora \d+\.\d+.*\n", command_here(["--version"]).out)


# -- evaluate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fmlora", "inflora", "sdlora", "finetune", "joint"])
def test_evaluate_gives_the_final_row_whatever_the_batch_size(method: str, tmp_path: Path) -> None:
    out = finished(method)
    row, metrics = result(out)["accuracy_matrix"][-1], result(out)["metrics"]
    for size in (None, 1, 7, 128):
        words = [] if size is None else ["--batch-size", size]
        done = command_here(["evaluate", out, *words, "--json", tmp_path / "figures.json"])
        assert done.code == 0, done.err
        figures = json.loads(done.out)
        assert figures == json.loads((tmp_path / "figures.json").read_text())
        assert figures["per_task"] == row
        assert figures["acc"] == pytest.approx(metrics["acc"])
        assert figures["acc_samples"] == pytest.approx(metrics["acc_samples"])


def test_evaluate_needs_nothing_but_the_run_and_its_data(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(finished("fmlora"), copy)
    done = command(["evaluate", copy], folder=tmp_path)
    assert json.loads(done.out)["per_task"] == result(finished("fmlora"))["accuracy_matrix"][-1]
    assert tiny_data().is_dir()
