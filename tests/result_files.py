"""result.json files as runs write them, without the runs."""

import json
import random
from pathlib import Path
from typing import Any

from fmlora_dist.config import make_config
from fmlora_dist.metrics import summarize

BACKBONE = "vit_base_patch16_224.augreg2_in21k_ft_in1k"


def whole_result(
    method: str, seed: int, level: float, /, *, benchmark: str = "imagenet_r", n_tasks: int = 10, **settings: Any
) -> dict[str, Any]:
    """All that a run writes, at its usual size, with accuracies around ``level``."""
    draw = random.Random(f"{benchmark} {n_tasks} {method} {seed} {level}")
    config = make_config(
        {"benchmark": benchmark, "tasks": n_tasks, "seed": seed, "data_root": "s", **settings}
        | {"method": {"name": method, **settings.get("method", {})}}
    )
    joint = method == "joint"
    rows = [
        [level + 10 - t / 2 + draw.gauss(0, 2) for _ in range(t)] for t in range(n_tasks if joint else 1, n_tasks + 1)
    ]
    recipe = {
        "method": config.method.model_dump(mode="json"),
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "train": config.train.model_dump(mode="json", exclude={"accumulation"}),
        "flip": True,
    }
    shared = {
        "benchmark": benchmark,
        "split": f"{hash_of(benchmark)}" * 4,
        "tested_on": "test",
        "train_images": 24000,
        "test_images": 6000,
        "scenario": config.scenario,
        "order_rule": "numpy",
        "n_tasks": n_tasks,
        "backbone": BACKBONE,
        "weights": "850a87498ce4fc94edf219165fde525e4388fae3e835b26fc1faabe3a747056f",
        "image_size": 224,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "test_transform": "shorter side to 256 (bicubic), centre crop 224",
        "metrics": "acc: mean over tasks; aaa: mean over t of the mean of row t",
    }
    sizes = [draw.randint(200, 900) for _ in range(n_tasks)]
    return {
        "schema": 1,
        "status": "complete",
        "benchmark": benchmark,
        "scenario": config.scenario,
        "n_tasks": n_tasks,
        "method": method,
        "seed": seed,
        "order_seed": seed,
        "world_size": 1,
        "global_batch_size": config.batch_size,
        "threads": 1,
        "accuracy_matrix": rows,
        "test_sizes": sizes,
        "metrics": summarize(rows, sizes),
        "parameters": {"trainable": [77192] * len(rows), "stored": [80272 + 1544 * t for t in range(len(rows))]},
        "ranks": [16] * len(rows) if method == "fmlora" else [],
        "complexity": [draw.random() for _ in rows] if method == "fmlora" else [],
        "drift": [draw.random() for _ in rows],
        "weight_change": [draw.random() for _ in rows],
        "steps": [90] * len(rows),
        "train_seconds": [draw.random() + 1 for _ in rows],
        "peak_memory_bytes": draw.randint(2**29, 2**30),
        "seconds": {"start": 0.3, "data": 1.6, "train": 75 + draw.random(), "eval": 9.9, "total": 109.6},
        "protocol": {
            "shared": shared,
            "shared_hash": hash_of(shared),
            "recipe": recipe,
            "recipe_hash": hash_of(recipe),
            "timm": "1.0.20",
        },
        "protocol_hash": f"{hash_of(shared)}-{hash_of(recipe)}",
        "config": config.plain(),
        "versions": {"fmlora_dist": "0", "python": "3.12", "torch": "2.8"},
        "git": "0" * 40,
    }


def write_whole(folder: Path, *arguments: Any, **options: Any) -> Path:
    """The folder of a run below ``folder`` with its ``whole_result``."""
    result = whole_result(*arguments, **options)
    key = hash_of(result["config"])[:10]
    run = folder / f"{result['benchmark']}-{result['n_tasks']}-{result['method']}-s{result['seed']}-{key}"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return run


def hash_of(value: Any) -> str:
    """16 hexadecimal digits."""
    return f"{random.Random(json.dumps(value, sort_keys=True)).getrandbits(64):016x}"
