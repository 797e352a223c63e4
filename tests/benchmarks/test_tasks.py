"""Tasks: who is in which, and in what order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tasks import TaskSequence
from fmlora_dist.errors import UserError
from made_index import make_index

DIL = {"scenario": "dil", "n_tasks": 2}


def test_the_numpy_rule_gives_the_published_class_order():
    sequence = TaskSequence(make_index(200, 1, 1), scenario="cil", n_tasks=20, order_seed=1993)
    assert sequence[0].classes[:6] == (168, 136, 51, 9, 183, 101)
    assert sequence.order_rule == "numpy"


@st.composite
def class_incremental(draw):
    """An index and options that fit it."""
    n_tasks, step = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    first = draw(st.none() | st.integers(1, 9)) if n_tasks > 1 else None
    n_classes = n_tasks * step if first is None else first + (n_tasks - 1) * step
    index = make_index(n_classes, draw(st.integers(1, 3)), 1, tuple(reversed(range(n_classes))))
    options = {"n_tasks": n_tasks, "first_task": first, "order_seed": draw(st.integers(0, 2**32 - 1))}
    options["class_order"] = draw(st.sampled_from(["numpy", "sorted", "python", "list"]))
    options["exclude_domains"] = draw(st.lists(st.sampled_from(index.domains[1:] or [None]), unique=True))
    return index, {**options, "exclude_domains": [name for name in options["exclude_domains"] if name]}


@given(class_incremental())
def test_class_incremental_tasks_part_classes_and_samples(made):
    index, options = made
    sequence = TaskSequence(index, scenario="cil", **options)
    assert len(sequence) == options["n_tasks"] == len(list(sequence))
    assert [c for task in sequence for c in task.classes] == sequence.class_order.tolist()
    assert sorted(sequence.class_order) == list(range(len(index.classes)))
    kept = [name not in options["exclude_domains"] for name in index.domains]
    for split, name in enumerate(("train", "test")):
        rows = np.concatenate([getattr(task, name) for task in sequence])
        assert sorted(rows) == list(np.flatnonzero((index.split == split) & np.array(kept)[index.domain]))
    sizes = [task.stop - task.start for task in sequence]
    assert len(set(sizes[1:])) <= 1 and sizes[0] == (options["first_task"] or sizes[-1])
    for position, task in enumerate(sequence):
        assert task.number == position + 1 and task.domain is None and task.start == sum(sizes[:position])
        assert task.class_names == tuple(index.classes[c] for c in task.classes)
        for rows in (task.train, task.test):
            assert set(sequence.labels(rows)) == set(range(task.start, task.stop))
            assert [task.classes[label - task.start] for label in sequence.labels(rows)] == list(index.label[rows])


@given(st.integers(1, 5), st.permutations(["domain0", "domain1", "domain2", "domain3"]), st.integers(1, 4), st.data())
def test_domain_incremental_tasks_are_the_kept_domains_in_the_wanted_order(n_classes, names, n_kept, data):
    index = make_index(n_classes, 4, 1)
    heads, given_order = data.draw(st.sampled_from(["shared", "per_domain"])), data.draw(st.booleans())
    kept, excluded = names[:n_kept], names[n_kept:]
    sequence = TaskSequence(
        index,
        scenario="dil",
        n_tasks=n_kept,
        order_seed=0,
        domain_order=kept if given_order else (),
        exclude_domains=excluded,
        heads=heads,
    )
    wanted = kept if given_order else sorted(kept)
    assert [task.domain for task in sequence] == list(sequence.domains) == wanted
    assert sequence.excluded_domains == tuple(sorted(excluded))
    assert sequence.shared_head == (heads == "shared")
    for position, task in enumerate(sequence):
        start = position * n_classes if heads == "per_domain" else 0
        assert (task.start, task.stop, task.classes) == (start, start + n_classes, tuple(range(n_classes)))
        for rows, split in ((task.train, 0), (task.test, 1)):
            of_domain = index.domain == index.domains.index(task.domain)
            assert list(rows) == list(np.flatnonzero(of_domain & (index.split == split)))
            assert list(sequence.labels(rows)) == list(index.label[rows] + start)
    joint = sequence.joint()
    assert joint.stop == n_classes * (n_kept if heads == "per_domain" else 1)
    assert joint.classes == tuple(label % n_classes for label in range(joint.stop))
    assert list(joint.train) == sorted(np.concatenate([task.train for task in sequence]))
    assert set(sequence.labels(joint.train)) == set(range(joint.stop))


@pytest.mark.parametrize("seed", [0, 5])
def test_domain_incremental_tasks_are_the_domains_in_alphabetical_order_whatever_the_seed(seed):
    index = make_index(4, n_domains=3)
    sequence = TaskSequence(index, scenario="dil", n_tasks=3, order_seed=seed)
    assert [task.domain for task in sequence] == ["domain0", "domain1", "domain2"]
    assert sorted(np.concatenate([task.train for task in sequence])) == list(np.flatnonzero(index.split == 0))
    for task in sequence:
        assert (task.start, task.stop, task.classes) == (0, 4, (0, 1, 2, 3))
        assert {index.domains[d] for rows in (task.train, task.test) for d in index.domain[rows]} == {task.domain}
        assert list(sequence.labels(task.test)) == list(index.label[task.test])


@pytest.mark.parametrize(("scenario", "n_tasks"), [("cil", 4), ("dil", 2)])
def test_joint_has_every_sample_once_under_the_same_labels(scenario, n_tasks):
    index = make_index(8)
    sequence = TaskSequence(index, scenario=scenario, n_tasks=n_tasks, order_seed=3)
    joint = sequence.joint()
    assert (joint.start, joint.stop, joint.domain) == (0, 8, None)
    assert list(joint.train) == sorted(np.concatenate([task.train for task in sequence]))
    assert list(joint.test) == sorted(np.concatenate([task.test for task in sequence]))
    assert joint.classes == tuple(sequence.class_order)


def test_the_fingerprint_is_that_of_order_and_partition():
    def fingerprint(n_tasks=4, order_seed=0, scenario="cil", **changes):
        options = {"scenario": scenario, "n_tasks": n_tasks, "order_seed": order_seed, **changes}
        return TaskSequence(make_index(8), **options).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(n_tasks=2), fingerprint(order_seed=1)}) == 3
    assert fingerprint(2, 0, "dil") == fingerprint(2, 1, "dil") != fingerprint(2, 0)
    options = {"first_task": 5}, {"class_order": "sorted"}, {"exclude_domains": ["domain1"]}
    assert len({fingerprint(), *(fingerprint(**changes) for changes in options)}) == 4
    options = {"domain_order": ["domain1", "domain0"]}, {"heads": "per_domain"}
    assert len({fingerprint(2, 0, "dil"), *(fingerprint(2, 0, "dil", **changes) for changes in options)}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_tasks": 7}, ["found 7", "40 classes", "4, 5, 8"]),
        ({"n_tasks": 0}, ["found 0", "40 classes"]),
        ({"n_tasks": -3}, ["found -3"]),
        ({"n_tasks": 3, "scenario": "dil"}, ["found 3", "expected 2", "domain0, domain1", "--tasks 2"]),
        ({"scenario": "cli"}, ["'cli'", "'cil'"]),
        ({"order_seed": -1}, ["order_seed", "-1"]),
        ({"order_seed": 2**32}, ["order_seed"]),
        ({"first_task": 10, "n_tasks": 8}, ["found 8", "divides the 30 classes", "first task of 10", "6, 7, 11"]),
        ({"first_task": 10, "n_tasks": 1}, ["found 1", "2, 3, 4"]),
        ({"first_task": 40}, ["first_task: found 40", "1 to 39", "choose"]),
        ({"first_task": 0}, ["first_task: found 0"]),
        ({"domain_order": ["domain1", "domain0"]}, ["domain_order", "'domain1,domain0'", "'cil'", "--scenario dil"]),
        ({"heads": "per_domain"}, ["dil_head: found 'per_domain'", "'cil'", "--scenario dil"]),
        ({"heads": "perdomain"}, ["dil_head: found 'perdomain'", "did you mean 'per_domain'?"]),
        ({"exclude_domains": ["domain"]}, ["exclude_domains: found 'domain'", "did you mean 'domain"]),
        ({"exclude_domains": ["domain0"] * 2}, ["exclude_domains: found 'domain0' twice"]),
        ({"exclude_domains": ["domain0", "domain1"]}, ["exclude_domains: found all domains", "exclude fewer"]),
        ({**DIL, "class_order": "sorted"}, ["class_order: found 'sorted'", "'dil'", "--scenario cil"]),
        ({**DIL, "first_task": 3}, ["first_task: found '3'", "'dil'"]),
        ({**DIL, "domain_order": ["domain1", "domian0"]}, ["domain_order: found 'domian0'", "did you mean 'domain0'?"]),
        ({**DIL, "domain_order": ["domain1", "domain1"]}, ["domain_order: found 'domain1' twice"]),
        ({**DIL, "domain_order": ["domain1"]}, ["domain_order: found no 'domain0'", "--exclude-domains domain0"]),
        (
            {**DIL, "domain_order": ["domain1", "domain0"], "exclude_domains": ["domain1"]},
            ["domain_order: found 'domain1'", "did you mean 'domain0'?"],
        ),
        ({**DIL, "exclude_domains": ["domain1"]}, ["found 2, expected 1", "(domain0)", "--tasks 1"]),
    ],
)
def test_a_wrong_cut_is_the_users_mistake(options, words):
    with pytest.raises(UserError) as caught:
        TaskSequence(make_index(40), **{"scenario": "cil", "n_tasks": 5, "order_seed": 0, **options})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_task_without_test_images_is_named():
    index = make_index(4)
    index.split[index.label == 2] = 0
    with pytest.raises(UserError, match=r"task \d .*class2.*no test image"):
        TaskSequence(index, scenario="cil", n_tasks=4, order_seed=0)
