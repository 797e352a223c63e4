"""What a run and its method see of the data: never an earlier task's training images."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import fsspec
import pytest

from fmlora_dist.config import parse_config
from fmlora_dist.data import MethodData, RunData
from fmlora_dist.distributed import World
from fmlora_dist.method import Method
from fmlora_dist.record import RunDirectory
from fmlora_dist.registry import get_method, list_methods
from fmlora_dist.run import Run
from running import tiny_data
from tiny_benchmark import tiny_arguments


def _run(method: str, **fields: object) -> Run:
    config, _ = parse_config(tiny_arguments(tiny_data(), method=method, **fields), prog="fmlora run")
    return Run(config, World("cpu", 1))


class _Watched(Run):
    """A run that notes, task by task, which images are opened and what trains."""

    def watch(self) -> None:
        self.opened: dict[int, set[str]] = {}
        self.trained: dict[int, set[str]] = {}
        self.data.opened = self._note
        for samples in [view.train for view in self.views] + self.data.tests:
            samples.opened = self._note

    def _note(self, keys: Sequence[str]) -> None:
        self.opened.setdefault(self.position.task, set()).update(keys)

    def _epoch(self, view, engine) -> None:  # type: ignore[no-untyped-def]
        names = {name for name, parameter in self.method.named_parameters() if parameter.requires_grad}
        self.trained[self.position.task] = names
        super()._epoch(view, engine)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, _Watched]:
    runs = {}
    for method in list_methods():
        words = tiny_arguments(tiny_data(), method=method, epochs=1, cache_budget=0)
        config, _ = parse_config(words, prog="fmlora run")
        runs[method] = run = _Watched(config, World("cpu", 1))
        run.watch()
        record = RunDirectory(tmp_path_factory.mktemp(method) / "run")
        record.open(config)
        run.go(record)
        record.close()
    return runs


@pytest.mark.parametrize("method", list_methods())
def test_no_training_image_of_another_task_is_opened(method: str, watched: dict[str, _Watched]) -> None:
    run = watched[method]
    tests = [set(samples.keys) for samples in run.data.tests]
    for number, view in enumerate(run.views, start=1):
        seen = len(tests) if run.joint else number
        allowed = set(view.train.keys).union(*tests[:seen])
        assert run.opened[number] == allowed, "all of the task's own images, the test images so far, and no other"
    train = [set(view.train.keys) for view in run.views]
    assert not any(one & other for one in train for other in train if one is not other)
    assert not set().union(*train) & set().union(*tests)


HEAD = {"head.weight", "head.bias"}
PROMPT = {"backbone.reg_token"}  # the prompts are timm's register tokens, which no pretrained weight is part of
BLOCKS = (0, 1)


def _adapters(projections: str, *names: str) -> set[str]:
    return {f"adapters.{block}_{projection}.{name}" for block in BLOCKS for projection in projections for name in names}


EXPECTED = {
    "fmlora": [
        HEAD | PROMPT | _adapters("qv", "a", "b"),
        HEAD | PROMPT | _adapters("qv", "m", "n"),
        HEAD | PROMPT | _adapters("qv", "m", "n"),
    ],
    "lora": [HEAD | _adapters("qv", "down", "up")] * 3,
    "joint": [HEAD | _adapters("qv", "down", "up")],
    "inflora": [HEAD | _adapters("kv", "up")] * 3,
    "sdlora": [
        HEAD | _adapters("qv", "down", "up"),
        HEAD | {"magnitudes"} | _adapters("qv", "down", "up"),
        HEAD | {"magnitudes"} | _adapters("qv", "down", "up"),
    ],
    "l2p": [HEAD | {"prompts", "keys"}] * 3,
    "dualprompt": [HEAD | {"general", "expert", "key"}] * 3,
    "coda_prompt": [HEAD | {"components", "keys", "attention"}] * 3,
    "hide_prompt": [HEAD | {"prompt"}] * 3,
    "frozen": [HEAD] * 3,
    "simplecil": [],
    "ranpac": [],
}
EXPECTED |= dict.fromkeys(("sdlora_rr", "sdlora_kd"), EXPECTED["sdlora"])


@pytest.mark.parametrize("method", list_methods())
def test_what_trains_is_exactly_what_the_method_says(method: str, watched: dict[str, _Watched]) -> None:
    run = watched[method]
    backbone = {name for name, _ in run.method.named_parameters() if name.startswith("backbone.")} - PROMPT
    if method == "finetune":
        expected = [HEAD | backbone] * 3
    else:
        assert method in EXPECTED, "a new method says here what it trains"
        expected = EXPECTED[method]
        assert not any(names & backbone for names in run.trained.values())
    assert [run.trained[number] for number in sorted(run.trained)] == expected


@pytest.mark.parametrize("method", list_methods())
def test_a_method_that_does_not_say_so_gets_no_pass_over_the_data(method: str) -> None:
    run = _run(method)
    data = MethodData(run.data, run.views[0], get_method(method).info, run.precision)
    if get_method(method).info.needs_pass:
        assert sum(len(labels) for _, labels in data.held_out(5)) == 5
        return
    for ask in (lambda: data.held_out(5), lambda: next(data.batches(augment=False)), lambda: next(data.steps(1))):
        with pytest.raises(ValueError, match="lacks needs_pass"):
            ask()


def test_the_held_out_part_is_the_same_in_every_call_and_apart_from_the_rest() -> None:
    run = _run("fmlora", cache_budget=0)  # so that every read is seen
    data = MethodData(run.data, run.views[0], run.method.info, run.precision)
    opened: list[str] = []
    run.views[0].train.opened = opened.extend

    def seen(passed: Iterable[object]) -> set[str]:
        opened.clear()
        assert len([*passed])
        return set(opened)

    held = seen(data.held_out(8))
    assert seen(data.held_out(8)) == held and len(held) == 8
    rest = set(run.views[0].train.keys) - held
    assert seen(data.steps(7, exclude=8)) == rest, "seven batches of 8 pass over the other 24 twice"
    for augment in (False, True):
        assert seen(data.batches(augment=augment, exclude=8)) == rest


def test_generators_differ_by_seed_task_and_purpose_only() -> None:
    def draw(run: Run, task: int, purpose: str) -> int:
        view = run.views[task - 1]
        return MethodData(run.data, view, run.method.info, run.precision).generator(purpose).initial_seed()

    run, again, other = _run("fmlora"), _run("lora", batch_size=4), _run("fmlora", seed=1)
    assert draw(run, 1, "head") == draw(again, 1, "head")
    numbers = [draw(run, 1, "head"), draw(run, 2, "head"), draw(run, 1, "bases"), draw(other, 1, "head")]
    assert len(set(numbers)) == 4


def test_validation_tests_on_training_images_that_are_not_trained_on() -> None:
    plain, run = _run("lora"), _run("lora", train__validation=0.25)
    for view, tests, whole in zip(run.views, run.data.tests, plain.views, strict=True):
        assert set(view.train.keys) | set(tests.keys) == set(whole.train.keys)
        assert not set(view.train.keys) & set(tests.keys)
        assert len(tests) == 8
    assert run.data.test_sizes == [8, 8, 8]


def test_methods_start_from_one_backbone_and_one_head() -> None:
    methods: list[Method] = []
    for run in map(_run, ("lora", "finetune")):
        run.method.begin_task(run.views[0].task, MethodData(run.data, run.views[0], run.method.info, run.precision))
        methods.append(run.method)
    one, other = (dict(method.named_parameters()) for method in methods)
    assert len(one["head.weight"]) == 4
    shared = [name for name in one if name in other]
    assert len(shared) > 10
    assert all(one[name].equal(other[name]) for name in shared)


def test_pixels_reach_the_network_as_its_weights_were_trained() -> None:
    images, _ = next(iter(_run("lora").data.test(_run("lora").data.tests[0])))
    assert images.min() < -0.5 and images.max() > 0.5, "[-1, 1], which is timm's mean and deviation of one half"
    unit = _run("lora", backbone__normalisation="unit")
    images, _ = next(iter(unit.data.test(unit.data.tests[0])))
    assert 0 <= images.min() < images.max() <= 1


def test_data_of_the_embedded_benchmark_are_whole() -> None:
    config, _ = parse_config(["--benchmark", "icons", "--backbone.weights", "random"], prog="fmlora run")
    data = RunData(config, World("cpu", 1))  # compares every shard with the index's SHA-256
    assert len(data.sequence) == config.tasks
    assert Path(data.folder, "index.json").is_file()


class _Frugal(Run):
    """A run that notes, as each task begins, which other tasks' decoded images are still in memory."""

    def _task(self, view, optimizer) -> None:  # type: ignore[no-untyped-def]
        others = [other.task.number for other in self.views if other is not view and other.train._kept is not None]
        self.held = [*getattr(self, "held", []), others]
        super()._task(view, optimizer)


