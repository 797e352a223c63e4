"""SimpleCIL against class means written out in numpy, in both scenarios and over processes."""

from typing import Any

import numpy as np
import torch

N_CLASSES = 2
"""Of a task."""


def features(method: Any, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = method.features(images).double().numpy()
    return found


def cosines(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    product: np.ndarray = rows @ means.T
    return product / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(means, axis=1)


def test_logits_are_the_cosines_to_the_class_means_times_the_features_length(sequences: Any) -> None:
    method = sequences.make("simplecil")
    means = []
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        method.end_task(data)
        found = features(method, data.images)
        means += [found[data.labels.numpy() == label].mean(axis=0) for label in sorted(set(data.labels.tolist()))]
        rows = features(method, sequences.data(sequences.task(1)).images)
        expected = np.linalg.norm(rows, axis=1)[:, None] * cosines(rows, np.stack(means))
        np.testing.assert_allclose(sequences.logits(method), expected, rtol=1e-4)


def test_with_a_shared_head_the_means_are_over_all_domains_so_far(sequences: Any) -> None:
    method = sequences.make("simplecil")
    sequences.learn(method, 3, shared_head=True)
    tasks = [sequences.data(sequences.task(number, shared_head=True)) for number in (1, 2, 3)]
    found = features(method, torch.cat([data.images for data in tasks]))
    labels = torch.cat([data.labels for data in tasks]).numpy()
    means = np.stack([found[labels == label].mean(axis=0) for label in range(N_CLASSES)])
    assert method.head.n_classes == N_CLASSES
    rows = method.head.weight.detach().numpy()
    np.testing.assert_allclose(rows, means / np.linalg.norm(means, axis=1)[:, None], atol=1e-6)


def test_a_class_that_a_domain_lacks_keeps_its_mean(sequences: Any) -> None:
    method = sequences.make("simplecil")
    sequences.learn(method, 1, shared_head=True)
    before = method.head.weight.detach().clone()
    data = sequences.begin(method, 2, shared_head=True)
    data.images, data.labels = data.images[data.labels == 0], data.labels[data.labels == 0]
    data.n_samples = len(data.labels)
    method.end_task(data)
    assert torch.equal(method.head.weight[1], before[1])
    assert not torch.equal(method.head.weight[0], before[0])


def test_two_processes_have_the_means_of_one(sequences: Any, peers: Any) -> None:
    def learn(rank: int, peers: Any) -> Any:
        method = sequences.make("simplecil")
        for number in (1, 2):
            task = sequences.task(number)
            data = sequences.data(task, rank=rank, peers=peers, batch_size=5)
            method.begin_task(task, data)
            method.end_task(data)
        return method

    one = learn(0, None).state_dict()
    both = [method.state_dict() for method in peers.run(lambda rank: learn(rank, peers))]
    for name, value in one.items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], value, rtol=1e-5, atol=1e-5)


def test_nothing_trains_and_the_backbone_stays(sequences: Any) -> None:
    method = sequences.make("simplecil")
    images = sequences.data(sequences.task(1)).images
    before = features(method, images)
    for number in (1, 2):
        data = sequences.begin(method, number)
        assert sequences.trainable(method) == {}
        method.end_task(data)
    assert np.array_equal(features(method, images), before)


def test_old_rows_stay_and_the_sums_are_those_of_the_present_task_alone(sequences: Any) -> None:
    method = sequences.make("simplecil")
    data = sequences.begin(method, 1)
    method.end_task(data)
    old = method.head.weight.detach().clone()
    data = sequences.begin(method, 2)
    method.end_task(data)
    assert torch.equal(method.head.past_weight, old)
    assert method.sums.shape == (N_CLASSES, 48)


def test_resumes(sequences: Any) -> None:
    sequences.check_resume("simplecil")


def test_resumes_with_a_shared_head(sequences: Any) -> None:
    method, copy = sequences.make("simplecil"), sequences.make("simplecil")
    sequences.learn(method, 1, shared_head=True)
    copy.load_state_dict(method.state_dict())
    for each in (method, copy):
        each.end_task(sequences.begin(each, 2, shared_head=True))
    assert torch.equal(copy.head.weight, method.head.weight)
