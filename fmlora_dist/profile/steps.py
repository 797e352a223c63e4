"""`fmlora profile steps`: what a step costs at task t, beside the frozen backbone's, and evaluation beside timm's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any

import timm
import yaml
from rich.console import Console
from rich.table import Table

from fmlora_dist.config import RunConfig, make_config
from fmlora_dist.distributed import World
from fmlora_dist.engine import Precision
from fmlora_dist.errors import UserError
from fmlora_dist.profile.bounds import Bound, as_json, bound_table
from fmlora_dist.profile.machine import machine
from fmlora_dist.profile.random_task import CLASSES
from fmlora_dist.profile.subjects import Floor, Learner, Setup, Subject, Totals, clock
from fmlora_dist.registry import get_method, list_methods

__all__ = ["DEFAULT_METHODS", "StepsProfile", "profile_steps"]

DEFAULT_METHODS = ("fmlora", "inflora", "lora", "sdlora")
FLAT = ("fmlora", "inflora", "lora")
"""Methods whose step must cost the same at every task."""
FIXED = {"fmlora": {"drs": False}}
"""Fields that keep a method's rank the same in every task."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 15


@dataclass(frozen=True, kw_only=True)
class StepsProfile:
    """What to measure."""

    config: RunConfig
    """Its benchmark, backbone, batch size, precision, optimizer, device and threads are taken."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """Each NAME, or NAME:FIELD=VALUE:… with hyperparameters; ('all',): all that are registered."""
    tasks: int = 20
    """N: the tasks 1, 2 and N are measured."""
    rounds: int | None = None
    """Steps of each method at each task; None: as many as there is patience for, from 3 to 15."""
    patience: float = 45.0
    """Seconds, over all tasks, after which no further round is begun."""
    image_size: int | None = None
    """Pixels; None: what the backbone's tag, or else the benchmark, has."""

    @property
    def measured(self) -> list[int]:
        return sorted({1, min(2, self.tasks), self.tasks})

    def setup(self) -> Setup:
        size, name = self.image_size, self.config.backbone.name
        if name and not size and timm.is_model(name):
            described: Any = timm.get_pretrained_cfg(name)
            size = described.input_size[-1]
        return Setup.of_run(self.config, n_tasks=self.tasks, image_size=size)


