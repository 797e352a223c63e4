"""Runs that are watched: which images each step sees, with which loss, and what engines leave behind.

As a script (under the deepspeed launcher): ``observing.py FOLDER DATA METHOD …`` runs the methods one after another in
the launcher's processes, each into ``FOLDER/METHOD``, and writes ``FOLDER/METHOD-RANK.json``.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.stream import Batch
from fmlora_dist.config import parse_config
from fmlora_dist.data import RunData
from fmlora_dist.distributed import World
from fmlora_dist.engine import Engine
from fmlora_dist.record import RunDirectory
from fmlora_dist.run import Run
from tiny_benchmark import tiny_arguments


def watched_arguments(data: Path, method: str, **fields: object) -> list[str]:
    """Four tasks of three classes in batches of 7, which two processes cannot share evenly."""
    return tiny_arguments(data, **({"method": method, "tasks": 4, "batch_size": 7} | fields))


class _Stopped(Exception):
    pass


def forget() -> None:
    """Leave out what exists by now where engines or garbage are looked for, which is slow with DeepSpeed imported."""
    gc.collect()
    gc.freeze()


def observe(out: Path, data: Path, method: str, *, stop_after: int | None = None, **fields: object) -> dict[str, Any]:
    """Run a method, or go on with it, and give what this process saw; it is left unfinished after that many steps."""
    config, _ = parse_config(watched_arguments(data, method, **fields), prog="fmlora run")
    world = World(config.device, config.threads)
    run, record = Run(config, world), RunDirectory(out)
    if world.main:
        record.open(config)
    seen: dict[str, Any] = {"positions": [], "pixels": [], "losses": [], "hooks": [], "engines": []}
    step, close, augmented = Engine.step, Engine.close, RunData.augmented

    def watched_step(self: Engine, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        if len(seen["losses"]) == stop_after:
            self.close()
            raise _Stopped
        loss = step(self, images, labels, weight)
        seen["losses"].append(loss.item())
        return loss

    def watched_augmented(self: RunData, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = augmented(self, batch)
        if batch.weight:
            seen["positions"].append(batch.positions.tolist())
            seen["pixels"].append(images.flatten(1).double().sum(dim=1).tolist())
        return images, labels

    def watched_close(self: Engine) -> None:
        close(self)
        gc.collect()
        seen["hooks"].append(count_hooks(run.method))
        seen["engines"].append(count_engines())

    Engine.step, Engine.close = watched_step, watched_close  # type: ignore[method-assign]
    RunData.augmented = watched_augmented  # type: ignore[method-assign]
    try:
        run.go(record)
    except _Stopped:
        pass
    finally:
        Engine.step, Engine.close = step, close  # type: ignore[method-assign]
        RunData.augmented = augmented  # type: ignore[method-assign]
        record.close()
    return seen | {"diagnostics": run.position.diagnostics, "backend": _backend()}


def count_engines() -> int:
    """Number of DeepSpeed engines that are alive in this process."""
    return sum(type(thing).__name__ == "DeepSpeedEngine" for thing in gc.get_objects())


def count_hooks(module: torch.nn.Module) -> int:
    """Number of hooks on a module, on those in it, and on their parameters."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    modules = sum(len(getattr(each, table)) for each in module.modules() for table in tables)
    tables = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return modules + sum(len(getattr(each, table) or ()) for each in module.parameters() for table in tables)


def _backend() -> str:
    distributed = torch.distributed
    return str(distributed.get_backend()) if distributed.is_initialized() else ""


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    for name in words[2:]:
        forget()
        facts = observe(Path(words[0]) / name, Path(words[1]), name)
        (Path(words[0]) / f"{name}-{World('cpu', 1).rank}.json").write_text(json.dumps(facts))
    World("cpu", 1).close()
