"""Memory that runs out is told apart from other errors, and the line says what to do."""

import pytest
import torch

from fmlora_dist.errors import UserError, explain_memory


def test_memory_that_torch_cannot_get_becomes_a_line_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"out of memory: .*use a smaller --batch-size") as caught, explain_memory():
        torch.empty(2**60)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_pythons_and_a_gpus_memory_count_too(error: Exception) -> None:
    with pytest.raises(UserError, match="out of memory: "), explain_memory():
        raise error


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_memory():
        raise RuntimeError("shape")
