"""RanPAC against numpy's least squares over all images at once."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.ranpac import RIDGES, ridge_solutions

N_CLASSES = 2
"""Of a task."""
WIDTH = 30
"""Of the projection: more than a task's images, so that HᵀH is singular until the third task."""


def by_lstsq(rows: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """argmin ‖Y - H W‖² + λ‖W‖² as a plain least-squares problem: rows √λ I below H, zeros below Y."""
    width = rows.shape[1]
    left = np.concatenate([rows, np.sqrt(ridge) * np.eye(width)])
    right = np.concatenate([targets, np.zeros((width, targets.shape[1]))])
    solution: np.ndarray = np.linalg.lstsq(left, right, rcond=None)[0]
    return solution


def images_of(sequences: Any, tasks: range, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    data = [sequences.data(sequences.task(number, **options)) for number in tasks]
    return torch.cat([each.images for each in data]), torch.cat([each.labels for each in data])


def written_out(method: Any, images: torch.Tensor) -> np.ndarray:
    """H of the images, in numpy."""
    with torch.no_grad():
        features = method.backbone(images).double().numpy()
    h: np.ndarray = np.maximum(features @ method.projection.double().numpy(), 0)
    return h


@settings(max_examples=40)
@given(
    n=st.integers(1, 40),
    width=st.integers(1, 20),
    classes=st.integers(1, 5),
    power=st.integers(-3, 6),
    seed=st.integers(0, 10**6),
)
def test_ridge_solution_is_that_of_numpys_lstsq(n: int, width: int, classes: int, power: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, targets = draw.normal(size=(n, width)), np.eye(classes)[draw.integers(classes, size=n)]
    gram, cross = torch.from_numpy(rows.T @ rows), torch.from_numpy(rows.T @ targets)
    (found,) = ridge_solutions(gram, cross, [10.0**power])
    np.testing.assert_allclose(found, by_lstsq(rows, targets, 10.0**power), rtol=1e-6, atol=1e-8)


def test_smallest_ridge_of_a_singular_gram_is_the_solution_of_least_norm() -> None:
    draw = np.random.default_rng(0)
    rows, targets = draw.normal(size=(5, 12)), draw.normal(size=(5, 2))
    (found,) = ridge_solutions(torch.from_numpy(rows.T @ rows), torch.from_numpy(rows.T @ targets), [RIDGES[0]])
    np.testing.assert_allclose(found, np.linalg.lstsq(rows, targets, rcond=None)[0], atol=1e-6)


@pytest.mark.parametrize("shared_head", [False, True])
def test_after_each_task_the_head_is_the_ridge_solution_over_all_images_so_far(
    sequences: Any, shared_head: bool
) -> None:
    method = sequences.make("ranpac", projection=WIDTH, ridge=3.0)
    for number in (1, 2, 3):
        data = sequences.begin(method, number, shared_head=shared_head)
        method.end_task(data)
        images, labels = images_of(sequences, range(1, number + 1), shared_head=shared_head)
        targets = np.eye(method.head.n_classes)[labels.numpy()]
        expected = by_lstsq(written_out(method, images), targets, 3.0)
        found = torch.cat([method.head.past_weight, method.head.weight.detach()]).T
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        logits = written_out(method, images) @ expected
        with torch.no_grad():
            np.testing.assert_allclose(method(images), logits, rtol=1e-3, atol=1e-4)
    assert method.head.n_classes == (N_CLASSES if shared_head else 3 * N_CLASSES)


def test_the_ridge_is_that_of_least_squared_error_on_the_held_out_part_of_the_task(sequences: Any) -> None:
    method = sequences.make("ranpac", projection=WIDTH)
    chosen = []
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        method.end_task(data)
        past, past_labels = images_of(sequences, range(1, number)) if number > 1 else (data.images[:0], data.labels[:0])
        held = round(0.2 * data.n_samples)  # the first ones, as the tests' task data have it
        fit = written_out(method, torch.cat([past, data.images[held:]]))
        eye = np.eye(method.head.n_classes)
        targets = eye[torch.cat([past_labels, data.labels[held:]]).numpy()]
        check, truth = written_out(method, data.images[:held]), eye[data.labels[:held].numpy()]
        errors = [np.square(check @ by_lstsq(fit, targets, ridge) - truth).sum() for ridge in RIDGES]
        assert float(method.ridge) == RIDGES[int(np.argmin(errors))]
        assert method.diagnostics() == {"ridge": float(method.ridge)}
        chosen.append(float(method.ridge))
    assert min(chosen) > RIDGES[0], "there is noise to fit, so that the smallest is not the best"


def test_old_rows_move_with_each_task_though_no_old_image_is_seen(sequences: Any) -> None:
    method = sequences.make("ranpac", projection=WIDTH, ridge=1.0)
    method.end_task(sequences.begin(method, 1))
    old = method.head.weight.detach().clone()
    method.end_task(sequences.begin(method, 2))
    assert method.head.past_weight.shape == old.shape
    assert not torch.allclose(method.head.past_weight, old)


def test_two_processes_have_the_statistics_and_the_solution_of_one(sequences: Any, peers: Any) -> None:
    def learn(rank: int, peers: Any) -> Any:
        method = sequences.make("ranpac", projection=WIDTH)
        for number in (1, 2):
            task = sequences.task(number)
            data = sequences.data(task, rank=rank, peers=peers, batch_size=5)
            method.begin_task(task, data)
            method.end_task(data)
        return method

    one = learn(0, None).state_dict()
    both = [method.state_dict() for method in peers.run(lambda rank: learn(rank, peers))]
    assert float(one["gram"].abs().sum()) > 0
    for name, value in one.items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], value, rtol=1e-4, atol=1e-4)


def test_nothing_trains_and_what_is_stored_is_known(sequences: Any) -> None:
    method = sequences.make("ranpac", projection=WIDTH)
    for number in (1, 2):
        data = sequences.begin(method, number)
        assert sequences.trainable(method) == {}
        method.end_task(data)
    sizes = {name: tuple(value.shape) for name, value in method.state_dict().items() if not name.startswith("head.")}
    assert sizes == {"projection": (48, WIDTH), "gram": (WIDTH, WIDTH), "cross": (WIDTH, 2 * N_CLASSES), "ridge": ()}


def test_projection_is_thirteen_times_as_wide_as_the_backbone_unless_it_is_given(sequences: Any) -> None:
    assert sequences.make("ranpac").gram.shape == (13 * 48, 13 * 48)


def test_a_task_of_a_single_image_has_a_solution(sequences: Any) -> None:
    method = sequences.make("ranpac", projection=WIDTH)
    data = sequences.begin(method, 1)
    data.images, data.labels, data.n_samples = data.images[:1], data.labels[:1], 1
    method.end_task(data)
    assert method.head.weight.isfinite().all()


@pytest.mark.parametrize("wrong", [{"projection": -1}, {"ridge": 0.0}, {"ridge": -1.0}])
def test_values_without_sense_are_refused(sequences: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RanPacConfig"):
        sequences.make("ranpac", **wrong)


def test_resumes(sequences: Any) -> None:
    sequences.check_resume("ranpac", projection=WIDTH)
