"""A grid file -> its runs: benchmarks x task counts x methods x seeds.

What a run is made of is merged in this order, the later over the earlier: the grid's ``settings``, the benchmark's, the
method's, the method's for that benchmark, its ``sweep``. ``resources`` are merged alike.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fmlora_dist.config import SEQUENCE, RunConfig, explain, make_config, merge, parse_bytes, read_yaml
from fmlora_dist.errors import UserError, nearest
from fmlora_dist.record import RunDirectory
from fmlora_dist.registry import get_benchmark
from fmlora_dist.run import check_tasks

__all__ = ["Axis", "Choice", "Grid", "Override", "PlannedRun", "Resources", "grid_names", "load_grid", "plan_runs"]

_MODEL = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
_WITH_HYPERPARAMETERS = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
_AXES = ("benchmark", "scenario", "tasks", "seed", "method")
"""Fields of a run that the grid itself sets."""


class Resources(BaseModel):
    """What one run needs."""

    model_config = _MODEL

    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """CPU cores, shared out over the run's processes; empty: one for each."""
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """GPUs: a fraction shares one with other runs, more than one make as many processes."""
    memory: str = ""
    """Memory, such as 16GiB. Ray places runs by it and does not enforce it; empty: it is not counted."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """Processes; empty: one for each GPU, or one."""

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, value: str) -> str:
        if value:
            parse_bytes(value)
        return value

    @model_validator(mode="after")
    def _check_gpus(self) -> "Resources":
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: found {self.gpus:g}, expected a whole number, or a part of one GPU")
        if self.gpus and self.n_processes != max(1, self.gpus):
            raise ValueError(
                f"processes: found {self.n_processes} on {self.gpus:g} GPUs, expected one on each; leave processes out"
            )
        return self

    @property
    def n_processes(self) -> int:
        return self.processes or max(1, int(self.gpus))

    def bundle(self) -> dict[str, float]:
        """What one of the run's processes needs, by Ray's names."""
        n = self.n_processes
        needs = {"CPU": 1.0 if self.cpus is None else self.cpus / n, "GPU": self.gpus / n}
        needs["memory"] = float(parse_bytes(self.memory) // n) if self.memory else 0.0
        return {name: value for name, value in needs.items() if value}


class Axis(BaseModel):
    """A benchmark with its task counts."""

    model_config = _MODEL

    benchmark: str
    """Registered name of the benchmark."""
    tasks: Annotated[list[int], Field(min_length=1)] | None = None
    """Numbers of tasks N; empty: the benchmark's usual one."""
    scenario: Literal["cil", "dil"] = "cil"
    """Class-incremental, or domain-incremental."""
    settings: dict[str, Any] = {}
    """Fields of the run config, over the grid's."""
    resources: Resources = Resources()
    """What its runs need, over the grid's."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """Training images as published, so that steps can be counted where the data are not at hand."""


class Override(BaseModel):
    """What a method does otherwise on one benchmark: its hyperparameters, beside these fields."""

    model_config = _WITH_HYPERPARAMETERS

    source: str = Field(min_length=1)
    """Where the figures come from: a paper, a public code, a search."""
    settings: dict[str, Any] = {}
    """Fields of the run config."""
    resources: Resources = Resources()
    """What its runs need."""


class Choice(BaseModel):
    """A method: its name and hyperparameters, beside these fields."""

    model_config = _WITH_HYPERPARAMETERS

    name: str
    """Registered name of the method."""
    source: str = ""
    """Where the figures come from."""
    settings: dict[str, Any] = {}
    """Fields of the run config, over the benchmark's."""
    resources: Resources = Resources()
    """What its runs need, over the benchmark's."""
    benchmarks: dict[str, Override] = {}
    """What is otherwise on one benchmark, by its name."""
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Values by the dotted name of a run's field, such as train.lr or method.rank: a method for each combination."""

    @model_validator(mode="after")
    def _check_names(self) -> "Choice":
        for name in self.model_extra or {}:  # else it would be taken for a hyperparameter that the method does not have
            close = get_close_matches(name, type(self).model_fields, n=1, cutoff=0.8)
            if close:
                raise ValueError(f"unknown field '{name}': did you mean '{close[0]}'?")
        return self


