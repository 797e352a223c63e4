"""Run directories with a result.json as a run writes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from result_files import write_whole


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """``write_run(method, seed, acc, aaa, **fields of the result)`` -> its folder below ``tmp_path``."""

    def write(method: str, seed: int, acc: float, aaa: float | None = 50.0, **fields: Any) -> Path:
        n_tasks, benchmark = fields.get("n_tasks", 5), fields.get("benchmark", "icons")
        shared = {"benchmark": benchmark, "n_tasks": n_tasks, "backbone": "tiny", "split": "0123456789abcdef" * 2}
        shared |= fields.pop("shared", {})
        recipe = {"method": {"name": method, "rank": 16}, "epochs": 3, "train": {"lr": 0.001}} | fields.pop(
            "recipe", {}
        )
        result = {
            "schema": 1,
            "status": "complete",
            "benchmark": benchmark,
            "scenario": "cil",
            "n_tasks": n_tasks,
            "method": method,
            "seed": seed,
            "order_seed": seed,
            "metrics": {"acc": acc, "aaa": aaa},
            "protocol": {
                "shared": shared,
                "shared_hash": json.dumps(shared),
                "recipe": recipe,
                "recipe_hash": json.dumps(recipe),
            },
        } | fields
        folder = tmp_path / "runs" / f"{benchmark}-{n_tasks}-{method}-s{seed}-{len(list(tmp_path.glob('runs/*')))}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


@pytest.fixture
def grid(write_run: Callable[..., Path], tmp_path: Path) -> Path:
    """Three seeds of three rivals and both bounds; fmlora's second task count is not done yet."""
    for seed in range(3):
        for method, acc in (("fmlora", 80.0), ("lora", 70.0), ("finetune", 40.0), ("frozen", 60.0)):
            write_run(method, seed, acc + seed, acc + 5)
            if method != "fmlora":
                write_run(method, seed, acc - 10 + seed, acc, n_tasks=10)
        write_run("joint", seed, 90.0 + seed, None)
    return tmp_path


@pytest.fixture(scope="session")
def rich_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as they are written, for every figure: methods and bounds, two task counts, two benchmarks, two m."""
    folder = tmp_path_factory.mktemp("rich")
    for seed in range(2):
        for n_tasks in (3, 5):
            for method, level in (("lora", 50), ("inflora", 60), ("frozen", 30), ("joint", 80)):
                write_whole(folder, method, seed, level, benchmark="icons", n_tasks=n_tasks)
            for m in (0, 10):
                write_whole(
                    folder, "fmlora", seed, 65 + m, benchmark="icons", n_tasks=n_tasks, method={"prompt_tokens": m}
                )
        write_whole(folder, "lora", seed, 50, benchmark="cifar100", n_tasks=3)
    return folder
