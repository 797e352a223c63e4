"""From an index to a sequence of tasks: which classes or which domain comes when, and which samples belong to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.index import TEST, TRAIN, Index
from benchmarks.orders import class_order as order_classes
from fmlora_dist.errors import UserError, nearest

__all__ = ["HEADS", "SCENARIOS", "TaskSamples", "TaskSequence"]

SCENARIOS = ("cil", "dil")
HEADS = ("shared", "per_domain")

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskSamples:
    """One task: its classes, and the index rows of its images. Labels are positions in the sequence's class order;
    with a head for each domain, C times the number of earlier domains is added."""

    number: int
    """1-based number of the task."""
    classes: tuple[int, ...]
    """The index's class numbers, in the order of the labels start, …, stop - 1."""
    class_names: tuple[str, ...]
    """Names of `classes`."""
    domain: str | None
    """Name of the task's domain; None where all domains are in the task."""
    start: int
    """Label of the first class."""
    stop: int
    """One past the label of the last class."""
    train: Rows
    """(n,) index rows of the training images, ascending."""
    test: Rows
    """(m,) index rows of the test images, ascending."""


class TaskSequence:
    """Tasks 1..N of a benchmark, at positions 0..N-1.

    `cil` (class-incremental): the C classes in the order of a rule (`benchmarks.orders`), cut into N equal parts; or,
    with `first_task` K, into K classes and then (C - K) / (N - 1) a task (the field's B/Inc setting). Where that is no
    whole number, the cut is refused; PILOT, SD-LoRA and InfLoRA would make the remainder a last smaller task. Every
    task has all domains.
    `dil` (domain-incremental): every task has all classes, in the index's order, in one domain; the domains come in
    the alphabetical order of their names, whatever the seed, or in that of `domain_order`. Their head is one for all
    domains, as mammoth has it; or one for each, whose labels are class + C * position of the domain, as HiDe-Prompt's
    unused DomainNet class and InfLoRA's helper have it: training then is within the domain's own head, and a prediction
    is right when its class is, whatever the domain (it is counted modulo C).
    """

    def __init__(
        self,
        index: Index,
        *,
        scenario: str,
        n_tasks: int,
        usual: int | None = None,
        order_seed: int,
        class_order: str = "numpy",
        first_task: int | None = None,
        domain_order: Sequence[str] = (),
        exclude_domains: Sequence[str] = (),
        heads: str = "shared",
    ):
        """Cut `index` into tasks.

        Args:
            index: The benchmark's index.
            scenario: 'cil' or 'dil'.
            n_tasks: Number of tasks N.
            usual: The benchmark's default for N, so that an error says when it is that, which the user may not know.
            order_seed: Seed of the class order, for the rules that take one.
            class_order: Rule of the class order (cil): numpy, sorted, python, list or file:PATH.
            first_task: Number of classes of task 1 (cil); as many as in every other task if None.
            domain_order: Names of all domains that are not excluded, in the order of the tasks (dil); alphabetical if
                empty.
            exclude_domains: Names of domains whose images are left out.
            heads: 'shared' or 'per_domain' (dil).

        Raises:
            UserError: If an option is unknown or belongs to the other scenario, the classes cannot be cut so (cil), N
                is not the number of domains (dil), or a task would have no training or no test image.
        """
        _check_choice("scenario", scenario, SCENARIOS)
        _check_choice("dil_head", heads, HEADS)
        _check_belongs(
            scenario,
            cil={"class_order": class_order != "numpy" and class_order, "first_task": first_task},
            dil={"domain_order": ",".join(domain_order), "dil_head": heads != "shared" and heads},
        )
        self.index, self.scenario, self.heads, self.order_seed = index, scenario, heads, order_seed
        self.n_classes = len(index.classes)
        self.first_task = first_task
        self.domains = _domains(index, domain_order, exclude_domains)
        self.excluded_domains = tuple(sorted(exclude_domains))
        self.order_rule, self.class_order = order_classes(
            index, class_order if scenario == "cil" else "sorted", order_seed
        )
        self._label_of_class = np.argsort(self.class_order)
        self._place_of_domain = np.array(
            [self.domains.index(name) if name in self.domains else -1 for name in index.domains], dtype=np.int64
        )
        cuts: list[tuple[int, int, str | None]]
        if scenario == "dil":
            _check_one_each(index, n_tasks, self.domains)
            step = self.n_classes if heads == "per_domain" else 0
            cuts = [(place * step, self.n_classes, domain) for place, domain in enumerate(self.domains)]
        else:
            sizes = _sizes(index, n_tasks, first_task, usual)
            cuts = [(sum(sizes[:place]), size, None) for place, size in enumerate(sizes)]
        self._tasks = tuple(self._task(number, *cut) for number, cut in enumerate(cuts, start=1))

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, position: int) -> TaskSamples:
        return self._tasks[position]

    def __iter__(self) -> Iterator[TaskSamples]:
        return iter(self._tasks)

    @property
    def shared_head(self) -> bool:
        """Whether all tasks have the same labels."""
        return self.scenario == "dil" and self.heads == "shared"

    def labels(self, rows: Rows) -> Rows:
        """Index rows (n,) of images that are in the sequence -> labels (n,). Modulo C they are positions in the class
        order."""
        labels = self._label_of_class[self.index.label[rows]]
        if self.heads == "per_domain":
            labels += self.n_classes * self._place_of_domain[self.index.domain[rows]]
        return labels

    def joint(self) -> TaskSamples:
        """All tasks as one, with the same labels: what an upper bound trains on."""
        heads = len(self.domains) if self.heads == "per_domain" else 1
        return self._task(1, 0, heads * self.n_classes, None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the class order and its cut into tasks, by name."""
        document: dict[str, Any] = {
            "scenario": self.scenario,
            "domains": self.domains,
            "tasks": [{"classes": task.class_names, "domain": task.domain, "start": task.start} for task in self],
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _task(self, number: int, start: int, size: int, domain: str | None) -> TaskSamples:
        """The task whose labels are start, …, start + size - 1."""
        index = self.index
        classes = self.class_order[np.arange(start, start + size) % self.n_classes]
        place = self._place_of_domain[index.domain]
        chosen = np.isin(index.label, classes)
        chosen &= place >= 0 if domain is None else place == self.domains.index(domain)
        train, test = (np.flatnonzero(chosen & (index.split == split)) for split in (TRAIN, TEST))
        for rows, split in ((train, "training"), (test, "test")):
            if not rows.size:
                of = f"domain '{domain}'" if domain is not None else f"classes {', '.join(self._names(classes)[:3])} …"
                raise UserError(
                    f"benchmark '{index.name}', task {number} ({of}): found no {split} image, expected at least one;"
                    " choose fewer tasks or prepare the data again"
                )
        return TaskSamples(
            number=number,
            classes=tuple(classes.tolist()),
            class_names=self._names(classes),
            domain=domain,
            start=start,
            stop=start + size,
            train=train,
            test=test,
        )

    def _names(self, classes: Rows) -> tuple[str, ...]:
        return tuple(self.index.classes[number] for number in classes)


def _check_choice(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{field}: found '{value}', expected {' or '.join(known)}; {nearest(value, known)}")


def _check_belongs(scenario: str, **given: dict[str, Any]) -> None:
    """`given` holds by scenario the options that belong to it alone, with their values where they are set."""
    for owner, options in given.items():
        for field, value in options.items():
            if value and owner != scenario:
                raise UserError(
                    f"{field}: found '{value}' with scenario '{scenario}', expected it with '{owner}' only; leave it"
                    f" out, or use --scenario {owner}"
                )


def _domains(index: Index, order: Sequence[str], excluded: Sequence[str]) -> tuple[str, ...]:
    """The domains that are kept, in the order of the tasks."""
    _check_names("exclude_domains", excluded, index.domains, index)
    kept = sorted(set(index.domains) - set(excluded))
    if not kept:
        raise UserError(
            f"exclude_domains: found all domains of benchmark '{index.name}', expected one that is left; exclude fewer"
        )
    _check_names("domain_order", order, kept, index)
    missing = sorted(set(kept) - set(order))
    if order and missing:
        raise UserError(
            f"domain_order: found no '{missing[0]}', expected each of {', '.join(kept)} once; add it, or leave its"
            f" images out by --exclude-domains {missing[0]}"
        )
    return tuple(order or kept)


def _check_names(field: str, names: Sequence[str], known: Sequence[str], index: Index) -> None:
    for place, name in enumerate(names):
        if name not in known:
            raise UserError(
                f"{field}: found '{name}', expected domains of benchmark '{index.name}'; {nearest(name, known)}"
            )
        if name in names[:place]:
            raise UserError(f"{field}: found '{name}' twice, expected each domain once; remove one")


def _sizes(index: Index, n_tasks: int, first_task: int | None, usual: int | None) -> list[int]:
    """Number of classes of each task."""
    found = f"tasks: found {n_tasks}{' (the default)' if n_tasks == usual else ''}"
    n_classes = len(index.classes)
    of = f"classes of benchmark '{index.name}'"
    if first_task is None:
        if n_tasks < 1 or n_classes % n_tasks:
            raise UserError(
                f"{found}, expected a number that divides the {n_classes} {of}; the nearest are"
                f" {_nearest_counts(n_tasks, n_classes)}"
            )
        return [n_classes // n_tasks] * n_tasks
    rest = n_classes - first_task
    if first_task < 1 or rest < 1:
        raise UserError(
            f"first_task: found {first_task}, expected 1 to {n_classes - 1} of the {n_classes} {of}, since the other"
            " tasks need some, too; choose a number in between"
        )
    if n_tasks < 2 or rest % (n_tasks - 1):
        raise UserError(
            f"{found}, expected one more than a number that divides the {rest} {of} that come after a"
            f" first task of {first_task}; the nearest are {_nearest_counts(n_tasks - 1, rest, plus=1)}"
        )
    return [first_task] + [rest // (n_tasks - 1)] * (n_tasks - 1)


def _nearest_counts(found: int, n_classes: int, plus: int = 0) -> str:
    divisors = [d for d in range(1, n_classes + 1) if n_classes % d == 0]
    near = sorted(sorted(divisors, key=lambda d: (abs(d - found), d))[:3])
    return ", ".join(str(d + plus) for d in near)


def _check_one_each(index: Index, n_tasks: int, domains: Sequence[str]) -> None:
    if n_tasks != len(domains):
        raise UserError(
            f"tasks: found {n_tasks}, expected {len(domains)}, one for each domain of benchmark '{index.name}'"
            f" ({', '.join(sorted(domains))}); use --tasks {len(domains)}"
        )
