"""LoRA on all tasks at once."""

from typing import Any

import torch

from fmlora_dist.method import Task


def test_says_that_it_is_joint(sequences: Any) -> None:
    assert sequences.make("joint").info.joint
    assert not sequences.make("lora").info.joint


def test_is_lora_on_one_task_with_all_classes(sequences: Any) -> None:
    task = Task(number=1, n_tasks=3, start=0, stop=6, shared_head=False)
    parts = [sequences.data(sequences.task(number)) for number in (1, 2, 3)]
    data = type(parts[0])(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    methods = [sequences.make(name, rank=4) for name in ("joint", "lora")]
    for method in methods:
        method.begin_task(task, data)
        sequences.train(method, data)
        method.end_task(data)
    assert methods[0](data.images).shape == (36, 6)
    assert torch.equal(methods[0](data.images), methods[1](data.images))
    lora = 2 * 2 * 2 * 4 * 48
    assert sum(sequences.trainable(methods[0]).values()) == lora + 6 * 48 + 6


def test_resumes(sequences: Any) -> None:
    sequences.check_resume("joint", rank=4)


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("joint", rank=4)


def test_merged_is_the_same_function(sequences: Any) -> None:
    sequences.check_merged("joint", rank=4)
