"""What holds for all methods that prompt a frozen ViT."""

from typing import Any

import pytest
import torch

SHORT = {"hide_prompt": {"identity_epochs": 2, "align_epochs": 3}}
TRAINS = {
    "l2p": {"prompts": 10 * 5 * 48, "keys": 10 * 48},
    "dualprompt": {"general": 2 * 5 * 48, "expert": 2 * 20 * 48, "key": 48},
    "coda_prompt": {"components": 2 * 16 * 8 * 48, "keys": 2 * 16 * 48, "attention": 2 * 16 * 48},
    "hide_prompt": {"prompt": 2 * 2 * 20 * 48},
}
METHODS = pytest.mark.parametrize("name", TRAINS)


@METHODS
def test_prompts_and_head_train_and_nothing_else(name: str, sequences: Any) -> None:
    method = sequences.make(name, **SHORT.get(name, {}))
    for number in (1, 2):
        data = sequences.begin(method, number)
        assert sequences.trainable(method) == TRAINS[name] | {"head.weight": 96, "head.bias": 2}
        sequences.train(method, data)
        method.end_task(data)


@METHODS
def test_every_step_reaches_all_that_trains(name: str, sequences: Any) -> None:
    """DeepSpeed's ZeRO waits for a gradient of each parameter, and no process may be the only one without."""
    method = sequences.make(name, **SHORT.get(name, {}))
    for number in (1, 2):
        data = sequences.begin(method, number)
        method.select_trainable()
        for images, labels in ((data.images, data.labels), (data.images[:1], data.labels[:1])):
            method.loss(images, labels).backward()
            missing = [key for key, value in method.named_parameters() if value.requires_grad and value.grad is None]
            assert missing == []
            method.zero_grad(set_to_none=True)
        method.end_task(data)


@METHODS
def test_the_backbone_stays_as_it_was(name: str, sequences: Any) -> None:
    method = sequences.make(name, **SHORT.get(name, {}))
    before = {key: value.clone() for key, value in method.backbone.state_dict().items()}
    sequences.learn(method, 2)
    assert all(torch.equal(value, before[key]) for key, value in method.backbone.state_dict().items())
    assert not any(key.startswith("backbone.") for key in method.state_dict())


@METHODS
def test_a_prediction_is_the_same_whatever_the_batch(name: str, sequences: Any) -> None:
    method = sequences.make(name, **SHORT.get(name, {}))
    sequences.learn(method, 3)
    images = torch.cat([sequences.data(sequences.task(number)).images for number in (1, 2, 3)])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = method(images)
        for size in (1, 7):
            apart = torch.empty_like(together)
            for batch in order.split(size):
                apart[batch] = method(images[batch])
            torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)
            assert torch.equal(apart.argmax(dim=1), together.argmax(dim=1))


@METHODS
def test_two_processes_learn_what_one_learns(name: str, sequences: Any, peers: Any) -> None:
    def learn(**options: Any) -> dict[str, torch.Tensor]:
        method = sequences.make(name, **SHORT.get(name, {}))
        for number in (1, 2):
            task = sequences.task(number)
            data = sequences.data(task, batch_size=5, **options)  # shares of 3 and 2, and the last of 1 and 1
            method.begin_task(task, data)
            parameters = [value for group in method.select_trainable() for value in group.params]
            optimizer = torch.optim.SGD(parameters, lr=0.05)
            for images, labels, weight in data.steps(4):
                (method.loss(images, labels) * weight).backward()
                data.average_gradients(parameters)
                optimizer.step()
                optimizer.zero_grad()
            method.end_task(data)
        state: dict[str, torch.Tensor] = method.state_dict()
        return state

    alone = learn()
    one, other = peers.run(lambda rank: learn(rank=rank, peers=peers))
    for key, value in alone.items():
        assert torch.equal(one[key], other[key]), key
        torch.testing.assert_close(one[key], value, atol=2e-4, rtol=1e-4)


@METHODS
def test_resumes(name: str, sequences: Any) -> None:
    sequences.check_resume(name, **SHORT.get(name, {}))


@METHODS
def test_old_head_rows_stay_while_a_task_trains(name: str, sequences: Any) -> None:
    sequences.check_old_rows(name, **SHORT.get(name, {}))


@METHODS
def test_domains_may_share_a_head(name: str, sequences: Any) -> None:
    method = sequences.make(name, **SHORT.get(name, {}))
    sequences.learn(method, 3, shared_head=True)
    assert sequences.logits(method).shape == (12, 2)
