"""The processes of a run: who they are, which device each uses, how they reduce. The only file that names devices."""

import importlib
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError

__all__ = ["World"]

T = TypeVar("T")


class World:
    """This process among those that the launcher (deepspeed, torchrun, a grid) started; alone when none did.

    Launchers set RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR / MASTER_PORT.
    """

    def __init__(self, device: str = "auto", threads: int | None = None):
        """``device`` is 'auto', 'cpu', 'cuda' or 'cuda:N'; ``threads`` per process, all cores shared out if None.

        Raises:
            UserError: a device that does not exist here.
        """
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = _choose_device(device, self.local_rank)
        self.threads = threads or default_threads()
        torch.set_num_threads(self.threads)
        if self.on_gpu:
            # The same config gives the same numbers: no atomics where there is another way.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Or each batch's buffers would be written twice.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        else:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # whatever its name, it holds for CPUs

    @property
    def main(self) -> bool:
        """Whether this process writes the record."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def connect(self) -> None:
        """Join the other processes (DeepSpeed's initialisation, so that its engines share the group)."""
        if self.size == 1 or distributed.is_initialized():
            return
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if self.on_gpu else "cpu")  # read at its import
        import deepspeed

        if not self.on_gpu:
            # It may have been imported before, to read a config, and taken the GPU that it saw.
            from deepspeed.accelerator import cpu_accelerator, get_accelerator, set_accelerator

            if get_accelerator().device_name() != "cpu":
                set_accelerator(cpu_accelerator.CPU_Accelerator())
            # DeepSpeed would compile a shared-memory op here (over a minute, and a C++ compiler); gloo does without.
            # By its full name, since deepspeed.comm's own attribute `torch` is torch itself.
            vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
        backend = "nccl" if self.on_gpu else "gloo"
        deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(minutes=30), verbose=False)

    def close(self) -> None:
        """Leave the group, so that a process can end without the others' complaint."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, as a new tensor (the same one in a single process)."""
        if self.size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes; a missing one counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        distributed.all_reduce(flat)
        flat /= self.size
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))

    def share(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What the main process's ``work`` gives, or the ``UserError`` that it raises, on every process: if one alone
        stopped, the others would wait for it, or complain that it is gone."""
        outcome: T | UserError | None = None
        if self.main:
            try:
                outcome = work()
            except UserError as error:
                outcome = error
        outcome = self.share(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        return cast(T, outcome)

    @contextmanager
    def arithmetic(self, *, bf16: bool) -> Iterator[None]:
        """Forward passes in fp32, or in bf16 by autocast.

        The fused attention for CPUs takes five times as long in bf16, forward and backward, as the one written out.
        """
        written_out = bf16 and not self.on_gpu
        attention = sdpa_kernel(SDPBackend.MATH) if written_out else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), attention:
            yield

    def synchronize(self) -> None:
        """Wait until the device has done what it was given, so that a clock that is read next has seen it."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Most bytes that this process has held at once so far: of the GPU, or of the machine."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device)
        with suppress(OSError):  # getrusage, which every Unix has, also counts what the process was forked from
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return int(found[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def default_threads() -> int:
    """All cores that this process may use, shared out over the processes on this machine."""
    return max(1, local_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))))


def _choose_device(device: str, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"device: unknown '{device}'; expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cpu":
        return torch.device("cpu")
    if not available:
        raise UserError(f"device: '{device}' was asked for, but torch sees no GPU here; use --device cpu or auto")
    index = local_rank % torch.cuda.device_count() if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise UserError(f"device: '{device}' does not exist, torch sees {torch.cuda.device_count()} GPU(s)")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