class Grid(BaseModel):
    """A grid file."""

    model_config = _MODEL

    name: str
    """Name of the grid; empty: that of its file."""
    benchmarks: list[Axis] = Field(min_length=1)
    """Benchmarks with their task counts."""
    methods: list[Choice] = Field(min_length=1)
    """Methods, by name or as name, hyperparameters and the fields of a choice."""
    seeds: list[int] = Field(min_length=1)
    """Seeds."""
    settings: dict[str, Any] = {}
    """Fields of the run config, for all runs."""
    resources: Resources = Resources()
    """What one run needs."""

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, methods: Any) -> Any:
        if not isinstance(methods, list):
            return methods
        return [{"name": method} if isinstance(method, str) else method for method in methods]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a grid, and its directory."""

    config: RunConfig
    folder: Path
    resources: Resources
    variant: str
    """The method's name, and what tells it from the grid's other ones of that name."""
    train_images: tuple[int, ...] | None
    """Training images of each task; None where the data are not at hand."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the directory holds a result that can be read, by the rule by which runs set others aside."""
        return RunDirectory(self.folder).result() is not None

    @property
    def steps(self) -> list[int] | None:
        """Training steps of each task; None where the data are not at hand."""
        if self.train_images is None:
            return None
        assert self.config.batch_size is not None and self.config.epochs is not None
        return [math.ceil(images / self.config.batch_size) * self.config.epochs for images in self.train_images]


def grid_names() -> list[str]:
    """The grids that come with the package."""
    return sorted(file.stem for file in _shipped().glob("*.yaml"))


def load_grid(name_or_path: str) -> Grid:
    """The grid of that file, or that comes with the package under that name.

    Raises:
        UserError: no such grid (with the nearest name), or a file that is none: an unknown field, an empty axis.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in grid_names():
            raise UserError(f"unknown grid '{name_or_path}': {nearest(name_or_path, grid_names())} or give a YAML file")
        path = _shipped() / f"{name_or_path}.yaml"
    values = read_yaml(path, "grid")
    try:
        return Grid.model_validate({**values, "name": values.get("name") or path.stem})
    except ValidationError as error:
        raise UserError(f"grid {path.name}: {explain(error, Grid)}") from error


def plan_runs(grid: Grid, out: Path, *, data_root: str = "", check: bool = True) -> list[PlannedRun]:
    """Every run of the grid, validated, with its directory below ``out``.

    Args:
        grid: The grid.
        out: Folder of the results.
        data_root: Folder, or URL, that holds one folder of shards a benchmark.
        check: Refuse runs whose data are missing. If not, these are counted all the same.

    Raises:
        UserError: a config that no run accepts, or the same run twice.
    """
    runs: dict[Path, PlannedRun] = {}
    checked: dict[tuple[Any, ...], tuple[int, ...]] = {}
    _refuse_unread(grid)
    for axis, values, resources, variant in _expand(grid):
        try:
            root = _data_root(data_root, axis.benchmark) or values.get("data_root", "")
            config = make_config({**values, "data_root": root})
            sequence = tuple(getattr(config, name) for name in SEQUENCE)
            if (check or _at_hand(config)) and sequence not in checked:
                checked[sequence] = check_tasks(config)
        except UserError as error:
            raise UserError(f"grid {grid.name}: {error}") from error
        images = checked.get(sequence)
        if images is None and axis.train_images:
            assert config.tasks is not None
            images = (math.ceil(axis.train_images / config.tasks),) * config.tasks
        name = f"{config.benchmark}-{config.tasks}-{config.method.name}-s{config.seed}-{config.key()[:10]}"
        folder = out / "runs" / name
        if folder in runs:
            raise UserError(f"grid {grid.name}: lists the run {name} twice; remove one of the entries")
        runs[folder] = PlannedRun(
            config=config, folder=folder, resources=resources, variant=variant, train_images=images
        )
    return list(runs.values())


def _shipped() -> Path:
    return Path(__file__).parent / "grids"


def _refuse_unread(grid: Grid) -> None:
    """Fields that the grid's axes would overwrite, and overrides for benchmarks that it does not have."""
    choices: list[Choice | Override] = [*grid.methods]
    choices += [override for choice in grid.methods for override in choice.benchmarks.values()]
    for settings in (part.settings for part in (grid, *grid.benchmarks, *choices)):
        name = next((name for name in _AXES if name in settings), None)
        if name:
            raise UserError(
                f"grid {grid.name}: settings.{name} would go unread; list it under benchmarks, methods or seeds"
            )
    known = {axis.benchmark for axis in grid.benchmarks}
    for choice in grid.methods:
        for name in choice.benchmarks.keys() - known:
            raise UserError(
                f"grid {grid.name}: method {choice.name}: the grid has no benchmark '{name}': {nearest(name, known)}"
            )
        for name in choice.sweep:
            axis, _, option = name.partition(".")
            if axis in _AXES and not (axis == "method" and option):
                raise UserError(f"grid {grid.name}: sweep.{name} would go unread; list it under benchmarks or seeds")


