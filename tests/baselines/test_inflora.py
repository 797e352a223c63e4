"""InfLoRA against the mathematics: the free subspace, the second moment, DualGPM written out in numpy."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.dual_gpm import SubspaceMemory
from fmlora_dist.errors import UserError

Moments = list[np.ndarray]


def moments(width: int, n: int, seed: int, rank: int) -> Moments:
    """Second moments of anisotropic inputs, each mostly in a subspace of its own."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        x = rng.normal(size=(4 * width, rank)) @ rng.normal(size=(rank, width))
        x += 0.05 * rng.normal(size=(4 * width, width))
        out.append(x.T @ x / len(x))
    return out


class WrittenOut:
    """DualGPM in numpy, in its two modes, each with its own loop over the singular values (no shared formula)."""

    def __init__(self, width: int, dual: bool):
        self.width, self.dual = width, dual
        self.mode = "remove"
        self.basis = np.zeros((width, 0))

    def projected(self, moment: np.ndarray) -> np.ndarray:
        """The part of the moment that no earlier task has used."""
        inside = self.basis @ (self.basis.T @ moment)
        return moment - inside if self.mode == "remove" else inside

    def extend(self, moment: np.ndarray, eps: float) -> None:
        total = (np.linalg.svd(moment, compute_uv=False) ** 2).sum()
        left, values, _ = np.linalg.svd(self.projected(moment))
        if self.mode == "remove":
            if self.basis.shape[1] == 0:
                shares = np.cumsum(values**2) / total
                count = max(1, int(np.sum(shares < eps)))
            else:
                held, count = 1 - (values**2).sum() / total, 0
                while held < eps and self.basis.shape[1] + count < self.width:
                    held += values[count] ** 2 / total
                    count += 1
            self.basis = np.hstack([self.basis, left[:, :count]])
            if self.dual and self.basis.shape[1] > self.width / 2:
                full = np.linalg.svd(self.basis)[0]
                self.basis, self.mode = full[:, self.basis.shape[1] :], "retain"
        else:
            left_over, count = (values**2).sum() / total, 0
            while left_over > 1 - eps and count < self.basis.shape[1]:
                left_over -= values[count] ** 2 / total
                count += 1
            used = left[:, :count]
            rest = self.basis - used @ (used.T @ self.basis)
            self.basis = np.linalg.svd(rest)[0][:, : self.basis.shape[1] - count]

    def used(self) -> np.ndarray:
        """Projector on the used subspace."""
        own = self.basis @ self.basis.T
        return own if self.mode == "remove" else np.eye(self.width) - own


def used(memory: SubspaceMemory) -> np.ndarray:
    free: np.ndarray = memory.free().numpy()
    return np.eye(memory.width) - free @ free.T


@pytest.mark.parametrize("dual", [True, False])
@settings(deadline=None, max_examples=25)
@given(width=st.integers(6, 20), rank=st.integers(1, 6), eps=st.floats(0.9, 0.9999), seed=st.integers(0, 10**6))
def test_memory_equals_the_written_out_one(dual: bool, width: int, rank: int, eps: float, seed: int) -> None:
    memory, expected = SubspaceMemory(width, dual=dual), WrittenOut(width, dual)
    for number, moment in enumerate(moments(width, 6, seed, min(rank, width))):
        threshold = eps + (1 - eps) * number / 6
        memory.extend(torch.from_numpy(moment), threshold)
        expected.extend(moment, threshold)
        assert memory.retains == (expected.mode == "retain")
        assert memory.basis.shape == expected.basis.shape
        np.testing.assert_allclose(used(memory), expected.used(), atol=2e-4)
        gram = memory.basis.double().T @ memory.basis.double()
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_memory_switches_to_the_complement_beyond_half_of_the_dimensions() -> None:
    memory, stored = SubspaceMemory(12, dual=True), SubspaceMemory(12, dual=False)
    eye = torch.eye(12, dtype=torch.float64)
    # Equal energies: each task holds three (the first: two, by the strict count) dimensions of its own.
    for number, (n_used, retains) in enumerate([(2, False), (5, False), (8, True), (11, True)]):
        own = eye[3 * number : 3 * number + 3] if number else eye[:3]
        moment = own.T @ own
        for each in (memory, stored):
            each.extend(moment, 0.99)
        assert memory.n_free == stored.n_free == 12 - n_used
        assert memory.retains == retains
        assert memory.basis.shape[1] == (12 - n_used if retains else n_used)
        assert not stored.retains
        assert stored.basis.shape[1] == n_used
        np.testing.assert_allclose(used(memory), used(stored), atol=1e-6)


