"""HiDe-Prompt: its stages, the ensemble of prompts and the contrastive loss, written out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from baselines.hide_prompt import contrast
from fmlora_dist.errors import UserError

SHORT = {"identity_epochs": 4, "align_epochs": 5, "length": 3}


def test_contrast_is_the_written_out_loss() -> None:
    features, centroids = torch.randn(3, 5), torch.randn(4, 5)
    counts = torch.tensor([2.0, 1.0, 0.0, 7.0])
    expected = []
    for h in features.double().numpy():
        own = np.exp(h @ h / 0.8)
        others = sum(np.exp(h @ mu / 0.8) for mu in centroids.double().numpy()[[0, 1, 3]])
        expected.append(-np.log(own / (own + others)))
    assert contrast(features, centroids, counts > 0, 0.8).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_contrast_pushes_features_away_from_earlier_classes() -> None:
    feature = torch.tensor([[1.0, 0.1]], requires_grad=True)
    contrast(feature, torch.tensor([[0.0, 1.0]]), torch.ones(1, dtype=torch.bool), 0.8).backward()
    assert feature.grad is not None and feature.grad[0, 1] > 0, "a step against it leads away from the centroid"


def test_the_loss_has_the_weighted_contrast_from_the_second_task_on(sequences: Any) -> None:
    losses: dict[int, list[float]] = {1: [], 2: []}
    for weight in (0.0, 2.0):
        method = sequences.make("hide_prompt", contrast_weight=weight, **SHORT)
        for number in losses:
            data = sequences.begin(method, number)
            losses[number].append(method.loss(data.images, data.labels).item())
            if number == 1:
                method.end_task(data)
    assert losses[1][0] == losses[1][1]
    features = method.prompted(method.embed(data.images), method.mixed().expand(12, *method.prompt.shape[1:]))
    earlier = method.prompted_classes
    assert earlier.counts.sum() == 12
    pushed = contrast(features, earlier.means.flatten(0, 1), earlier.counts.flatten() > 0, 0.8).item()
    assert losses[2][1] - losses[2][0] == pytest.approx(2 * pushed, rel=1e-3, abs=1e-4)


def test_where_tasks_share_their_classes_an_image_is_held_apart_from_other_classes_only(sequences: Any) -> None:
    method = sequences.make("hide_prompt", contrast_weight=1.0, **SHORT)
    data = sequences.begin(method, 1)
    method.end_task(data)
    earlier = method.prompted_classes
    own = data.labels == 0
    features = method.prompted(method.embed(data.images), method.mixed().expand(12, *method.prompt.shape[1:]))[own]
    plain = F.cross_entropy(method.head.current(features), data.labels[own]).item()
    others = earlier.means[1:].flatten(0, 1)
    pushed = contrast(features, others, earlier.counts[1:].flatten() > 0, 0.8).item()
    assert method.loss(data.images[own], data.labels[own]).item() == pytest.approx(plain + pushed, rel=1e-3)


def test_a_prompt_starts_from_the_one_before_and_has_a_share_of_all_earlier_ones(sequences: Any) -> None:
    method = sequences.make("hide_prompt", ensemble=0.25, **SHORT)
    used: list[np.ndarray] = []
    for number in (1, 2, 3):
        before = method.prompt.detach().clone()
        data = sequences.begin(method, number)
        if number > 1:
            assert torch.equal(method.prompt, before)
        sequences.train(method, data)
        method.end_task(data)
        own = method.prompt.detach().numpy()[0].copy()
        used.append(own if number == 1 else 0.75 * own + 0.25 * np.mean(used, axis=0))
        np.testing.assert_allclose(method.mixed().detach().numpy()[0], used[-1], atol=1e-6)
    np.testing.assert_allclose(method.past_prompts.numpy(), used[:2], atol=1e-6)


def test_statistics_are_those_of_plain_and_of_prompted_features(sequences: Any) -> None:
    method = sequences.make("hide_prompt", centroids=1, **SHORT)
    data = sequences.begin(method, 1)
    sequences.train(method, data)
    method.end_task(data)
    with torch.no_grad():
        plain = method.query(method.embed(data.images))
        prompted = method.prompted(method.embed(data.images), method.mixed().expand(12, *method.prompt.shape[1:]))
    for features, classes in ((plain, method.plain_classes), (prompted, method.prompted_classes)):
        for label in (0, 1):
            own = features[data.labels == label].double().numpy()
            np.testing.assert_allclose(classes.means[label, 0], own.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(classes.variances[label, 0], own.var(axis=0), atol=1e-5)


def test_a_task_identity_is_learned_and_remembered(sequences: Any) -> None:
    method = sequences.make("hide_prompt", identity_lr=5e-3, identity_epochs=20, align_lr=0.05)
    sequences.learn(method, 3)
    right = []
    for number in (1, 2, 3):
        images = sequences.data(sequences.task(number)).images
        slots = method.identity(method.query(method.embed(images))).argmax(dim=1)
        right.append((method.slot_tasks[slots] == number - 1).float().mean().item())
    assert min(right) > 0.7, "of three tasks, on their training images"


def test_each_image_gets_the_prompt_of_its_slots_task(sequences: Any) -> None:
    method = sequences.make("hide_prompt", **SHORT)
    sequences.learn(method, 3)
    images = torch.cat([sequences.data(sequences.task(number)).images[:2] for number in (1, 2, 3)])
    slots = method.identity(method.query(method.embed(images))).argmax(dim=1)
    prompts = torch.cat([method.past_prompts, method.mixed()])
    with torch.no_grad():
        found = method.features(images)
        for image, slot, feature in zip(images, slots, found, strict=True):
            own = prompts[slot // 2][None]  # two classes a task
            torch.testing.assert_close(feature, method.prompted(method.embed(image[None]), own)[0], atol=1e-5, rtol=0)


def test_the_alignment_moves_all_rows_and_none_without_epochs(sequences: Any) -> None:
    for epochs in (0, 5):
        method = sequences.make("hide_prompt", **{**SHORT, "align_epochs": epochs})
        sequences.learn(method, 1)
        data = sequences.begin(method, 2)
        sequences.train(method, data)
        before = [row.clone() for row in method.head.rows()]
        method.end_task(data)
        assert [torch.equal(*pair) for pair in zip(before, method.head.rows(), strict=True)] == [epochs == 0] * 2
        assert method.head.start == 2 and method.head.n_classes == 4


def test_alignment_lowers_the_loss_over_all_classes(sequences: Any) -> None:
    method = sequences.make("hide_prompt", **{**SHORT, "align_epochs": 0})
    sequences.learn(method, 3)
    features, slots = method.prompted_classes.sample(50, torch.Generator().manual_seed(1))
    before = torch.nn.functional.cross_entropy(method.head(features), slots).item()
    object.__setattr__(method.config, "align_epochs", 20)
    method._align_head(sequences.data(sequences.task(3)))
    assert torch.nn.functional.cross_entropy(method.head(features), slots).item() < before - 0.1


def test_domains_that_share_a_head_have_slots_of_their_own(sequences: Any) -> None:
    method = sequences.make("hide_prompt", **SHORT)
    sequences.learn(method, 3, shared_head=True)
    assert method.head.n_classes == 2 and method.identity.head.n_classes == 6
    assert method.slot_labels.tolist() == [0, 1] * 3
    assert method.slot_tasks.tolist() == [0, 0, 1, 1, 2, 2]
    assert method.prompted_classes.counts.sum(dim=1).tolist() == [6.0] * 6


def test_a_block_that_is_not_there_is_refused(sequences: Any) -> None:
    with pytest.raises(UserError, match=r"method\.layers: found 2, expected different numbers from 0 to 1"):
        sequences.make("hide_prompt", layers=(2,))
