"""`fmlora profile run`: where the time of a finished run went, and its training's beside the floor's."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fmlora_dist.config import RunConfig
from fmlora_dist.errors import UserError
from fmlora_dist.profile.bounds import Bound, as_json, bound_table
from fmlora_dist.profile.subjects import Floor, Setup
from fmlora_dist.record import RunDirectory, load_result
from fmlora_dist.registry import get_method

__all__ = ["micro_batch", "profile_run"]

PARTS = {
    "import": "imports of torch, timm and this package",
    "start": "data's index and its check, backbone, adapters, an earlier checkpoint",
    "begin_task": "passes and throw-away steps before a task, new factors, merging",
    "data": "waiting for batches that are not there yet",
    "train": "gradient steps, augmentation with them",
    "end_task": "passes after a task, memories, merging",
    "eval": "tests on merged weights, and the drift of features",
    "checkpoint": "one after each epoch and each task",
    "other": "optimizers, events, the checks between epochs, the result",
}


def profile_run(folder: Path, console: Console, *, rounds: int) -> dict[str, Any]:
    """Print the parts of the run's time, and measure the floor here and now with the run's config.

    Returns:
        ``seconds`` of the parts, ``steps``, ``floor`` (median seconds of a step), ``train_over_floor`` (seconds of
        training over steps times floor; None for a run that has no steps), ``bounds``.

    Raises:
        UserError: the folder holds no complete run, or one of an earlier version that did not count its steps.
    """
    config = RunDirectory(folder).config()
    try:
        result = load_result(folder / "result.json")
    except ValueError as error:
        raise UserError(f"{folder}: result.json {error}; finish the run with --resume first") from error
    if "steps" not in result:
        raise UserError(f"{folder}: result.json counts no steps, so an earlier version trained it; train it again")
    seconds, steps = dict(result["seconds"]), sum(result["steps"])
    figures: dict[str, Any] = {"seconds": seconds, "steps": steps, "floor": None, "train_over_floor": None}
    bounds = []
    if steps:
        with console.status("the floor"):
            figures["floor"] = _floor(config, result["world_size"], rounds)
        figures["train_over_floor"] = seconds["train"] / (steps * figures["floor"])
        if get_method(config.method.name).info.family == "low-rank":
            name = "train seconds over steps times floor"
            bounds = [Bound(name=name, found=figures["train_over_floor"], most=1.15)]
    figures["bounds"] = as_json(bounds)
    _print(folder, figures, bounds, config, console)
    return figures


def micro_batch(config: RunConfig, world_size: int) -> int:
    """Images that one of the run's processes took at once."""
    assert config.batch_size is not None
    return math.ceil(config.batch_size / (world_size * config.train.accumulation))


def _floor(config: RunConfig, world_size: int, rounds: int) -> float:
    """Median seconds of the frozen backbone's forward and backward on what one process did of a step of the run."""
    floor = Floor(replace(Setup.of_run(config), batch_size=micro_batch(config, world_size)))
    floor.step()
    return config.train.accumulation * statistics.median(floor.step() for _ in range(rounds))


def _print(folder: Path, figures: dict[str, Any], bounds: list[Bound], config: RunConfig, console: Console) -> None:
    seconds = figures["seconds"]
    table = Table(title=f"{config.benchmark}, {config.method.name}, {config.tasks} tasks, {figures['steps']} steps")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    table.add_column("what it is")
    for name, value in sorted(seconds.items(), key=lambda item: (item[0] == "total", -item[1])):
        share = 100 * value / seconds["total"] if seconds["total"] else 0.0
        table.add_row(name, f"{value:.2f}", f"{share:.1f} %", PARTS.get(name, ""), end_section=False)
    console.print(table)
    if figures["floor"]:
        console.print(
            f"a step: {1000 * seconds['train'] / figures['steps']:.1f} ms, {figures['train_over_floor']:.3f} times the"
            f" floor's {1000 * figures['floor']:.1f} ms (frozen backbone, forward and backward, here and now)"
        )
        console.print("(only as good as both were measured on the same idle machine)")
    if bounds:
        console.print(bound_table(bounds, title="what must hold"))
