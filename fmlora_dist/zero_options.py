"""DeepSpeed's JSON files: found by name, held against the run's config, their 'auto' values filled from it.

The run's config is the only place of batch sizes, precision, clipping, optimizer and schedule. A file may leave them
out, say 'auto', or repeat what the run says; a file that says something else is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmlora_dist.errors import UserError, nearest

__all__ = ["check_options", "deepspeed_names", "fill_options", "load_options", "stage"]

_SHIPPED = Path(__file__).resolve().parents[1] / "cluster" / "deepspeed"

_NUMBERS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
_ARITHMETIC = ("torch_autocast", "bf16", "fp16")
_THE_RUNS = {"optimizer": "train.optimizer", "scheduler": "train.schedule"}
_FREE = (
    *("zero_optimization", "communication_data_type", "prescale_gradients", "gradient_predivide_factor"),
    *("zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown", "comms_logger", "flops_profiler"),
    *("memory_breakdown", "log_level"),
)
"""Keys of a file that the run's config says nothing about."""


def deepspeed_names() -> list[str]:
    """The DeepSpeed configs that come with the package."""
    return sorted(file.stem for file in _SHIPPED.glob("*.json"))


def load_options(name_or_path: str) -> dict[str, Any]:
    """The DeepSpeed config of that file, or that comes with the package under that name; 'auto' values as they are.

    Raises:
        UserError: no such config (with the nearest name), or a file that is none.
    """
    path = Path(name_or_path)
    shipped = path.suffix != ".json"
    if shipped:
        names = deepspeed_names()
        if name_or_path not in names:
            raise UserError(f"deepspeed: unknown '{name_or_path}': {nearest(name_or_path, names)} or give a JSON file")
        path = _SHIPPED / f"{name_or_path}.json"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed: cannot read {path}: {error.strerror}; give an existing JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"deepspeed: {path} is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"deepspeed: {path} holds a {type(options).__name__}, expected keys and values")
    if not shipped:
        _check_keys(options)
    return options


def stage(options: Mapping[str, Any]) -> int:
    """ZeRO's stage: 0 copies all to every process, 1 cuts the optimizer's state, 2 gradients too, 3 weights too."""
    return int(options.get("zero_optimization", {}).get("stage", 0))


def check_options(name_or_path: str, *, batch_size: int, train: Any, method: str, family: str) -> None:
    """Hold the config of that name against a run: its global batch size, its ``TrainConfig``, its method.

    Raises:
        UserError: as ``load_options``; a key that contradicts the run; a stage that cannot serve the method.
    """
    options = load_options(name_or_path)
    for key, field in _THE_RUNS.items():
        if key in options:
            raise UserError(f"deepspeed: {name_or_path} sets {key}, which is the run's; remove it and use --{field}")
    expected: dict[str, tuple[Any, str]] = {
        "train_batch_size": (batch_size, "batch_size"),
        "train_micro_batch_size_per_gpu": ("auto", "train.accumulation"),
        "gradient_accumulation_steps": (train.accumulation, "train.accumulation"),
        "gradient_clipping": (train.clip, "train.clip"),
    }
    for key, (value, field) in expected.items():
        _check(name_or_path, key, options.get(key, "auto"), value, field)
    bf16 = {"bf16": True, "fp32": False}.get(train.precision, "auto")
    for key, value in (("torch_autocast", bf16), ("bf16", False), ("fp16", False)):
        _check(name_or_path, f"{key}.enabled", options.get(key, {}).get("enabled", "auto"), value, "train.precision")
    if stage(options) == 3 and family != "full":
        raise UserError(
            f"deepspeed: {name_or_path} is ZeRO-3, which cuts every weight apart and serves methods that train all "
            f"of them (finetune), found method '{method}'; choose zero0, zero1 or zero2"
        )


def fill_options(options: Mapping[str, Any], *, micro_batch: int, accumulation: int, clip: float, bf16: bool) -> Any:
    """A checked config with the run's values in place of 'auto' ones, for ``deepspeed.initialize``.

    ``micro_batch`` is the largest one of a process: a batch need not divide evenly, and its size is nothing that
    DeepSpeed reckons with (each loss comes with its weight).
    """
    kept = {key: value for key, value in options.items() if key not in (*_NUMBERS, *_ARITHMETIC)}
    if "zero_optimization" in kept:  # DeepSpeed has defaults there, and knows no 'auto'
        kept["zero_optimization"] = {key: value for key, value in kept["zero_optimization"].items() if value != "auto"}
    autocast = {**options.get("torch_autocast", {"dtype": "bfloat16"}), "enabled": bf16}
    return {
        "steps_per_print": 10**9,
        **kept,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "torch_autocast": autocast,
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a micro-batch
    }


def _check(name: str, key: str, found: Any, expected: Any, field: str) -> None:
    if found not in ("auto", expected):
        raise UserError(
            f"deepspeed: {name} has {key} {found!r}, expected {expected!r} or 'auto'; the run's --{field} decides"
        )


def _check_keys(options: Mapping[str, Any]) -> None:
    known = (*_NUMBERS, *_ARITHMETIC, *_THE_RUNS, *_FREE)
    for key in options:
        if key not in known:
            raise UserError(f"deepspeed: unknown key '{key}': {nearest(key, known)}")
    for key in (*_ARITHMETIC, "zero_optimization"):
        if not isinstance(options.get(key, {}), dict):
            raise UserError(f"deepspeed: {key}: found {options[key]!r}, expected keys and values")
    zero, dtype = options.get("zero_optimization", {}), options.get("torch_autocast", {}).get("dtype", "bfloat16")
    if dtype != "bfloat16":
        raise UserError(f"deepspeed: torch_autocast.dtype: found {dtype!r}, expected 'bfloat16'; remove it")
    if zero.get("stage") == "auto":
        raise UserError("deepspeed: zero_optimization.stage: found 'auto', expected 0, 1, 2 or 3")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        cut = DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if value != "auto"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = tuple(field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items())
            raise UserError(f"deepspeed: unknown key 'zero_optimization.{where}': {nearest(where, known)}") from error
        raise UserError(f"deepspeed: zero_optimization.{where}: {first['msg']}, found {first['input']!r}") from error
    for key, offload in (("offload_param", cut.offload_param), ("offload_optimizer", cut.offload_optimizer)):
        if offload and offload.device != "none":
            raise UserError(f"deepspeed: zero_optimization.{key} wants an optimizer of DeepSpeed's own; remove it")
    try:
        DeepSpeedConfig(fill_options(options, micro_batch=1, accumulation=1, clip=0.0, bf16=False))
    except Exception as error:  # each part of it has errors of its own
        raise UserError(f"deepspeed: DeepSpeed does not take the file: {error}") from error