def test_a_tasks_decoded_images_go_before_the_next_tasks_come(tmp_path: Path) -> None:
    config, _ = parse_config(tiny_arguments(tiny_data(), method="frozen", epochs=1), prog="fmlora run")
    run, record = _Frugal(config, World("cpu", 1)), RunDirectory(tmp_path / "run")
    record.open(config)
    run.go(record)
    record.close()
    assert run.held == [[], [], []]
    assert all(view.train._kept is None for view in run.views)


def test_test_images_are_kept_where_all_fit_into_half_of_the_budget_and_training_has_the_rest() -> None:
    size = 3 * 48 * 48
    for budget, tests, train in ((96 * size, 48, 48), (95 * size, 0, 95), (1000 * size, 48, 952)):
        data = _run("lora", cache_budget=budget).data
        assert data._test_bytes == tests * size, budget
        assert data.config.cache_bytes - data._test_bytes == train * size


def test_shards_behind_a_url_give_the_same_batches_and_are_kept_where_the_user_says(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for path in tiny_data().iterdir():
        files.pipe(f"/shards/{path.name}", path.read_bytes())
    here = _run("lora")
    cache = tmp_path / "cache"
    away = _run("lora", data_root="memory://shards", cache_dir=cache)
    for mine, theirs in zip(*(run.data.stream(run.views[1]).epoch(0) for run in (here, away)), strict=True):
        assert mine.images.equal(theirs.images) and mine.labels.equal(theirs.labels)
    assert list(cache.iterdir())
    assert here.config.key() == away.config.key()
    assert here.protocol == away.protocol
