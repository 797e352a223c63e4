"""The head that grows by each task's classes."""

import pytest
import torch
from torch.nn import functional as F

from fmlora_dist.method import Task
from fmlora_dist.vit.head import GrowingHead

FEATURES = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def task(number: int, start: int, stop: int, *, shared: bool = False) -> Task:
    return Task(number=number, n_tasks=4, start=start, stop=stop, shared_head=shared)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_grows_by_the_tasks_classes_and_keeps_the_earlier_logits() -> None:
    head = GrowingHead(8)
    old = torch.empty(5, 0)
    for number, (start, stop) in enumerate([(0, 3), (3, 4), (4, 9)], start=1):
        head.begin_task(task(number, start, stop), generator(number))
        assert (head.start, head.n_classes) == (start, stop)
        assert head.current(FEATURES).shape == (5, stop - start)
        logits = head(FEATURES)
        assert logits.shape == (5, stop)
        torch.testing.assert_close(logits[:, :start], old, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits[:, start:], head.current(FEATURES), atol=1e-6, rtol=0)
        with torch.no_grad():
            head.bias += 1.0
        old = head(FEATURES).detach()


def test_only_the_current_rows_train() -> None:
    head = GrowingHead(8)
    head.begin_task(task(1, 0, 2), generator())
    head.begin_task(task(2, 2, 5), generator(1))
    names = {name: value.shape for name, value in head.named_parameters()}
    assert names == {"weight": (3, 8), "bias": (3,)}
    past = head.past_weight.clone(), head.past_bias.clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    F.cross_entropy(head(FEATURES), torch.tensor([0, 1, 2, 3, 4])).backward()
    before = head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(head.past_weight, past[0]) and torch.equal(head.past_bias, past[1])
    assert (head.weight != before).any(dim=1).all()
    assert not head.past_weight.requires_grad


def test_new_rows_are_normal_with_std_002_and_bias_zero() -> None:
    head = GrowingHead(512)
    head.begin_task(task(1, 0, 100), generator())
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(head.weight.mean().item()) < 1e-3
    assert not head.bias.any()


def test_rows_are_a_function_of_the_generator() -> None:
    drawn = []
    for seed in (0, 0, 1):
        head = GrowingHead(8)
        head.begin_task(task(1, 0, 2), generator(seed))
        drawn.append(head.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_shared_head_trains_the_same_rows_in_every_task() -> None:
    head = GrowingHead(8)
    head.begin_task(task(1, 0, 3, shared=True), generator())
    with torch.no_grad():
        head.weight += 1.0
    before, parameter = head.weight.detach().clone(), head.weight
    head.begin_task(task(2, 0, 3, shared=True), generator(1))
    assert head.weight is parameter and torch.equal(head.weight, before)
    assert (head.start, head.n_classes) == (0, 3)
    assert head.past_weight.shape == (0, 8)
    assert torch.equal(head(FEATURES), head.current(FEATURES))


def test_gap_in_the_labels_is_an_error() -> None:
    head = GrowingHead(8)
    head.begin_task(task(1, 0, 2), generator())
    with pytest.raises(ValueError, match="task 2 starts at class 3, the head has 2"):
        head.begin_task(task(2, 3, 5), generator())
