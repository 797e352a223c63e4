"""The run directory: the only record of a run. Everything is written whole or not at all.

config.yaml              the complete config (a run directory can be run again)
events.jsonl             what happened, a JSON object a line, appended
checkpoint.safetensors   tensors; its metadata holds the position in the run as JSON
result.json              schema 1, written when the run is complete
"""

import fcntl
import itertools
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmlora_dist import __version__
from fmlora_dist.config import RunConfig, make_config, read_yaml
from fmlora_dist.errors import InUseError, UserError

__all__ = ["SCHEMA", "Position", "RunDirectory", "build_result", "load_result", "write_atomically"]

SCHEMA = 1
_FIELDS = {"benchmark": str, "method": str, "n_tasks": int, "seed": int, "metrics": dict}
"""Without these no run is complete."""


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place, once it is safely on the disk, if nothing fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


class RunDirectory:
    """A run's folder, held by one process at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self.events_file = folder / "events.jsonl"
        self.checkpoint_file = folder / "checkpoint.safetensors"
        self.result_file = folder / "result.json"
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self._lock: IO[str] | None = None

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Whether this config may run here.

        Raises:
            UserError: the directory holds a run and ``resume`` is not set, or holds the run of another config.
        """
        if not self.config_file.exists():
            if self.checkpoint_file.exists() or self.complete:
                raise UserError(f"out: {self.folder} holds a run without its config.yaml; choose another --out")
            return
        if not resume:
            raise UserError(
                f"out: {self.folder} already holds a run; go on with it by --resume, or choose another --out"
            )
        there = make_config(read_yaml(self.config_file))
        if there.key() == config.key():
            return
        old, new = _flat(there.identity()), _flat(config.identity())
        name = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
        raise UserError(
            f"out: {self.folder} holds the run of another config ({name} is {old.get(name)} there and "
            f"{new.get(name)} here); choose another --out"
        )

    def open(self, config: RunConfig) -> None:
        """Take the directory for a run.

        The lock is flock's: it dies with its process, and holds between machines where the file system says so (NFS 4,
        and 3 with its lock service; not under the mount options nolock and local_lock).

        Raises:
            InUseError: another process works in it.
            UserError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held until close
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clear()
            if not self.config_file.exists():
                with write_atomically(self.config_file) as path:
                    path.write_text(yaml.safe_dump(config.plain(), sort_keys=False))
        except BlockingIOError as error:
            raise InUseError(f"out: another process is working in {self.folder}; wait for it, or stop it") from error
        except OSError as error:
            raise UserError(f"out: cannot write to {self.folder}: {error.strerror}; choose another --out") from error

    def _clear(self) -> None:
        """Remove what a killed process left half written (safetensors writes by way of ``.tmp…`` files of its own)."""
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob(".tmp*")]:
            path.unlink(missing_ok=True)
        if self.events_file.exists() and not self.events_file.read_bytes().endswith(b"\n"):
            with open(self.events_file, "a") as file:
                file.write("\n")  # or the next event would be lost together with the torn one

    def close(self) -> None:
        """Let go of the directory (the lock also dies with its process)."""
        if self._lock:
            self._lock.close()
            self._lock = None

    @property
    def busy(self) -> bool:
        """Whether a process works in the directory at this moment."""
        try:
            with open(self.folder / ".lock", "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # never opened by a run
        return False

    # -- config and result ----------------------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """The config of the run in this directory."""
        if not self.config_file.is_file():
            raise UserError(f"{self.folder} is no run directory: it has no config.yaml")
        return make_config(read_yaml(self.config_file))

    @property
    def complete(self) -> bool:
        return self.result_file.exists()

    def result(self) -> dict[str, Any] | None:
        """The complete run's result; None where there is none, or none that can be read."""
        try:
            return load_result(self.result_file)
        except ValueError:
            return None

    def set_result_aside(self) -> Path | None:
        """Rename a result that cannot be read, so that the run counts as not complete; gives its new path.

        Raises:
            UserError: it cannot be renamed.
        """
        if not self.complete or self.result():
            return None
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := self.folder / f"result.json.broken-{n}").exists())
        try:
            os.replace(self.result_file, aside)
        except OSError as error:
            raise UserError(
                f"result: {self.result_file} cannot be read, nor renamed ({error.strerror}); move it away"
            ) from error
        return aside

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the result, which makes the run complete. Raises ``UserError`` when it cannot be written."""
        try:
            with write_atomically(self.result_file) as path:
                path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"result: {self.result_file} cannot be written ({error.strerror}); make room and go on with --resume"
            ) from error

    # -- events ---------------------------------------------------------------------------------------------------

    def event(self, kind: str, **facts: Any) -> None:
        """Append one event, and tell the listeners. Raises ``UserError`` when it cannot be written."""
        event = {"time": round(time.time(), 3), "event": kind, **facts}
        try:
            with open(self.events_file, "a") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise UserError(
                f"events: {self.events_file} cannot be written ({error.strerror}); make room and go on with --resume"
            ) from error
        for listener in self.listeners:
            listener(event)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        """Replace the checkpoint. If the disk is full, the earlier one stays good.

        Raises:
            UserError: the file cannot be written.
        """
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            with write_atomically(self.checkpoint_file) as path:
                save_file(plain, path, metadata={"position": json.dumps(position)})
                shutil.copymode(self.config_file, path)  # safetensors lets only the owner read its files
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"checkpoint: {self.checkpoint_file} cannot be written ({error}); the earlier one is kept: "
                "make room and go on with --resume"
            ) from error

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, position) of the last checkpoint, if there is one."""
        if not self.checkpoint_file.exists():
            return None
        try:
            with safe_open(self.checkpoint_file, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                return tensors, json.loads(file.metadata()["position"])
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"checkpoint: {self.checkpoint_file} is damaged ({error}); remove it to start the run anew"
            ) from error


