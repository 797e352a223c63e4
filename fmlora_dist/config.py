"""One typed, validated description of a run, which YAML, the command line and grids fill alike."""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from fmlora_dist.distributed import default_threads
from fmlora_dist.errors import UserError, nearest
from fmlora_dist.method import MethodConfig
from fmlora_dist.registry import get_benchmark, get_method
from fmlora_dist.vit.backbone import BackboneConfig
from fmlora_dist.zero_options import check_options

__all__ = [
    "SEQUENCE",
    "RunConfig",
    "TrainConfig",
    "add_run_arguments",
    "add_sequence_arguments",
    "explain",
    "make_config",
    "merge",
    "parse_bytes",
    "parse_config",
    "read_yaml",
]

SEQUENCE = (
    *("benchmark", "data_root", "scenario", "tasks"),
    *("class_order", "first_task", "domain_order", "exclude_domains", "dil_head"),
)
"""Fields of a run that say what its tasks are, the seed of the class order apart."""

_MODEL = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class TrainConfig(BaseModel):
    """The training recipe, the same for every method of a table unless its paper demands another."""

    model_config = _MODEL

    lr: float | None = Field(None, gt=0)
    """Base learning rate; empty: the method's own default."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer; sgd has momentum 0.9."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of everything that trains."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the steps of a task: to zero along a cosine, or constant."""
    clip: float = Field(0.0, ge=0)
    """Largest norm of the gradient; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward; auto: bf16 on a GPU, fp32 on a CPU."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches of a step, to fit a batch into memory: the batch and, to rounding, the losses stay the same."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Part of the training data that is held out and tested on instead of the test data (for tuning)."""


