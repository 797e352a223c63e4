"""The frozen backbone with a head."""

from typing import Any

import torch


def test_only_the_head_trains(sequences: Any) -> None:
    method = sequences.make("frozen")
    for number in (1, 2):
        sequences.begin(method, number)
        assert sequences.trainable(method) == {"head.weight": 2 * 48, "head.bias": 2}


def test_features_never_change(sequences: Any) -> None:
    method = sequences.make("frozen")
    images = sequences.data(sequences.task(1)).images
    before = method.features(images)
    sequences.learn(method, 3)
    assert torch.equal(method.features(images), before)


def test_state_is_the_head_alone(sequences: Any) -> None:
    method = sequences.make("frozen")
    assert {name.split(".")[0] for name in method.state_dict()} == {"head"}


def test_resumes(sequences: Any) -> None:
    sequences.check_resume("frozen")


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("frozen")


def test_shared_head_keeps_training(sequences: Any) -> None:
    method = sequences.make("frozen")
    sequences.learn(method, 1, shared_head=True)
    before = method.head.weight.detach().clone()
    data = sequences.begin(method, 2, shared_head=True)
    assert method.head.n_classes == 2
    assert torch.equal(method.head.weight, before)
    sequences.train(method, data)
    assert not torch.equal(method.head.weight, before)


def test_merged_is_the_same_function(sequences: Any) -> None:
    sequences.check_merged("frozen")
