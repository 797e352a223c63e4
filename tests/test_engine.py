"""Gradient steps of one process: schedule, rates, clipping, and a state that goes on."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmlora_dist.config import TrainConfig
from fmlora_dist.distributed import World
from fmlora_dist.engine import Engine, Precision
from fmlora_dist.method import ParameterGroup


class _Line(torch.nn.Module):
    """The smallest thing with a loss: mean of (images · weight)², and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.bias = torch.nn.Parameter(torch.tensor(0.5))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.dtype = torch.float64

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        out = torch.nn.functional.linear(images, self.weight[None], self.bias[None])
        self.dtype = out.dtype
        return (out**2).mean() * self.frozen[0]


IMAGES = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
LABELS = torch.zeros(2)


def _engine(line: _Line, *, lr: float = 0.1, precision: str = "fp32", total: int = 4, **config: Any) -> Engine:
    world = World("cpu", 1)
    groups = [
        ParameterGroup(name="weight", params=[line.weight], lr=lr),
        ParameterGroup(name="bias", params=[line.bias], lr=lr / 10),
    ]
    settings = TrainConfig(lr=lr, **config)
    return Engine(line, groups, settings, Precision(precision, world), world, total_steps=total, local_batch=2)  # type: ignore[arg-type]


def _gradient(line: _Line) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = torch.autograd.grad(line.loss(IMAGES, LABELS), [line.weight, line.bias])
    return weight, bias


def test_a_step_follows_the_gradient_with_each_groups_rate() -> None:
    line = _Line()
    weight, bias = line.weight.detach().clone(), line.bias.detach().clone()
    gradient = _gradient(line)
    _engine(line, optimizer="sgd", schedule="constant").step(IMAGES, LABELS, 1.0)
    assert torch.allclose(line.weight, weight - 0.1 * gradient[0])
    assert torch.allclose(line.bias, bias - 0.01 * gradient[1])
    assert line.frozen.item() == 1.0 and line.weight.grad is None


def test_the_weight_scales_the_loss() -> None:
    one, half = _Line(), _Line()
    losses = [
        _engine(line, optimizer="sgd", schedule="constant", lr=rate).step(IMAGES, LABELS, weight)
        for line, rate, weight in ((one, 0.1, 1.0), (half, 0.2, 0.5))
    ]
    assert torch.allclose(losses[0], 2 * losses[1])
    assert torch.allclose(one.weight, half.weight)


def test_the_cosine_starts_at_the_rate_and_ends_near_zero() -> None:
    line = _Line()
    engine = _engine(line, total=10)
    rates = []
    for _ in range(10):
        engine.step(IMAGES, LABELS, 1.0)
        rates.append(engine._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert engine._optimizer.param_groups[1]["lr"] == pytest.approx(rates[-1] / 10)


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    line = _Line()
    before = torch.cat([line.weight.detach().clone(), line.bias.detach().clone()[None]])
    engine = _engine(line, optimizer="sgd", schedule="constant", clip=0.01)
    engine._rates = [1.0, 1.0]
    engine.step(IMAGES, LABELS, 1.0)
    after = torch.cat([line.weight.detach(), line.bias.detach()[None]])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", functools.partial(torch.optim.SGD, momentum=0.9)),
    ],
)
def test_the_optimizer_is_the_one_of_its_name(name: str, make: Callable[..., torch.optim.Optimizer]) -> None:
    line, plain = _Line(), _Line()
    engine = _engine(line, optimizer=name, schedule="constant", weight_decay=0.1)
    groups = [{"params": [plain.weight], "lr": 0.1}, {"params": [plain.bias], "lr": 0.01}]
    optimizer = make(groups, weight_decay=0.1)
    for _ in range(3):
        engine.step(IMAGES, LABELS, 1.0)
        optimizer.zero_grad()
        plain.loss(IMAGES, LABELS).backward()
        optimizer.step()
    torch.testing.assert_close(line.weight, plain.weight)
    torch.testing.assert_close(line.bias, plain.bias)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_restored_engine_goes_on_bit_for_bit(optimizer: str) -> None:
    line = _Line()
    engine = _engine(line, optimizer=optimizer, weight_decay=0.1)
    for _ in range(2):
        engine.step(IMAGES, LABELS, 1.0)
    copy = _Line()
    copy.load_state_dict(line.state_dict())
    other = _engine(copy, optimizer=optimizer, weight_decay=0.1)
    other.load_state_dict({name: value.clone() for name, value in engine.state_dict().items()})
    for each in (engine, other, engine, other):
        each.step(IMAGES, LABELS, 1.0)
    assert torch.equal(line.weight, copy.weight) and torch.equal(line.bias, copy.bias)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in engine.state_dict().items())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)]
)
def test_precision_is_that_of_the_forward_and_weights_stay_fp32(precision: str, dtype: torch.dtype) -> None:
    line = _Line()
    loss = _engine(line, precision=precision).step(IMAGES, LABELS, 1.0)
    assert line.dtype == dtype
    assert loss.dtype == line.weight.dtype == torch.float32


@given(n=st.integers(1, 9), micro_batches=st.integers(1, 9), weight=st.floats(0.1, 2.0))
def test_micro_batches_have_the_loss_and_the_step_of_the_whole_batch(n: int, micro_batches: int, weight: float) -> None:
    """Unequal ones and empty ones too."""
    images = torch.linspace(-1, 2, 2 * n).view(n, 2)
    lines, losses = [], []
    for accumulation in (1, micro_batches):
        line = _Line()
        engine = _engine(line, optimizer="sgd", clip=0.5, accumulation=accumulation)
        losses.append(engine.step(images, torch.zeros(n), weight))
        lines.append(line)
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    assert torch.allclose(lines[0].weight, lines[1].weight, rtol=1e-5)
    assert torch.allclose(lines[0].bias, lines[1].bias, rtol=1e-5)


def test_parameters_that_are_not_finite_are_seen() -> None:
    line = _Line()
    engine = _engine(line)
    assert engine.finite()
    with torch.no_grad():
        line.weight[1] = float("nan")
    assert not engine.finite()


def test_bf16_on_a_cpu_writes_attention_out_and_leaves_fp32_alone() -> None:
    """The fused kernel's backward pass is many times slower there; what is computed is the same."""
    q, k, v = (torch.randn(2, 3, 7, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    expected = torch.softmax(q @ k.mT / 4, dim=-1) @ v
    for name, fused in (("fp32", True), ("bf16", False)):
        with Precision(name, World("cpu", 1))():
            assert torch.backends.cuda.flash_sdp_enabled() is fused
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert found.dtype is (torch.float32 if fused else torch.bfloat16)
        torch.testing.assert_close(found.float(), expected, atol=1e-5 if fused else 3e-2, rtol=0)
        assert torch.backends.cuda.flash_sdp_enabled()
