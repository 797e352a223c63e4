"""Low-rank branches on timm's qkv layer: branch, sum and merged weight are the same function."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.errors import UserError
from fmlora_dist.method import MethodConfig, ParameterGroup
from fmlora_dist.vit.backbone import Backbone, BackboneConfig, load_backbone
from fmlora_dist.vit.low_rank import SUM_ABOVE, Adapter, LowRankLinear, LowRankMethod


class Fixed(Adapter):
    """Random factors, and a random past."""

    def __init__(self, d_in: int, d_out: int, rank: int, seed: int, *, past: bool = True, branch: bool = True):
        super().__init__(d_in, d_out)
        draw = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(rank, d_in, generator=draw) / d_in)
        self.up = nn.Parameter(torch.randn(d_out, rank, generator=draw))
        self.frozen = torch.randn(d_out, d_in, generator=draw) / d_in
        self.has_past, self.has_branch = past, branch

    def factors(self) -> tuple[Tensor, Tensor] | None:
        return (self.down, self.up) if self.has_branch else None

    def past(self) -> Tensor | None:
        return self.frozen if self.has_past else None


def linear(width: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, 3 * width, bias=bias).requires_grad_(False)


def rows(width: int, place: int) -> slice:
    return slice(place * width, (place + 1) * width)


def written_out(layer: LowRankLinear, x: Tensor) -> Tensor:
    """Every projection by itself, in fp64."""
    y = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()).clone()
    for place, adapter in layer._adapters:
        past, factors = adapter.past(), adapter.factors()
        if past is not None:
            y[..., place] += x.double() @ past.double().T
        if factors is not None:
            y[..., place] += x.double() @ factors[0].double().T @ factors[1].double().T
    return y


@given(st.integers(4, 24), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.booleans(), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_layer_equals_the_separate_sum_of_its_projections(width: int, ranks: list[int], bias: bool, seed: int) -> None:
    """Over shapes that take the stacked branch and shapes that take the summed weight."""
    places = [0, 2, 1][: len(ranks)]
    placed = zip(places, ranks, strict=True)
    adapters = [(rows(width, place), Fixed(width, width, rank, seed + place)) for place, rank in placed]
    layer = LowRankLinear(linear(width, bias=bias), adapters)
    layer.merge()
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer(x).double(), written_out(layer, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 20])
def test_both_forms_have_the_same_gradients(rank: int) -> None:
    """The stacked branch (rank 1) and the summed weight (rank 20) against autograd of the written-out sum."""
    width = 32
    adapters = [(rows(width, place), Fixed(width, width, rank, place)) for place in (0, 2)]
    assert (2 * rank > SUM_ABOVE * width) == (rank == 20)
    layer = LowRankLinear(linear(width), adapters)
    layer.merge()
    x = torch.randn(2, 5, width, requires_grad=True)
    target = torch.randn(2, 5, 3 * width)
    parameters = [x, *(value for _, adapter in adapters for value in adapter.parameters())]
    found = torch.autograd.grad((layer(x) * target).sum(), parameters)
    expected = torch.autograd.grad((written_out(layer, x) * target).sum(), parameters)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_rows_without_an_adapter_are_the_frozen_layers_bit_for_bit() -> None:
    width = 16
    frozen = linear(width)
    layer = LowRankLinear(frozen, [(rows(width, 0), Fixed(width, width, 2, 0))])
    layer.merge()
    x = torch.randn(3, 7, width)
    assert torch.equal(layer(x)[..., width:], frozen(x)[..., width:])
    assert not torch.equal(layer(x)[..., :width], frozen(x)[..., :width])


def test_merge_is_exact_and_recomputed_never_accumulated() -> None:
    width = 16
    adapter = Fixed(width, width, 2, 0)
    layer = LowRankLinear(linear(width), [(rows(width, 2), adapter)])
    original = layer.weight.clone()
    layer.merge(current=True)
    once = layer.effective.clone()
    expected = original.clone()
    expected[rows(width, 2)] += adapter.frozen
    expected[rows(width, 2)] += adapter.up.detach() @ adapter.down.detach()
    assert torch.equal(once, expected)
    for _ in range(5):
        layer.merge(current=True)
        layer.merge()
        layer.merge(current=True)
    assert torch.equal(layer.effective, once), "merging again must change no bit"
    assert torch.equal(layer.weight, original)
    adapter.has_past = adapter.has_branch = False
    layer.merge(current=True)
    assert torch.equal(layer.effective, original), "a past that is gone leaves no trace"


@pytest.mark.parametrize("rank", [1, 20])
def test_merged_branches_give_the_branches_output(rank: int) -> None:
    width = 32
    layer = LowRankLinear(linear(width), [(rows(width, place), Fixed(width, width, rank, place)) for place in (0, 1)])
    layer.merge()
    x = torch.randn(2, 5, width)
    separate = layer(x)
    layer.merge(current=True)
    layer.branch = False
    torch.testing.assert_close(layer(x), separate, atol=1e-5, rtol=0)


def test_layer_with_nothing_learned_is_the_frozen_layer_and_stores_nothing_new() -> None:
    frozen = linear(16)
    layer = LowRankLinear(frozen, [(rows(16, 0), Adapter(16, 16))])
    layer.merge()
    x = torch.randn(4, 16)
    assert torch.equal(layer(x), frozen(x))
    assert layer.effective.data_ptr() == frozen.weight.data_ptr()
    assert set(layer.state_dict()) == {"weight", "bias"}, "timm's own names, so that the model stays a timm ViT"


def test_observer_sees_exactly_the_layers_input() -> None:
    layer = LowRankLinear(linear(16), [(rows(16, 0), Fixed(16, 16, 2, 0))])
    seen: list[Tensor] = []
    layer.observe = seen.append
    x = torch.randn(2, 3, 16)
    with_observer = layer(x)
    layer.observe = None
    assert len(seen) == 1 and torch.equal(seen[0], x)
    assert torch.equal(layer(x), with_observer) and len(seen) == 1


def test_branch_runs_in_the_precision_of_autocast() -> None:
    layer = LowRankLinear(linear(32), [(rows(32, 0), Fixed(32, 32, 2, 0))])
    layer.merge()
    x = torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("rank", [2, 20])
def test_gradients_in_bf16_are_those_in_fp64_to_its_digits(rank: int) -> None:
    adapters = [(rows(32, place), Fixed(32, 32, rank, place)) for place in (0, 2)]
    layer = LowRankLinear(linear(32), adapters)
    layer.merge()
    x, wanted = torch.randn(3, 7, 32, requires_grad=True), torch.randn(3, 7, 96)
    trained = [x, *(part for _, adapter in adapters for part in (adapter.down, adapter.up))]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad((layer(x) * wanted).sum(), trained)
    exact = torch.autograd.grad((written_out(layer, x) * wanted).sum(), trained)
    for mine, theirs in zip(found, exact, strict=True):
        assert 0 < (mine - theirs).norm() < 0.02 * theirs.norm()


class Everywhere(LowRankMethod):
    """A method of fixed adapters."""

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(name="adapters", params=list(self.adapters.parameters()), lr=self.lr)]


def tiny(**options: Any) -> Backbone:
    config = BackboneConfig(
        name="vit_tiny_patch16_224",
        weights="random",
        options={"depth": 2, "embed_dim": 48, "patch_size": 8} | options,
    )
    return load_backbone(config, image_size=32).model


@pytest.mark.parametrize("projections", [("q", "v"), ("k", "v"), ("v", "q"), ("q", "k", "v"), ("k",)])
def test_adapters_act_on_the_projections_that_were_asked_for(projections: tuple[str, ...]) -> None:
    plain = tiny()
    method = Everywhere(
        MethodConfig(), tiny(), lr=1e-3, projections=projections, make=lambda d_in, d_out: Fixed(d_in, d_out, 2, 0)
    )
    method.rebuild()
    assert set(method.adapters) == {f"{block}_{name}" for block in (0, 1) for name in projections}
    tokens = torch.randn(2, 17, 48)
    with torch.no_grad():
        for layer, block in zip(method.layers, plain.blocks, strict=True):
            attention: Any = block.attn
            changed = (layer(tokens) - attention.qkv(tokens)).abs().amax(dim=(0, 1)) > 1e-6
            for place, name in enumerate("qkv"):
                assert changed[rows(48, place)].all() == (name in projections)
                assert changed[rows(48, place)].any() == (name in projections)


def test_merged_context_gives_the_branch_back_even_after_an_error() -> None:
    method = Everywhere(
        MethodConfig(), tiny(), lr=1e-3, projections=("q",), make=lambda d_in, d_out: Fixed(d_in, d_out, 2, 0)
    )
    method.rebuild()
    before = [layer.effective.clone() for layer in method.layers]
    with pytest.raises(RuntimeError, match="on purpose"), method.merged():
        assert not any(layer.branch for layer in method.layers)
        raise RuntimeError("on purpose")
    assert all(layer.branch for layer in method.layers)
    assert all(torch.equal(layer.effective, old) for layer, old in zip(method.layers, before, strict=True))


def test_backbone_without_a_qkv_layer_is_refused() -> None:
    model = tiny()
    attention: Any = model.blocks[1].attn
    attention.qkv = nn.Identity()
    with pytest.raises(UserError, match=r"block 1 has no linear layer attn\.qkv"):
        Everywhere(MethodConfig(), model, lr=1e-3, projections=("q",), make=Adapter)


def test_the_weight_change_is_that_of_past_and_branches_over_the_weights_own() -> None:
    method = Everywhere(
        MethodConfig(), tiny(), lr=0.1, projections=("q", "v"), make=lambda d_in, d_out: Fixed(d_in, d_out, 3, 1)
    )
    moved = size = 0.0
    for layer in method.layers:
        size += (layer.weight.double().numpy() ** 2).sum()
        for _, adapter in layer._adapters:
            up, down, past = (x.detach().double().numpy() for x in (adapter.up, adapter.down, adapter.frozen))
            moved += ((up @ down + past) ** 2).sum()
    assert moved > 0 and method.diagnostics()["weight_change"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)