def profile_steps(options: StepsProfile, console: Console) -> dict[str, Any]:
    """Measure, print the tables, and give the figures.

    Returns:
        ``rows`` (method, task, seconds_per_step, ratio_to_floor, spread, peak_memory_bytes, trainable, stored),
        ``floor``, ``evaluation``, ``bounds`` (name, found, least or most, met), and what was measured where.

    Raises:
        UserError: an unknown method or backbone, or one that does not suit the other.
    """
    started = time.perf_counter()
    labels = tuple(list_methods()) if options.methods == ("all",) else options.methods
    configs = {label: method_fields(label) for label in labels}
    setup = options.setup()
    measuring = _Measuring(options, configs)
    with ExitStack() as stack, console.status("") as status:
        for label, make, arguments in (
            ("floor", Floor, (setup,)),
            *((label, Learner, (setup, fields)) for label, fields in configs.items()),
        ):
            measuring.subjects[label] = stack.enter_context(closing(Subject(label, make, *arguments)))
        for task in options.measured:
            status.update(f"task {task} of {options.tasks}")
            measuring.measure(task)
        status.update("evaluation")
        evaluation = measuring.evaluate()
        floor_memory = measuring.subjects["floor"].call("peak_memory")
    world = World(setup.device, setup.threads)
    bounds = list(_bounds(measuring, evaluation, setup))
    figures = {
        "rows": measuring.rows,
        "floor": {
            "seconds_per_step": statistics.median(s for by in measuring.seconds.values() for s in by["floor"]),
            "peak_memory_bytes": floor_memory,
        },
        "evaluation": evaluation,
        "bounds": as_json(bounds),
        "setup": {
            "backbone": setup.backbone.model_dump(),
            "image_size": setup.image_size,
            "batch_size": setup.batch_size,
            "classes_per_task": CLASSES,
            "n_tasks": options.tasks,
            "precision": Precision(setup.train.precision, world).name,
            "threads": setup.threads,
            "clock": "process" if clock(world) is time.process_time else "wall",
            "rounds": {str(task): len(by["floor"]) for task, by in measuring.seconds.items()},
        },
        "machine": machine(world, "timm"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _print(figures, bounds, console)
    return figures


def method_fields(label: str) -> dict[str, Any]:
    """The fields of a method by its label, NAME or NAME:FIELD=VALUE:…, of a fixed rank unless it says otherwise.

    Raises:
        UserError: an unknown name or field, or a value out of range.
    """
    name, *settings = label.split(":")
    fields: dict[str, Any] = {"name": name, **FIXED.get(name, {})}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"methods: found '{setting}' in '{label}', expected FIELD=VALUE; see fmlora run --help")
        try:
            fields[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            fields[key] = value
    make_config({"method": fields})
    return fields


@dataclass
class _Measuring:
    """The processes, and what was measured of them so far."""

    options: StepsProfile
    configs: dict[str, dict[str, Any]]
    subjects: dict[str, Subject] = field(default_factory=dict)
    seconds: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    """By task and label, a number for each round."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, task: int) -> None:
        """Steps of the floor and every method at that task, in turn."""
        # What trains on all tasks at once has but one.
        labels = [label for label in self.configs if task == 1 or not get_method(label.split(":")[0]).info.joint]
        for label in labels:  # all at once: nothing is timed yet
            self.subjects[label].ask("begin", task)
        for label in labels:
            self.subjects[label].answer()
        taken: dict[str, list[float]] = {label: [] for label in ("floor", *labels)}
        self.seconds[task] = taken
        for label in taken:
            self.subjects[label].call("step")  # the first one allocates
        ends = time.perf_counter() + self.options.patience / len(self.options.measured)
        while self._another_round(len(taken["floor"]), ends):
            for label, times in taken.items():
                times.append(self.subjects[label].call("step"))
        for label in labels:
            self.subjects[label].ask("end")
        for label in labels:
            totals: Totals = self.subjects[label].answer()
            low, ratio, high = _quartiles(_ratios(taken[label], taken["floor"]))
            row = {"method": label, "task": task, "seconds_per_step": statistics.median(taken[label])}
            self.rows.append(row | {"ratio_to_floor": ratio, "spread": high - low, **asdict(totals)})

    def _another_round(self, done: int, ends: float) -> bool:
        if self.options.rounds:
            return done < self.options.rounds
        return done < LEAST_ROUNDS or (done < MOST_ROUNDS and time.perf_counter() < ends)

    def evaluate(self) -> list[dict[str, Any]]:
        """Images a second of each method after its last task, merged where it can be, and of a plain timm ViT."""
        found = []
        rounds = self.options.rounds or max(len(by["floor"]) for by in self.seconds.values())
        for label in self.configs:
            merged, plain = self.subjects[label].call("evaluate", rounds)
            n = self.options.config.batch_size
            assert n is not None
            found.append(
                {
                    "method": label,
                    "images_per_second": n / statistics.median(merged),
                    "plain_images_per_second": n / statistics.median(plain),
                    "ratio": statistics.median(_ratios(plain, merged)),
                }
            )
        return found

    def ratio(self, label: str, task: int, to: str = "floor") -> float:
        """Median over the rounds of a step's time over another's in the same round."""
        return statistics.median(_ratios(self.seconds[task][label], self.seconds[task][to]))


def _ratios(times: Sequence[float], to: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(times, to, strict=True)]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _bounds(measuring: _Measuring, evaluation: Sequence[dict[str, Any]], setup: Setup) -> Iterator[Bound]:
    """What the project promises of what was measured."""
    last = measuring.options.tasks
    names = {label: fields["name"] for label, fields in measuring.configs.items()}
    for label in (label for label, name in names.items() if name in FLAT and last > 2):
        grown = measuring.ratio(label, last) / measuring.ratio(label, 2)
        yield Bound(name=f"{label}: step at task {last} over task 2", found=grown, least=0.97, most=1.03)
    if "lora" in names:
        for label in (label for label, name in names.items() if name == "sdlora"):
            found = measuring.ratio(label, last, to="lora")
            yield Bound(name=f"{label}: step at task {last} over lora's", found=found, most=1.10)
    if setup.backbone.name.partition(".")[0] == "vit_base_patch16_224" and not setup.backbone.options:
        for label in (label for label, name in names.items() if name in FLAT):
            found = measuring.ratio(label, last)
            yield Bound(name=f"{label}: step at task {last} over the floor", found=found, most=1.10)
    for row in evaluation:
        if get_method(names[row["method"]]).info.family == "low-rank":
            name = f"{row['method']}: images/s merged over a plain timm ViT"
            yield Bound(name=name, found=row["ratio"], least=0.98)


def _print(figures: dict[str, Any], bounds: Sequence[Bound], console: Console) -> None:
    setup, machine = figures["setup"], figures["machine"]
    rounds = "/".join(str(n) for n in setup["rounds"].values())
    title = (
        f"{setup['backbone']['name'] or setup['backbone']['weights']} at {setup['image_size']} pixels, batches of"
        f" {setup['batch_size']}, {setup['precision']}; medians of {rounds} rounds"
    )
    floor = figures["floor"]
    table = Table(
        title=title,
        caption=f"floor (frozen backbone, forward and backward): {1000 * floor['seconds_per_step']:.1f} ms,"
        f" {floor['peak_memory_bytes'] / 2**20:.0f} MiB; spread: between the quartiles of the rounds' ratios",
    )
    for heading in ("method", "task", "ms a step", "over floor", "spread", "peak MiB", "trainable", "stored"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in sorted(figures["rows"], key=lambda row: (row["method"], row["task"])):
        table.add_row(
            row["method"],
            str(row["task"]),
            f"{1000 * row['seconds_per_step']:.1f}",
            f"{row['ratio_to_floor']:.3f}",
            f"{row['spread']:.3f}",
            f"{row['peak_memory_bytes'] / 2**20:.0f}",
            f"{row['trainable']:,}",
            f"{row['stored']:,}",
        )
    console.print(table)
    for row in figures["evaluation"]:
        console.print(
            f"images/s of {row['method']}, merged: {row['images_per_second']:.1f},"
            f" of the plain timm ViT that it is: {row['plain_images_per_second']:.1f}"
        )
    threads = "1 CPU thread, process time" if setup["clock"] == "process" else f"{setup['threads']} CPU threads"
    caption = f"{machine['device']}, {threads}, {machine['cores']} cores, {figures['seconds']:.0f} s"
    console.print(bound_table(bounds, title="what must hold", caption=caption))
