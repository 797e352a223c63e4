"""SD-LoRA-RR: the ranks of its tasks, and what is stored of them."""

from typing import Any

import pytest
import torch

RANKS = (10, 10, 10, 10, 8, 8, 8, 8, 6, 6, 6)


def test_ranks_and_stored_sizes_task_by_task(sequences: Any) -> None:
    method = sequences.make("sdlora_rr")
    stored = 0
    for number, rank in enumerate(RANKS, start=1):
        data = sequences.begin(method, number, n_tasks=len(RANKS))
        assert method.diagnostics()["rank"] == rank
        assert {tuple(each.down.shape) for each in method.each()} == {(rank, 48)}
        assert {tuple(each.up.shape) for each in method.each()} == {(48, rank)}
        method.end_task(data)
        stored += rank
        assert {tuple(each.past_down.shape) for each in method.each()} == {(stored, 48)}
        assert {tuple(each.past_up.shape) for each in method.each()} == {(48, stored)}
    assert method.magnitudes.shape == (4, len(RANKS))


def test_with_ranks_that_stay_it_is_sdlora(sequences: Any) -> None:
    methods = [sequences.make("sdlora_rr", rank=3, later_ranks=(3,)), sequences.make("sdlora", rank=3)]
    for method in methods:
        sequences.learn(method, 2)
    one, other = (method.state_dict() for method in methods)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_newest_direction_past_magnitudes_and_head_train(sequences: Any) -> None:
    method = sequences.make("sdlora_rr", rank=3, later_ranks=(2,))
    for number, rank in ((1, 3), (2, 2)):
        data = sequences.begin(method, number)
        factors = {f"adapters.{b}_{p}.{side}": rank * 48 for b in (0, 1) for p in "qv" for side in ("down", "up")}
        magnitudes = {"magnitudes": 4 * (number - 1)} if number > 1 else {}
        assert sequences.trainable(method) == factors | magnitudes | {"head.weight": 96, "head.bias": 2}
        sequences.train(method, data)
        method.end_task(data)


@pytest.mark.parametrize("variant", ["default", "official", "paper"])
def test_resumes(sequences: Any, variant: str) -> None:
    sequences.check_resume("sdlora_rr", rank=3, later_ranks=(2, 1), variant=variant)


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("sdlora_rr", rank=3)


def test_merged_is_the_same_function(sequences: Any) -> None:
    sequences.check_merged("sdlora_rr", rank=3, later_ranks=(2,))
