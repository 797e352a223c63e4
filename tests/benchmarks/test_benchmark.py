"""Benchmark descriptions, the cut, and what is registered."""

import dataclasses

import numpy as np
import pytest

from benchmarks.icons.benchmark import DATA
from benchmarks.index import INDEX_FILE
from benchmarks.spec import BenchmarkSpec, Cut, select
from benchmarks.tasks import TaskSequence
from fmlora_dist.errors import UserError
from fmlora_dist.registry import get_benchmark

needs_icons = pytest.mark.skipif(not (DATA / INDEX_FILE).exists(), reason="the embedded shards are not built here")


def spec_of(**fields) -> BenchmarkSpec:
    defaults = {
        "name": "tiny",
        "summary": "for tests",
        "licence": "CC0",
        "image_size": 16,
        "task_counts": (3,),
        "epochs": 1,
        "batch_size": 4,
    }
    return BenchmarkSpec(**{**defaults, **fields})


def test_load_takes_the_embedded_data_unless_another_folder_is_given(tiny, tmp_path):
    spec = spec_of(embedded=tiny.folder)
    assert spec.load().fingerprint == tiny.index.fingerprint
    assert spec_of(embedded=tmp_path).load(tiny.folder).fingerprint == tiny.index.fingerprint
    assert spec.folder() == tiny.folder and spec.folder(tmp_path) == tmp_path


@pytest.mark.parametrize("embedded", [True, False])
def test_a_data_root_that_does_not_exist_is_an_error_for_the_embedded_benchmark_too(tiny, tmp_path, embedded):
    with pytest.raises(UserError, match=r"data-root: found no folder .*nowhere.*'tiny'"):
        spec_of(embedded=tiny.folder if embedded else None).load(tmp_path / "nowhere")


def test_a_benchmark_without_data_says_what_to_do(tiny):
    with pytest.raises(UserError, match=r"'tiny': found no data.*fmlora prepare.*--data-root"):
        spec_of().load()


def test_the_folder_of_another_benchmark_is_refused(tiny):
    with pytest.raises(UserError, match="benchmark 'tiny', expected 'other'"):
        spec_of(name="other").load(tiny.folder)


def test_a_folder_without_an_index_is_an_error(tiny, tmp_path):
    with pytest.raises(UserError, match=r"index\.json"):
        spec_of(embedded=tiny.folder).load(tmp_path)


def test_a_cut_keeps_classes_drawings_and_domains_as_it_says(tiny):
    spec = spec_of(name="tiny_mini", embedded=tiny.folder, cut=Cut(of="tiny", n_classes=5, max_train=4, max_test=2))
    cut = spec.load()
    assert cut.name == "tiny_mini" and len(cut.classes) == 5 and cut.shards == tiny.index.shards
    assert cut.fingerprint == spec.load().fingerprint != tiny.index.fingerprint
    for label in range(5):
        train, test = (np.flatnonzero((cut.label == label) & (cut.split == split)) for split in (0, 1))
        assert (len(train), len(test)) == (4, 2)
        assert set(cut.domain[train]) == {0, 1, 2} and len(set(cut.domain[test])) == 2
    rows = [tiny.index.keys.index(key) for key in cut.keys]
    assert rows == sorted(rows)
    for column in ("shard", "offset", "size", "domain", "split"):
        assert np.array_equal(getattr(cut, column), getattr(tiny.index, column)[rows])
    assert [cut.classes[label] for label in cut.label] == [tiny.index.classes[n] for n in tiny.index.label[rows]]


def test_a_cut_depends_on_names_and_not_on_the_order_of_the_index(tiny):
    cut = Cut(of="tiny", n_classes=5, max_train=4, max_test=2)
    mixed = select(tiny.index, np.random.default_rng(0).permutation(len(tiny.index)), "tiny")
    ours, theirs = cut.apply(tiny.index, "m"), cut.apply(mixed, "m")
    assert ours.classes == theirs.classes and set(ours.keys) == set(theirs.keys)


def test_a_cut_larger_than_the_benchmark_is_the_benchmark(tiny):
    cut = Cut(of="tiny", n_classes=99, max_train=99, max_test=99).apply(tiny.index, "tiny")
    assert cut.fingerprint == tiny.index.fingerprint


def test_the_image_of_a_cut_is_the_image_of_the_whole(tiny):
    cut = Cut(of="tiny", n_classes=3, max_train=2, max_test=1).apply(tiny.index, "mini")
    samples = dataclasses.replace(tiny, index=cut).samples()
    for image, key in zip(samples.images(np.arange(len(cut))), samples.keys, strict=True):
        assert np.array_equal(image.numpy(), tiny.pixels[key])


@pytest.mark.parametrize("name", ["icons", "icons_mini"])
def test_icons_are_registered(name):
    spec = get_benchmark(name)
    assert spec.name == name and spec.embedded == DATA and spec.image_size == 48 and "\n" not in spec.summary


@needs_icons
@pytest.mark.parametrize(("name", "n_classes"), [("icons", 200), ("icons_mini", 40)])
def test_the_embedded_benchmark_can_be_cut_into_its_tasks(name, n_classes):
    spec = get_benchmark(name)
    index = spec.load()
    assert len(index.classes) == n_classes and index.image_size == spec.image_size and len(index.domains) == 6
    for n_tasks in spec.task_counts:
        assert len(TaskSequence(index, scenario="cil", n_tasks=n_tasks, order_seed=0)) == n_tasks
    for task in TaskSequence(index, scenario="dil", n_tasks=6, order_seed=0):
        assert len(task.train) >= n_classes and len(task.test) >= n_classes // 2


@needs_icons
def test_icons_mini_has_at_most_the_stated_drawings():
    index = get_benchmark("icons_mini").load()
    for split, most in ((0, 18), (1, 8)):
        assert np.bincount(index.label[index.split == split]).max() <= most