def _expand(grid: Grid) -> Iterator[tuple[Axis, dict[str, Any], Resources, str]]:
    """(benchmark, fields of the run, resources, variant) of every run, in the file's order."""
    names = [choice.name for choice in grid.methods]
    for axis, choice in itertools.product(grid.benchmarks, grid.methods):
        override = choice.benchmarks.get(axis.benchmark)
        parts: list[Grid | Axis | Choice | Override] = [grid, axis, choice, *([override] if override else [])]
        settings: dict[str, Any] = {}
        resources: dict[str, Any] = {}
        for part in parts:
            settings = merge(settings, part.settings)
            resources |= part.resources.model_dump(exclude_unset=True)
        needs = _valid(Resources, resources, f"grid {grid.name}: method {choice.name} on {axis.benchmark}: resources")
        # A process has as many threads as it has cores, so that a run does not depend on where it is planned.
        settings.setdefault("threads", max(1, int(needs.bundle()["CPU"])))
        if not needs.gpus:
            settings.setdefault("device", "cpu")  # auto would take a GPU that Ray has given to another run
        own = choice.model_extra or {}
        method = {"name": choice.name, **own, **((override.model_extra or {}) if override else {})}
        told = own if names.count(choice.name) > 1 else {}
        for swept in _combinations(choice.sweep):
            facts = {**told, **{name.removeprefix("method."): value for name, value in swept.items()}}
            variant = " ".join([choice.name, *(f"{name}={value}" for name, value in facts.items())])
            values = merge(settings, {"method": method})
            for name, value in swept.items():
                values = merge(values, _nested(name, value))
            for tasks, seed in itertools.product(axis.tasks or (None,), grid.seeds):
                sequence = {"benchmark": axis.benchmark, "scenario": axis.scenario, "tasks": tasks, "seed": seed}
                yield axis, {**values, **sequence}, needs, variant


def _combinations(sweep: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))


def _nested(name: str, value: Any) -> dict[str, Any]:
    """train.lr, 0.1 -> {train: {lr: 0.1}}"""
    first, dot, rest = name.partition(".")
    return {first: _nested(rest, value) if dot else value}


_M = TypeVar("_M", bound=BaseModel)


def _valid(model: type[_M], values: dict[str, Any], where: str) -> _M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}.{explain(error, model)}") from error


def _data_root(parent: str, benchmark: str) -> str:
    """Where a benchmark's shards lie below ``parent``; '' for the embedded ones, which need no folder there."""
    if not parent:
        return ""
    spec = get_benchmark(benchmark)
    name = spec.cut.of if spec.cut else spec.name
    remote = "://" in parent
    if not remote and not Path(parent).is_dir():
        raise UserError(f"data_root: found no folder {parent}; give the one that holds a folder of shards a benchmark")
    place = f"{parent.rstrip('/')}/{name}" if remote else str(Path(parent, name))
    return "" if spec.embedded and (remote or not Path(place).is_dir()) else place


def _at_hand(config: RunConfig) -> bool:
    return bool(config.data_root or get_benchmark(config.benchmark).embedded)
