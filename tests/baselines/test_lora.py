"""One LoRA, trained on task after task; and the low-rank layer that all of the family shares."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from baselines.lora import Branch
from fmlora_dist.errors import UserError
from fmlora_dist.vit.low_rank import SUM_ABOVE, LowRankLinear


def drawn(branch: Branch, rank: int, seed: int) -> Branch:
    generator = torch.Generator().manual_seed(seed)
    branch.down.data = torch.randn(rank, branch.d_in, generator=generator)
    branch.up.data = torch.randn(branch.d_out, rank, generator=generator)
    return branch


@given(width=st.integers(4, 24), rank=st.integers(1, 12), alpha=st.floats(0.1, 20), places=st.sets(st.integers(0, 2)))
def test_branch_equals_merged_equals_the_written_out_sum(width: int, rank: int, alpha: float, places: set[int]) -> None:
    rank = min(rank, width)
    linear = nn.Linear(width, 3 * width).requires_grad_(False)
    branches = [
        (slice(i * width, (i + 1) * width), drawn(Branch(width, width, alpha / rank), rank, i)) for i in sorted(places)
    ]
    layer = LowRankLinear(linear, branches)
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(9))
    weight = linear.weight.numpy().astype(np.float64)
    for rows, branch in branches:
        product = branch.up.detach().numpy().astype(np.float64) @ branch.down.detach().numpy()
        weight[rows] = weight[rows] + alpha / rank * product
    expected = torch.from_numpy(x.numpy() @ weight.T + linear.bias.numpy()).float()
    atol = 1e-3 * max(1.0, alpha)
    torch.testing.assert_close(layer(x).detach(), expected, atol=atol, rtol=1e-4)
    layer.merge(current=True)
    layer.branch = False
    torch.testing.assert_close(layer(x), expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("rank", [2, 12])
def test_branch_and_summed_weight_have_the_same_gradients(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 < SUM_ABOVE * 16 < 12
    gradients = []
    for above in (0.0, 99.0):
        monkeypatch.setattr("fmlora_dist.vit.low_rank.SUM_ABOVE", above)
        linear = nn.Linear(16, 48).requires_grad_(False)
        branch = drawn(Branch(16, 16, 1.0), rank, 0)
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
        linear.weight.data = torch.ones_like(linear.weight)
        linear.bias.data.zero_()
        LowRankLinear(linear, [(slice(16, 32), branch)])(x).square().sum().backward()
        gradients.append((x.grad, branch.down.grad, branch.up.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_trains_the_factors_of_q_and_v_and_the_head(sequences: Any) -> None:
    method = sequences.make("lora", rank=4)
    sequences.begin(method, 1)
    expected = {f"adapters.{b}_{p}.{side}": 4 * 48 for b in (0, 1) for p in "qv" for side in ("down", "up")}
    assert sequences.trainable(method) == expected | {"head.weight": 96, "head.bias": 2}


def test_starts_from_the_plain_vit(sequences: Any) -> None:
    method, plain = sequences.make("lora"), sequences.make("frozen")
    data = sequences.begin(method, 1)
    torch.testing.assert_close(method.features(data.images), plain.features(data.images))
    assert method.adapters["0_q"].down.abs().max() <= 48**-0.5
    assert method.adapters["0_q"].down.abs().max() > 0.9 * 48**-0.5


def test_is_not_drawn_again_at_a_later_task(sequences: Any) -> None:
    method = sequences.make("lora", rank=4)
    sequences.learn(method, 1)
    before = [value.clone() for value in method.adapters.parameters()]
    sequences.begin(method, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, method.adapters.parameters(), strict=True))


def test_learns(sequences: Any) -> None:
    method = sequences.make("lora", rank=4)
    losses = sequences.train(method, sequences.begin(method, 1), steps=12)
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])


def test_rank_above_the_width_is_refused(sequences: Any) -> None:
    with pytest.raises(UserError, match=r"method\.rank: found 49, .* 1 to 48"):
        sequences.make("lora", rank=49)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"projections": ()}, {"projections": ("o",)}, {"rnak": 3}]
)
def test_values_without_sense_are_refused(sequences: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="LoraConfig"):
        sequences.make("lora", **wrong)


def test_resumes(sequences: Any) -> None:
    sequences.check_resume("lora", rank=4)


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("lora", rank=4)


@pytest.mark.parametrize("rank", [2, 20])
def test_merged_is_the_same_function(sequences: Any, rank: int) -> None:
    sequences.check_merged("lora", rank=rank, alpha=float(rank))