def test_exactly_half_is_not_beyond_half() -> None:
    memory = SubspaceMemory(8, dual=True)
    memory.extend(torch.diag(torch.tensor([1.0] * 5 + [0.0] * 3)), 0.99)
    assert memory.n_free == 4
    assert not memory.retains


def test_first_task_takes_one_direction_at_least() -> None:
    memory = SubspaceMemory(8, dual=True)
    memory.extend(torch.diag(torch.tensor([100.0] + [0.001] * 7)), 0.9)
    assert memory.basis.shape[1] == 1


def test_a_moment_inside_the_used_space_adds_nothing() -> None:
    memory = SubspaceMemory(8, dual=True)
    moment = torch.diag(torch.tensor([4.0, 3.0, 2.0] + [0.0] * 5))
    memory.extend(moment, 0.9999)
    memory.extend(moment, 0.5)
    assert memory.basis.shape[1] == 2


@settings(deadline=None, max_examples=25)
@given(width=st.integers(6, 20), rank=st.integers(1, 8), eps=st.floats(0.9, 0.999), seed=st.integers(0, 10**6))
def test_directions_are_the_leading_ones_of_the_unused_part(width: int, rank: int, eps: float, seed: int) -> None:
    first, second, new = moments(width, 3, seed, 3)
    memory, expected = SubspaceMemory(width, dual=True), WrittenOut(width, True)
    for moment in (first, second):
        memory.extend(torch.from_numpy(moment), eps)
        expected.extend(moment, eps)
    rows = memory.directions(torch.from_numpy(new), rank).double().numpy()
    free = width - round(np.trace(expected.used()))
    assert rows.shape == (min(rank, free), width)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)
    np.testing.assert_allclose(rows @ expected.used(), 0, atol=2e-4)
    assert (np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1) > 0).all(), "a library may choose the sign"
    # The same energy as the leading singular vectors of the literal (I - P) M hold.
    values = np.linalg.svd(expected.projected(new), compute_uv=False)
    held = np.linalg.norm(rows @ new) ** 2
    np.testing.assert_allclose(held, (values[: len(rows)] ** 2).sum(), rtol=1e-3)


def test_directions_stay_outside_the_used_space_when_nothing_new_is_there() -> None:
    memory = SubspaceMemory(8, dual=True)
    moment = torch.diag(torch.tensor([4.0, 3.0, 2.0] + [0.0] * 5))
    memory.extend(moment, 0.9999)
    rows = memory.directions(moment, 4)
    assert rows.shape == (4, 8)
    assert torch.equal(rows[:, :2], torch.zeros(4, 2))


def test_a_space_that_has_run_out_gives_no_direction() -> None:
    memory = SubspaceMemory(4, dual=True)
    memory.extend(torch.eye(4), 1.0)
    memory.extend(torch.eye(4), 1.0)
    assert memory.n_free == 0
    assert memory.directions(torch.eye(4), 2).shape == (0, 4)
    memory.extend(torch.eye(4), 1.0)


# -- the method -----------------------------------------------------------------------------------------------------


def test_trains_b_of_k_and_v_and_the_head(sequences: Any) -> None:
    method = sequences.make("inflora", rank=4)
    sequences.learn(method, 1)
    sequences.begin(method, 2)
    expected = {f"adapters.{b}_{p}.up": 4 * 48 for b in (0, 1) for p in "kv"}
    assert sequences.trainable(method) == expected | {"head.weight": 96, "head.bias": 2}


