"""What every registered method promises, whoever wrote it: predictions that are an image's own, and true flags."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmlora_dist.method import Method
from fmlora_dist.registry import list_methods
from fmlora_dist.restore import restore
from running import finished

BATCHES = (1, 7, 128)


def _logits(method: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits of the images, in batches that are drawn from all of them in a random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(batch_size))
    with torch.no_grad():
        parts = [method(images[some]) for some in order.split(batch_size)]
    return torch.cat(parts)[order.argsort()]


def _assert_independent(method: nn.Module, images: Tensor) -> None:
    """An image's prediction is the same alone, among six others, and among a hundred."""
    alone, *others = (_logits(method, images, size) for size in BATCHES)
    assert len(alone.argmax(dim=1).unique()) > 1, "one answer for all would prove nothing"
    for together in others:
        assert torch.equal(together.argmax(dim=1), alone.argmax(dim=1))
        torch.testing.assert_close(together, alone, atol=2e-4, rtol=2e-4)  # sums of another size are rounded otherwise


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Test images of three tasks, plain and in three other forms: more than the largest batch."""
    _, data, _ = restore(finished("frozen"), device="cpu")
    plain = torch.cat([batch for samples in data.tests for batch, _ in data.test(samples)])
    return torch.cat([plain, plain.flip(-1), plain.flip(-2), plain.mT])


@pytest.mark.parametrize("merged", [False, True], ids=["branches", "merged"])
@pytest.mark.parametrize("name", list_methods())
def test_a_prediction_depends_on_no_other_image_of_the_batch_nor_on_their_order(
    name: str, merged: bool, images: Tensor
) -> None:
    method, _, _ = restore(finished(name), device="cpu")
    assert len(images) > max(BATCHES)
    if merged:
        with method.merged():
            _assert_independent(method, images)
    else:
        _assert_independent(method, images)


@pytest.mark.parametrize("name", list_methods())
def test_logits_are_in_fp32_where_the_backbone_runs_in_bf16(name: str, images: Tensor) -> None:
    method, _, _ = restore(finished(name), device="cpu")
    with torch.no_grad(), method.merged():
        exact = method(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact), "its features are in bf16"
    assert not torch.equal(rounded, rounded.bfloat16().float()), "bf16 has but 256 numbers between two powers of two"


class _Votes(nn.Module):
    """A method whose batch votes for one of two shifts of the logits, as batch-wise prompts do."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.method(images)
        return logits + torch.arange(logits.shape[1]) * logits.mean(dim=0).argmax()


def test_a_batch_that_votes_would_be_found_out(images: Tensor) -> None:
    method, _, _ = restore(finished("frozen"), device="cpu")
    with pytest.raises(AssertionError):
        _assert_independent(_Votes(method), images)


@pytest.mark.parametrize("name", [name for name, cls in list_methods().items() if not cls.info.joint])
def test_what_is_stored_grows_with_the_tasks_exactly_where_the_method_says_so(name: str, sequences: Any) -> None:
    method = sequences.make(name)
    sizes = []
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        sequences.train(method, data)
        method.end_task(data)
        stored = {key: value for key, value in method.state_dict().items() if not key.startswith("head.")}
        sizes.append(sum(value.numel() for value in stored.values()))
    grew = sizes[2] > sizes[1]
    assert grew == method.info.grows, sizes