class RunConfig(BaseModel):
    """One run: a method on a sequence of tasks."""

    model_config = _MODEL

    benchmark: str = "icons"
    """Registered name of the benchmark."""
    scenario: Literal["cil", "dil"] = "cil"
    """Class-incremental, or domain-incremental."""
    tasks: int | None = Field(None, ge=1)
    """Number of tasks N; empty: the benchmark's usual one (the number of domains when domain-incremental)."""
    seed: int = Field(0, ge=0)
    """Seed of initialisation and batches."""
    order_seed: int | None = Field(None, ge=0)
    """Seed of the class order; empty: that of the run."""
    class_order: str = "numpy"
    """Rule of the class order: numpy, sorted, python, list or file:PATH (a class a line)."""
    first_task: int | None = Field(None, ge=1)
    """Number of classes of task 1, the others sharing the rest evenly; empty: as many as in every other task."""
    domain_order: tuple[str, ...] = ()
    """Domains in the order of the tasks when domain-incremental; empty: alphabetical."""
    exclude_domains: tuple[str, ...] = ()
    """Domains whose images are left out."""
    dil_head: Literal["shared", "per_domain"] = "shared"
    """Domain-incremental: one head for all domains, or one for each, a prediction being right when its class is."""
    epochs: int | None = Field(None, ge=1)
    """Passes over each task's training data; empty: the benchmark's default."""
    batch_size: int | None = Field(None, ge=1)
    """Global batch size, over all processes; empty: the benchmark's default."""
    data_root: str = ""
    """Folder of the benchmark's shards, or its URL (s3://, https://, …); empty: the embedded one, if there is any."""
    transform: str = ""
    """Name of one of the benchmark's transforms (of crops, test resize …); empty: its first."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    deepspeed: str = "zero0"
    """DeepSpeed's config in several processes: zero0 (plain data parallel), zero1, zero2, zero3, or a JSON file."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of each process; empty: all cores, shared out over the processes."""
    workers: int = Field(2, ge=0)
    """Threads that read, decode and crop images."""
    cache_budget: str = "8GiB"
    """Memory of each process for decoded images, as 512MiB, 8GiB or 0: those of a task stay there when they fit."""
    cache_dir: str = ""
    """Folder that keeps what was read of shards behind a URL; empty: nothing is kept."""
    backbone: BackboneConfig = BackboneConfig()
    """The frozen transformer."""
    train: TrainConfig = TrainConfig()
    """The training recipe."""
    method: MethodConfig = MethodConfig()
    """The method and its hyperparameters."""

    @field_validator("cache_budget", mode="before")
    @classmethod
    def _check_budget(cls, value: Any) -> str:
        parse_bytes(str(value))
        return str(value)

    @property
    def cache_bytes(self) -> int:
        """``cache_budget`` in bytes."""
        return parse_bytes(self.cache_budget)

    def plain(self) -> dict[str, Any]:
        """As nested plain values, for YAML and JSON."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def identity(self) -> dict[str, Any]:
        """All that can change a number of the run beyond the order of a sum: not where it runs, how it fits in there,
        nor where its data lie."""
        ignored = {"device", "deepspeed", "workers", "cache_budget", "cache_dir", "data_root"}
        facts = {name: value for name, value in self.plain().items() if name not in ignored}
        del facts["train"]["accumulation"]
        return facts

    def key(self) -> str:
        """Hash of ``identity``."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """The complete config of nested plain values: defaults of benchmark and method are filled in.

    ``method`` may be a name or a mapping with ``name``.

    Raises:
        UserError: an unknown name or field (with the nearest one), or a value out of range.
    """
    values = dict(values)
    values["method"] = _method_of(values)
    model = _model_for(values["method"]["name"])
    spec = get_benchmark(str(values.get("benchmark", RunConfig.model_fields["benchmark"].default)))
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, model)) from error
    tasks = config.tasks
    if tasks is None and config.scenario == "dil":
        domains = spec.load(config.data_root).domains
        tasks = len(set(domains) - set(config.exclude_domains))
    spec.transform(config.transform)  # refuses an unknown name
    normalisation = config.backbone.normalisation or spec.normalisation
    filled: dict[str, Any] = {
        "transform": config.transform or next(iter(spec.transforms)),
        "backbone": config.backbone.model_copy(update={"normalisation": normalisation}),
        "tasks": tasks or spec.usual_tasks,
        "order_seed": config.seed if config.order_seed is None else config.order_seed,
        "epochs": config.epochs or spec.epochs,
        "batch_size": config.batch_size or spec.batch_size,
        "threads": config.threads or default_threads(),
    }
    info = get_method(config.method.name).info
    if config.train.lr is None:
        filled["train"] = config.train.model_copy(update={"lr": info.lr})
    if config.train.accumulation > filled["batch_size"]:
        raise UserError(
            f"train.accumulation: found {config.train.accumulation}, expected at most the {filled['batch_size']} "
            "images of a batch; choose fewer micro-batches"
        )
    if config.train.accumulation > 1 and config.method.whole_batch:
        raise UserError(
            f"train.accumulation: found {config.train.accumulation}, expected 1: with these options the loss of "
            f"{config.method.name} hangs on all images of the batch together"
        )
    check_options(
        config.deepspeed,
        batch_size=filled["batch_size"],
        train=config.train,
        method=config.method.name,
        family=info.family,
    )
    return config.model_copy(update=filled)


def parse_bytes(text: str) -> int:
    """512MiB -> 536870912; a bare number counts bytes. Raises ``ValueError``."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?) ?(|[KMGT]iB)", text.strip())
    if not found:
        raise ValueError(f"found '{text}', expected a number with KiB, MiB, GiB or TiB; write for example 8GiB")
    return int(float(found[1]) * 1024 ** ("", "KiB", "MiB", "GiB", "TiB").index(found[2]))


def read_yaml(path: Path, what: str = "config") -> dict[str, Any]:
    """A YAML file of a mapping. Raises ``UserError`` when it is missing or is none, and says ``what`` it should be."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what}: cannot read {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # no text, or a date that there is not
        raise UserError(f"{what}: {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{what}: {path} holds a {type(values).__name__}, expected fields and values")
    return values


def _method_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The ``method`` of nested values as a mapping with a name."""
    method = values.get("method", {})
    if isinstance(method, str):
        return {"name": method}
    if not isinstance(method, Mapping) or not isinstance(method.get("name", ""), str):
        raise UserError(f"method: found {method!r}, expected a name, or a mapping with one, like {{name: fmlora}}")
    return {"name": "fmlora", **method}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What a run needs beside its config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of fields; flags override it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/<name of the run>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or start it")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # set by the deepspeed launcher