@dataclass
class Position:
    """How far a run is, and what it has measured; JSON in the checkpoint."""

    protocol: str = ""
    """Hash of the shared protocol that the run was started under."""
    precision: str = ""
    """In which the run was started, fp32 or bf16: it goes on so, and is tested so, wherever that is."""
    task: int = 1
    begun: bool = False
    epoch: int = 0
    accuracy_matrix: list[list[float]] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    trainable: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    train_seconds: list[float] = field(default_factory=list)
    diagnostics: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0


def load_result(file: Path) -> dict[str, Any]:
    """A complete run's result.json.

    Raises:
        ValueError: it cannot be read, is of another schema, or of a run that is not complete.
    """
    try:
        result = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSON or UTF-8
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else type(result).__name__
        raise ValueError(f"has schema {found!r}, expected {SCHEMA}")
    if result.get("status") != "complete":
        raise ValueError(f"has status {result.get('status')!r}, expected 'complete'")
    invalid = [name for name, kind in _FIELDS.items() if not isinstance(result.get(name), kind)]
    invalid += [] if invalid or type(result["metrics"].get("acc")) in (int, float) else ["metrics.acc"]
    if invalid:
        raise ValueError(f"has no valid '{invalid[0]}'")
    return result


def build_result(
    config: RunConfig,
    position: Position,
    *,
    metrics: dict[str, Any],
    protocol: dict[str, Any],
    test_sizes: list[int],
    backbone_parameters: int,
    world_size: int,
) -> dict[str, Any]:
    """result.json, schema 1: accuracies in %, tasks from 1. The run adds ``seconds`` last, so that this counts, too."""
    chosen = position.diagnostics
    return {
        "schema": SCHEMA,
        "status": "complete",
        "benchmark": config.benchmark,
        "scenario": config.scenario,
        "n_tasks": config.tasks,
        "method": config.method.name,
        "seed": config.seed,
        "order_seed": config.order_seed,
        "world_size": world_size,
        "global_batch_size": config.batch_size,
        "threads": config.threads,
        "accuracy_matrix": position.accuracy_matrix,
        "test_sizes": test_sizes,
        "metrics": metrics,
        "parameters": {
            "trainable": position.trainable,
            "stored": position.stored,
            "backbone": backbone_parameters,
        },
        "ranks": [figures["rank"] for figures in chosen if "rank" in figures],
        "complexity": [figures["complexity"] for figures in chosen if "complexity" in figures],
        "drift": position.drift,
        "weight_change": [figures["weight_change"] for figures in chosen if "weight_change" in figures],
        "steps": position.steps,
        "train_seconds": [round(value, 3) for value in position.train_seconds],
        "peak_memory_bytes": position.peak_memory,
        "protocol": protocol,
        "protocol_hash": f"{protocol['shared_hash']}-{protocol['recipe_hash']}",
        "config": config.plain(),
        "config_key": config.key(),
        "versions": {
            "fmlora_dist": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "deepspeed", "ray", "webdataset")},
        },
        "git": _git_commit(),
    }


def _git_commit() -> str:
    """The commit of the source tree that runs, with '+' when it was changed; empty outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
