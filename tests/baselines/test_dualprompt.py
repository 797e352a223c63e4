"""DualPrompt: which prompts act where, and how an image finds its expert."""

from typing import Any

import numpy as np
import pytest
import torch

from fmlora_dist.errors import UserError
from fmlora_dist.vit.prefix import Prefix


def test_in_a_usual_vit_the_first_two_blocks_are_general_and_the_next_three_expert(sequences: Any) -> None:
    for depth, general, expert in ((1, (), (0,)), (2, (0,), (1,)), (3, (0,), (1, 2)), (6, (0, 1), (2, 3, 4))):
        method = sequences.make("dualprompt", depth=depth)
        assert (method.general_layers, method.expert_layers) == (general, expert)
    method = sequences.make("dualprompt", depth=6, general_layers=(5,), expert_layers=(0, 3))
    assert (method.general_layers, method.expert_layers) == ((5,), (0, 3))


def test_a_vit_of_one_block_trains_its_expert_alone(sequences: Any) -> None:
    method = sequences.make("dualprompt", depth=1)
    sequences.begin(method, 1)
    assert set(sequences.trainable(method)) == {"expert", "key", "head.weight", "head.bias"}


def test_each_block_has_its_own_prompts(sequences: Any) -> None:
    method = sequences.make("dualprompt", depth=3, general_length=2, expert_length=3)
    data = sequences.begin(method, 1)
    images = data.images[:2]
    seen: dict[int, Any] = {}
    for number, attention in method._attentions[0].items():
        attention.register_forward_pre_hook(lambda module, _, number=number: seen.update({number: module.prefix}))
    method.loss(images, data.labels[:2])
    expected = {0: method.general[0], 1: method.expert[0, 0], 2: method.expert[0, 1]}
    assert seen.keys() == expected.keys()
    for number, prompt in expected.items():
        prefix = seen[number]
        assert isinstance(prefix, Prefix)
        for image in range(2):
            assert torch.equal(prefix.keys[image], prompt[0]) and torch.equal(prefix.values[image], prompt[1])


def test_an_image_takes_the_expert_of_the_nearest_key(sequences: Any) -> None:
    method = sequences.make("dualprompt")
    sequences.learn(method, 3)
    queries = torch.randn(20, 48)
    keys = torch.cat([method.past_keys, method.key]).detach().numpy()
    assert keys.shape == (3, 48)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    expected = (queries.numpy() @ unit.T).argmax(axis=1)
    assert method.choose(queries).tolist() == expected.tolist()
    assert len(set(expected)) == 3


def test_there_are_as_many_experts_as_tasks_and_old_ones_stay(sequences: Any) -> None:
    method = sequences.make("dualprompt")
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        old, old_keys = method.past_experts.clone(), method.past_keys.clone()
        general = method.general.detach().clone()
        assert len(old) == len(old_keys) == number - 1
        sequences.train(method, data)
        method.end_task(data)
        assert torch.equal(method.past_experts, old) and torch.equal(method.past_keys, old_keys)
        assert not torch.equal(method.general, general), "all tasks train it"


def test_the_loss_pulls_the_tasks_own_key(sequences: Any) -> None:
    losses = []
    for weight in (0.0, 0.5):
        method = sequences.make("dualprompt", key_weight=weight)
        sequences.learn(method, 1)
        data = sequences.begin(method, 2)
        losses.append(method.loss(data.images, data.labels).item())
    queries, key = method.query(method.embed(data.images)).numpy(), method.key.detach().numpy()[0]
    cosines = queries @ key / np.linalg.norm(queries, axis=1) / np.linalg.norm(key)
    assert losses[1] - losses[0] == pytest.approx(0.5 * (1 - cosines.mean()), abs=1e-5)


def test_the_batchwise_choice_is_one_for_all_and_says_so(sequences: Any) -> None:
    method = sequences.make("dualprompt", paper_compat="batchwise_prompt")
    sequences.learn(method, 3)
    alone = sequences.make("dualprompt")
    alone.load_state_dict(method.state_dict())
    queries = torch.randn(15, 48)
    votes = alone.choose(queries).bincount(minlength=3)
    assert method.choose(queries).tolist() == [int(votes.argmax())] * 15
    assert method.config.predictions == "dependent on other test images (paper_compat)"


@pytest.mark.parametrize("wrong", [{"expert_layers": (1,)}, {"general_layers": (0,), "expert_layers": (0, 1)}])
def test_layers_without_sense_are_refused(sequences: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="general_layers and expert_layers must"):
        sequences.make("dualprompt", **wrong)


def test_a_block_that_is_not_there_is_refused(sequences: Any) -> None:
    with pytest.raises(UserError, match=r"found 0, 4, expected different numbers from 0 to 1.*has 2 blocks"):
        sequences.make("dualprompt", general_layers=(0,), expert_layers=(4,))