def test_head_may_have_its_own_rate(sequences: Any) -> None:
    method = sequences.make("inflora", lr=0.005, rank=4, head_lr=0.01)
    sequences.begin(method, 1)
    assert [(group.name, group.lr) for group in method.parameter_groups()] == [("adapters", 0.005), ("head", 0.01)]


def test_a_is_fixed_orthogonal_to_the_stored_space_and_shared(sequences: Any) -> None:
    method = sequences.make("inflora", rank=4, lamb=0.9)
    for number in (1, 2, 3):
        data = sequences.begin(method, number, n_tasks=10)
        before = [space.down.clone() for space in method.spaces]
        assert method.adapters["0_k"].factors()[0] is method.adapters["0_v"].factors()[0]
        for space in method.spaces:
            rows = space.down.double()
            np.testing.assert_allclose(rows.numpy() @ used(space.memory), 0, atol=1e-6)
            np.testing.assert_allclose(3 * rows @ rows.T, np.eye(4), atol=1e-5)
        if number > 1:
            assert min(space.memory.n_free for space in method.spaces) < 48
        sequences.train(method, data)
        assert all(torch.equal(a, space.down) for a, space in zip(before, method.spaces, strict=True))
        method.end_task(data)


def test_first_a_is_the_leading_singular_vectors_over_root_three(sequences: Any) -> None:
    method = sequences.make("inflora", rank=3)
    data = sequences.begin(method, 1)
    for space, moment in zip(method.spaces, method.second_moments(data), strict=True):
        left = np.linalg.svd(moment.numpy())[0][:, :3]
        np.testing.assert_allclose(np.abs(np.diag(space.down.numpy() @ left)), 3**-0.5, atol=1e-5)


def test_second_moment_is_the_mean_over_all_tokens_of_the_attention_input(sequences: Any) -> None:
    method = sequences.make("inflora", rank=3)
    sequences.learn(method, 1)
    data = sequences.data(sequences.task(2))
    images = torch.cat([batch for batch, _ in data.batches(augment=True)])
    backbone = method.backbone
    with torch.no_grad():
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
        for block, moment in zip(backbone.blocks, method.second_moments(data), strict=True):
            tokens = block.norm1(x).flatten(0, 1).double().numpy()
            assert len(tokens) == 12 * 17
            np.testing.assert_allclose(moment.numpy(), tokens.T @ tokens / len(tokens), rtol=1e-4, atol=1e-5)
            x = block(x)
    assert all(layer.observe is None for layer in method.layers)


