"""Sequential fine-tuning of all weights."""

from typing import Any

import torch
from torch.nn import functional as F


def test_every_weight_of_the_backbone_and_the_current_head_train(sequences: Any) -> None:
    method = sequences.make("finetune")
    sequences.begin(method, 1)
    expected = {name for name, _ in method.named_parameters()}
    assert set(sequences.trainable(method)) == expected
    backbone = sum(value.numel() for value in method.backbone.parameters())
    assert sum(sequences.trainable(method).values()) == backbone + 2 * 48 + 2


def test_all_of_them_move(sequences: Any) -> None:
    method = sequences.make("finetune")
    before = {name: value.clone() for name, value in method.backbone.named_parameters()}
    sequences.learn(method, 1)
    still = [name for name, value in method.backbone.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def test_loss_is_the_cross_entropy_of_the_current_classes_only(sequences: Any) -> None:
    method = sequences.make("finetune")
    sequences.learn(method, 1)
    data = sequences.begin(method, 2)
    expected = F.cross_entropy(method(data.images)[:, 2:], data.labels - 2)
    torch.testing.assert_close(method.loss(data.images, data.labels), expected)


def test_state_holds_the_backbone(sequences: Any) -> None:
    method = sequences.make("finetune")
    assert "backbone.blocks.1.mlp.fc1.weight" in method.state_dict()


def test_resumes(sequences: Any) -> None:
    sequences.check_resume("finetune")


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("finetune")


def test_merged_is_the_same_function(sequences: Any) -> None:
    sequences.check_merged("finetune")
