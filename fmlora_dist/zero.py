"""DeepSpeed around one task's loss, its optimizer's state told by parameter instead of by process.

What a stage cuts over the processes is brought together and handed out here, so that a checkpoint knows neither the
number of processes nor the stage.
"""

import gc
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

__all__ = ["Zero"]

State = dict[str, Tensor]


class Zero:
    """A DeepSpeed engine that can be closed: nothing of it stays on the parameters, in any stage but 3.

    (Stage 3 rebuilds the module itself; ``Engine`` gives it a copy.)
    """

    def __init__(
        self,
        loss: nn.Module,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        options: Mapping[str, Any],
    ):
        """``parameters`` are those that train; ``options`` a complete DeepSpeed config."""
        import deepspeed

        # DeepSpeed calls by their old names what torch has renamed, several times a step; that is nothing to a user.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        self.stage = int(options.get("zero_optimization", {}).get("stage", 0))
        self._loss, self._parameters, self._optimizer = loss, parameters, optimizer
        self._own = [(parameter, set(vars(parameter))) for parameter in loss.parameters()]
        self._engine, *_ = deepspeed.initialize(
            model=loss, optimizer=optimizer, config=dict(options), dist_init_required=False
        )

    def micro_step(self, *batch: Any) -> Tensor:
        """Forward and backward of a micro-batch, and after the last one of a step the step; gives the loss."""
        loss: Tensor = self._engine(*batch)
        self._engine.backward(loss, scale_wrt_gas=False)  # each loss comes with its weight in the step
        self._engine.step()
        return loss.detach()

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole of a parameter that stage 3 has cut, in fp32. Every process must call this alike."""
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter).view(parameter.ds_shape)  # type: ignore[attr-defined]

    def states(self) -> Iterator[State]:
        """The optimizer's entries of each parameter, whole. Every process must call this alike."""
        if self.stage == 0:
            yield from (dict(self._optimizer.state.get(parameter, {})) for parameter in self._parameters)
            return
        # Adam counts its steps once a flat tensor; all count alike.
        entries = self._optimizer.state.get(self._flat[0], {})
        for parameter in self._parameters:
            yield {
                entry: value.clone() if entry == "step" else self._get(parameter, entry)
                for entry, value in entries.items()
            }

    def load(self, states: list[State]) -> None:
        """Take over what ``states`` gave, of any stage and number of processes; a parameter may have none."""
        if self.stage == 0:
            for parameter, state in zip(self._parameters, states, strict=True):
                self._optimizer.state[parameter].update(state)
            return
        example = next((state for state in states if state), None)
        if example is None:
            return
        for flat in self._flat:
            for entry, value in example.items():
                self._optimizer.state[flat][entry] = value.clone() if entry == "step" else torch.zeros_like(flat)
        for parameter, state in zip(self._parameters, states, strict=True):
            for entry, value in state.items():
                if entry != "step":
                    self._set(parameter, entry, value)

    def close(self) -> None:
        """Give the parameters back as they were made: with memory of their own, and nothing of DeepSpeed's on them."""
        self._engine.destroy()
        if self.stage == 3:
            self._dismantle()
        else:
            for parameter, before in self._own:
                if parameter.requires_grad:
                    parameter.data = parameter.data.clone()  # they were views of one flat buffer
                    parameter.grad = None
                for name in set(vars(parameter)) - before:
                    delattr(parameter, name)
        del self._engine, self._own, self._loss, self._parameters, self._optimizer
        gc.collect()  # an engine is a ring of references, with the optimizer's state in it

    def _dismantle(self) -> None:
        """Empty what DeepSpeed's stage 3 keeps for ever: a stack with the module at its bottom, and a cache whose keys
        are modules and their coordinator."""
        from deepspeed.runtime.zero import parameter_offload

        parameter_offload.FWD_MODULE_STACK.clear()
        coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
        for thing in (coordinator, *list(self._loss.modules())):
            vars(thing).clear()

    @property
    def _flat(self) -> list[Tensor]:
        """This process's parts of the parameters, flattened: what the optimizer sees."""
        wrapped = self._engine.optimizer
        parts: list[Tensor] = (
            wrapped.fp32_partitioned_groups_flat if self.stage == 3 else wrapped.single_partition_of_fp32_groups
        )
        return parts

    def _mine(self, parameter: Any, entry: str, whole: Tensor) -> tuple[Tensor, Tensor] | None:
        """Stages 1 and 2: this process's part of an entry, and the same part of ``whole`` [numel]; None if it has none.

        (DeepSpeed's own getters know the entries of the first parameter group alone before the second step.)
        """
        fragment = parameter._hp_mapping
        if fragment is None:
            return None
        here, there = fragment.hp_fragment_address, fragment.lp_fragment_address
        held = self._optimizer.state[self._flat[fragment.param_group_index]][entry]
        return held.narrow(0, here.start, here.numel), whole.narrow(0, there.start, there.numel)

    def _get(self, parameter: nn.Parameter, entry: str) -> Tensor:
        if self.stage == 3:
            from deepspeed.utils import safe_get_full_optimizer_state

            return safe_get_full_optimizer_state(parameter, entry)
        whole = torch.zeros(parameter.numel(), device=parameter.device)
        parts = self._mine(parameter, entry, whole)
        if parts:
            parts[1].copy_(parts[0])
        distributed.all_reduce(whole)
        return whole.view(parameter.shape)

    def _set(self, parameter: nn.Parameter, entry: str, value: Tensor) -> None:
        if self.stage < 3:
            parts = self._mine(parameter, entry, value.flatten())
            if parts:
                parts[0].copy_(parts[1])
            return
        from deepspeed.utils import safe_set_local_optimizer_state

        # DeepSpeed's own setter of whole values fails where the parts are padded.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = F.pad(value.flatten(), (0, size * distributed.get_world_size() - value.numel()))
        mine = padded.narrow(0, size * distributed.get_rank(), size)
        safe_set_local_optimizer_state(parameter, mine, entry)