@pytest.mark.parametrize("batch_size", [3, 8])  # 3: the processes have unequal shares
def test_second_moment_of_two_processes_equals_that_of_one(sequences: Any, peers: Any, batch_size: int) -> None:
    method = sequences.make("inflora", rank=3)
    task = sequences.task(1)
    alone = method.second_moments(sequences.data(task, batch_size=batch_size))

    def work(rank: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        own = sequences.make("inflora", rank=3)
        data = sequences.data(task, batch_size=batch_size, rank=rank, peers=peers)
        gathered = own.second_moments(data)
        own.begin_task(task, data)
        own.end_task(data)
        return gathered, own.state_dict()

    (one, state), (other, other_state) = peers.run(work)
    for mine, yours, both in zip(one, other, alone, strict=True):
        assert torch.equal(mine, yours)
        torch.testing.assert_close(mine, both, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())


@pytest.mark.parametrize(("lamb", "lame", "expected"), [(0.95, 1.0, [0.95, 0.96, 0.97]), (0.9, 0.8, [0.9, 0.88, 0.86])])
def test_threshold_moves_from_lamb_towards_lame(
    sequences: Any, monkeypatch: pytest.MonkeyPatch, lamb: float, lame: float, expected: list[float]
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(SubspaceMemory, "extend", lambda self, moment, threshold: seen.append(threshold))
    method = sequences.make("inflora", rank=3, lamb=lamb, lame=lame)
    sequences.learn(method, 3, n_tasks=5)
    assert seen[::2] == pytest.approx(expected)
    assert seen[::2] == seen[1::2]


def test_a_new_task_starts_from_the_inherited_function_and_the_end_keeps_it(sequences: Any) -> None:
    method = sequences.make("inflora", rank=4)
    sequences.learn(method, 1)
    inherited = sequences.logits(method)
    data = sequences.begin(method, 2)
    torch.testing.assert_close(sequences.logits(method)[:, :2], inherited)
    sequences.train(method, data)
    trained = sequences.logits(method)
    assert not torch.allclose(trained[:, :2], inherited, atol=1e-4)
    method.end_task(data)
    torch.testing.assert_close(sequences.logits(method), trained, atol=1e-5, rtol=0)


def test_effective_weight_is_the_original_plus_all_branches(sequences: Any) -> None:
    method = sequences.make("inflora", rank=4)
    deltas = {key: np.zeros((48, 48)) for key in method.adapters}
    for number in (1, 2):
        data = sequences.begin(method, number)
        sequences.train(method, data)
        for key, branch in method.adapters.items():
            down, up = branch.factors()
            deltas[key] += up.detach().double().numpy() @ down.double().numpy()
        method.end_task(data)
    for block, layer in enumerate(method.layers):
        change = (layer.effective - layer.weight).numpy()
        expected = np.concatenate([np.zeros((48, 48)), deltas[f"{block}_k"], deltas[f"{block}_v"]])
        np.testing.assert_allclose(change, expected, atol=1e-6)
        assert np.abs(expected).max() > 1e-3


def test_says_when_the_space_runs_out_and_goes_on_with_less(sequences: Any, caplog: pytest.LogCaptureFixture) -> None:
    method = sequences.make("inflora", rank=30, lamb=1.0)
    with caplog.at_level(logging.WARNING):
        sequences.learn(method, 1)
        assert caplog.text == ""
        data = sequences.begin(method, 2)
    assert "task 2 of 3" in caplog.text
    assert "rank 30" in caplog.text
    assert method.diagnostics()["rank"] < 30
    for space in method.spaces:
        assert space.down.shape[0] == min(30, space.memory.n_free)
    sequences.train(method, data)
    method.end_task(data)
    sequences.begin(method, 3)
    assert method.diagnostics().items() >= {"rank": 0, "free_dimensions": 0}.items()
    assert set(sequences.trainable(method)) == {"head.weight", "head.bias"}


def test_plain_gpm_always_stores_the_used_space(sequences: Any) -> None:
    states = {}
    for memory in ("gpm", "dualgpm"):
        method = sequences.make("inflora", rank=4, memory=memory, lamb=0.9999)
        sequences.learn(method, 2)
        states[memory] = [(bool(s.memory.retains), s.memory.n_free, used(s.memory)) for s in method.spaces]
    for (plain, n_plain, used_plain), (dual, n_dual, used_dual) in zip(states["gpm"], states["dualgpm"], strict=True):
        assert (plain, dual) == (False, n_dual < 24)
        assert n_plain == n_dual
        np.testing.assert_allclose(used_plain, used_dual, atol=1e-3)
    assert any(dual for dual, _, _ in states["dualgpm"])


def test_rank_above_the_width_is_refused(sequences: Any) -> None:
    with pytest.raises(UserError, match=r"method\.rank: found 49, .* 1 to 48"):
        sequences.make("inflora", rank=49)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"lamb": 1.5}, {"lame": 0.0}, {"memory": "dual"}, {"head_lr": -1.0}])
def test_values_without_sense_are_refused(sequences: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="InfLoraConfig"):
        sequences.make("inflora", **wrong)


@pytest.mark.parametrize("config", [{"rank": 4}, {"rank": 30, "lamb": 0.999}, {"rank": 4, "memory": "gpm"}])
def test_resumes(sequences: Any, config: dict[str, Any]) -> None:
    sequences.check_resume("inflora", **config)


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("inflora", rank=4)


def test_merged_is_the_same_function(sequences: Any) -> None:
    sequences.check_merged("inflora", rank=4)
