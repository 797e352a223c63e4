"""Class statistics against numpy, in one process and in two."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.class_gaussians import ClassGaussians


class Parts:
    """Features of three classes in two clusters each, one far from the other, dealt out to processes."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        sizes = [(7, 5), (20, 4), (3, 3)]
        self.clusters = [
            [draw.normal(40 * place, 1 + c, (n, 4)) for place, n in enumerate(ns)] for c, ns in enumerate(sizes)
        ]
        features = [cluster for clusters in self.clusters for cluster in clusters]
        self.features = torch.from_numpy(np.concatenate(features)).float()
        labels = [np.full(len(cluster), c) for c, clusters in enumerate(self.clusters) for cluster in clusters]
        self.labels = torch.from_numpy(np.concatenate(labels))
        order = torch.from_numpy(draw.permutation(len(self.labels)))
        self.features, self.labels = self.features[order], self.labels[order]

    def learn(self, sequences: Any, k: int, share: slice, **options: Any) -> ClassGaussians:
        data = sequences.data(sequences.task(1), **options)
        made = ClassGaussians(4, k)
        made.extend(self.features[share], self.labels[share], 3, data)
        return made


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def test_one_gaussian_has_the_classes_mean_and_variance(sequences: Any, parts: Parts) -> None:
    made = parts.learn(sequences, 1, slice(None))
    for number, clusters in enumerate(parts.clusters):
        every = np.concatenate(clusters)
        np.testing.assert_allclose(made.means[number, 0], every.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(made.variances[number, 0], every.var(axis=0), rtol=1e-4)
        assert made.counts[number, 0] == len(every)


def test_k_means_finds_clusters_that_lie_apart(sequences: Any, parts: Parts) -> None:
    made = parts.learn(sequences, 2, slice(None))
    for number, clusters in enumerate(parts.clusters):
        order = made.means[number].sum(dim=1).argsort()
        for place, cluster in zip(order, clusters, strict=True):
            np.testing.assert_allclose(made.means[number, place], cluster.mean(axis=0), atol=1e-4)
            np.testing.assert_allclose(made.variances[number, place], cluster.var(axis=0), rtol=1e-3)
            assert made.counts[number, place] == len(cluster)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_two_processes_have_the_statistics_of_one(sequences: Any, peers: Any, parts: Parts, k: int) -> None:
    alone = parts.learn(sequences, k, slice(None)).state_dict()
    # 10 and 32 images: what a process has says nothing about the classes' means.
    shares = (slice(0, 10), slice(10, None))
    both = peers.run(lambda rank: parts.learn(sequences, k, shares[rank], rank=rank, peers=peers).state_dict())
    for name, value in alone.items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], value, atol=1e-5, rtol=1e-5)
    assert alone["counts"].sum() == 42


def test_a_process_without_images_has_the_statistics_of_all(sequences: Any, peers: Any, parts: Parts) -> None:
    shares = (slice(None), slice(0, 0))
    one, other = peers.run(lambda rank: parts.learn(sequences, 2, shares[rank], rank=rank, peers=peers).state_dict())
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_classes_are_added_behind_the_earlier_ones(sequences: Any, parts: Parts) -> None:
    made = parts.learn(sequences, 2, slice(None))
    before = made.means.clone()
    made.extend(torch.ones(3, 4), torch.tensor([0, 0, 0]), 2, sequences.data(sequences.task(2)))
    assert torch.equal(made.means[:3], before)
    assert made.counts.sum(dim=1).tolist() == [12, 24, 6, 3, 0]


def test_samples_have_the_mixtures_moments_and_skip_classes_without_images(sequences: Any, parts: Parts) -> None:
    made = parts.learn(sequences, 2, slice(None))
    made.extend(torch.ones(3, 4), torch.ones(3, dtype=torch.int64), 2, sequences.data(sequences.task(2)))
    features, classes = made.sample(4000, torch.Generator().manual_seed(0))
    assert classes.tolist() == [number for number in (0, 1, 2, 4) for _ in range(4000)]
    for number, clusters in enumerate(parts.clusters):
        drawn: Tensor = features[classes == number]
        every = np.concatenate(clusters)
        np.testing.assert_allclose(drawn.mean(dim=0), every.mean(axis=0), atol=1.5)
        np.testing.assert_allclose(drawn.var(dim=0), every.var(axis=0), rtol=0.1)
    assert torch.equal(features[classes == 4], torch.ones(4000, 4)), "no variance"