def add_sequence_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a run that say what its tasks are, its benchmark apart."""
    for name in (*SEQUENCE[1:], "seed", "order_seed"):
        field = RunConfig.model_fields[name]
        parser.add_argument(
            *dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]),
            dest=name,
            metavar=name.upper(),
            type=(lambda text: text.split(",")) if get_origin(field.annotation) is tuple else str,
            default=argparse.SUPPRESS,
            help=field.description,
        )


def parse_config(argv: Sequence[str], *, prog: str) -> tuple[RunConfig, argparse.Namespace]:
    """The config of a command line, with ``--config`` below its flags, and the arguments beside it.

    Dashes and underscores are the same in a flag, ``--method NAME`` is short for ``--method.name NAME``.
    """
    argv = [_spelling(word) for word in argv]
    beside = _Parser(add_help=False, allow_abbrev=False)
    add_run_arguments(beside)
    arguments, rest = beside.parse_known_args(argv)
    values = read_yaml(arguments.config) if arguments.config else {}
    peek = _Parser(add_help=False, allow_abbrev=False)
    peek.add_argument("--method.name", dest="name")
    values["method"] = _method_of(values)
    name = peek.parse_known_args(rest)[0].name
    if name is not None and name != values["method"]["name"]:
        values["method"] = {"name": name}  # another method's fields would only be unknown ones
    model = _model_for(values["method"]["name"])
    flags = _parse_flags(_commas_to_json(rest, model), model, _Parser(prog=prog, parents=[beside], allow_abbrev=False))
    told = merge(values, flags)
    there = arguments.out / "config.yaml" if arguments.out else None
    if arguments.resume and there and there.is_file():
        # Under another number of processes each would have another number of threads, which is another run.
        told.setdefault("threads", read_yaml(there).get("threads"))
    return make_config(told), arguments


def _spelling(word: str) -> str:
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    flag = "--" + flag[2:].replace("-", "_")
    return ("--method.name" if flag == "--method" else flag) + equals + value


def _commas_to_json(argv: Sequence[str], model: type[BaseModel]) -> list[str]:
    """2,4 -> ["2", "4"] behind the flags of lists: not every release of pydantic-settings splits tuples at commas."""
    fields = dict(model.model_fields)
    for group, owner in model.model_fields.items():
        inner = getattr(owner.annotation, "model_fields", {})
        fields |= {f"{group}.{name}": field for name, field in inner.items()}
    lists = {f"--{name}" for name, field in fields.items() if get_origin(field.annotation) is tuple}
    words: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag in lists and equals:
            words += [flag, value]
        else:
            words.append(word)
        if len(words) > 1 and words[-2] in lists and words[-1][:1] not in ("[", "-"):
            words[-1] = json.dumps(words[-1].split(","))
    return words


def _parse_flags(argv: Sequence[str], model: type[RunConfig], parser: argparse.ArgumentParser) -> dict[str, Any]:
    settings = type("Settings", (model, BaseSettings), {})
    options: dict[str, Any] = {"cli_enforce_required": False, "cli_avoid_json": True, "cli_hide_none_type": True}
    options |= {"cli_implicit_flags": False, "cli_kebab_case": False, "root_parser": parser}
    parser.description = "Train one method on one sequence of tasks; fields of the method follow --method NAME."
    try:
        return CliSettingsSource(settings, cli_parse_args=list(argv), **options)()
    except SettingsError as error:
        raise UserError(f"{error}; found no valid JSON") from error
    except UserError as error:
        flag = next((word for word in str(error).split() if word.startswith("--")), "")
        if "unrecognized" not in str(error) or not flag:
            raise
        known = [known for known in parser._option_string_actions if known.startswith("--")]
        raise UserError(f"unknown field '{flag}': {nearest(flag, known)}") from error


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of ``above`` over them."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _model_for(method: str) -> type[RunConfig]:
    """RunConfig whose ``method`` has the fields of that method."""
    return _model_with(get_method(method).Config, method)


@cache  # a grid has hundreds of runs of a few methods, and a model takes 20 ms to make
def _model_with(config: type[MethodConfig], method: str) -> type[RunConfig]:
    literal: Any = Literal
    name = Field(method, description=config.model_fields["name"].description)
    named = create_model(config.__name__, __base__=config, name=(literal[method], name))
    named.__doc__ = config.__doc__
    default = named()
    return create_model("RunConfig", __base__=RunConfig, method=(named, Field(default, description=config.__doc__)))


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong with the values of a model, as one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":  # of a check over several fields, which says what it found
        return f"{where}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"has no field '{where}'"
    if first["type"] == "extra_forbidden":
        owner = model
        for part in first["loc"][:-1]:
            field = owner.model_fields.get(part) if isinstance(part, str) else None
            owner = _model_in(field.annotation) if field else owner  # else the number of an item, or a mapping's key
        return f"unknown field '{where}': {nearest(str(first['loc'][-1]), owner.model_fields)}"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"


def _model_in(annotation: Any) -> Any:
    """The model of a field, or of the items of its list or mapping."""
    models = (part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, BaseModel))
    return next(models, annotation)
