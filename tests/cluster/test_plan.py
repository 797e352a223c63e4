"""A grid file, its runs, and what is wrong with it."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster.launch import run_grid
from cluster.plan import grid_names, load_grid, plan_runs
from fmlora_dist.errors import UserError
from fmlora_dist.fmlora.method import FMLoRAConfig
from fmlora_dist.registry import list_methods
from tiny_benchmark import write_tiny

REPOSITORY = Path(__file__).resolve().parents[2]
PLAIN = {"benchmarks": [{"benchmark": "icons_mini", "tasks": [5]}], "methods": ["lora"], "seeds": [0]}


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write_grid(**changes: object) -> str:
        file = tmp_path / "mine.yaml"
        values = {name: value for name, value in (PLAIN | changes).items() if value != "left out"}
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write_grid


def test_the_demo_is_five_methods_once() -> None:
    runs = plan_runs(load_grid("demo"), Path("out"))
    assert sorted(run.config.method.name for run in runs) == ["finetune", "fmlora", "inflora", "lora", "sdlora"]
    assert {(run.config.benchmark, run.config.tasks, run.config.seed) for run in runs} == {("icons_mini", 5, 0)}
    assert {run.config.threads for run in runs} == {1}


@pytest.mark.parametrize("name", grid_names())
def test_every_shipped_grid_expands_to_valid_runs(name: str) -> None:
    grid = load_grid(name)
    assert grid.name == name
    variants = sum(math.prod(len(values) for values in choice.sweep.values()) for choice in grid.methods)
    counts = sum(len(axis.tasks or [0]) for axis in grid.benchmarks)
    assert len(plan_runs(grid, Path("out"), check=False)) == counts * variants * len(grid.seeds)


def test_the_papers_grid_is_what_the_paper_compares() -> None:
    runs = plan_runs(load_grid("paper"), Path("out"), check=False)
    columns = {(run.config.benchmark, run.config.scenario, run.config.tasks) for run in runs}
    assert columns == {
        *(("imagenet_r", "cil", n) for n in (5, 10, 20)),
        *(("cifar100", "cil", 10), ("cub200", "cil", 10), ("domainnet", "dil", 6), ("domainnet", "cil", 5)),
    }
    assert {run.config.method.name for run in runs} == set(list_methods())
    assert {run.config.seed for run in runs} == {0, 1, 2, 3, 4}
    domainnet = next(r.config for r in runs if (r.config.benchmark, r.config.method.name) == ("domainnet", "inflora"))
    assert domainnet.plain()["method"]["rank"] == 30 and domainnet.train.optimizer == "sgd"
    assert {run.resources.bundle()["memory"] for run in runs} == {24 * 2**30, 48 * 2**30}


def test_the_grid_of_all_methods_has_them_all_and_the_settings_of_icons() -> None:
    every, icons = load_grid("icons-all"), load_grid("icons")
    assert {choice.name for choice in every.methods} == set(list_methods())
    assert (every.settings, every.resources, every.seeds) == (icons.settings, icons.resources, icons.seeds)
    runs = plan_runs(every, Path("out"))
    assert {run.config.tasks for run in runs} == {10}
    shared = {run.name for run in plan_runs(icons, Path("out")) if run.config.tasks == 10}
    assert shared < {run.name for run in runs}, "runs of icons are not done twice"


@pytest.mark.parametrize("name", ["paper"])
def test_every_figure_of_a_published_comparison_has_its_source(name: str) -> None:
    for choice in load_grid(name).methods:
        assert choice.source or not (choice.model_extra or choice.settings), choice.name


def rows(name: str) -> dict[tuple[str, str], int]:
    """By method and variant, the number of settings that a grid has of it."""
    counts: Counter[tuple[str, str]] = Counter()
    for choice in load_grid(name).methods:
        variant = (choice.model_extra or {}).get("variant", "")
        counts[choice.name, variant] += math.prod(len(values) for values in choice.sweep.values())
    return dict(counts)


def test_the_table_of_icons_has_the_low_rank_methods_and_their_bounds() -> None:
    names = ("finetune", "lora", "inflora", "sdlora", "fmlora", "frozen", "joint")
    assert rows("icons") == dict.fromkeys([*((name, "") for name in names), ("sdlora", "official")], 1)
    runs = plan_runs(load_grid("icons"), Path("out"))
    assert {(run.config.benchmark, run.config.tasks) for run in runs} == {("icons", n) for n in (5, 10, 20)}
    assert len({run.config.seed for run in runs}) == 3
    assert len({(run.config.epochs, run.config.batch_size) for run in runs}) == 1
    assert {run.variant for run in runs} >= {"sdlora", "sdlora variant=official rank=5"}


@pytest.mark.parametrize(("search", "table"), [("tune-icons", "icons"), ("tune-icons-all", "icons-all")])
def test_every_tuned_row_has_the_same_budget_without_test_images(search: str, table: str) -> None:
    assert set(rows(search).values()) == {5}
    runs, shown = (plan_runs(load_grid(name), Path("out")) for name in (search, table))
    assert {run.config.train.validation for run in runs} == {0.1}
    assert {(run.config.benchmark, run.config.tasks) for run in runs} == {("icons", 10)}
    (seed,) = {(run.config.seed, run.config.order_seed) for run in runs}
    assert seed not in {(run.config.seed, run.config.order_seed) for run in shown}
    assert {run.config.epochs for run in runs} == {run.config.epochs for run in shown}


def searched(search: str) -> dict[tuple[str, str], list[tuple[float, Any]]]:
    """Of each row of a committed search what it found: (score, (method, learning rate))."""
    found: dict[tuple[str, str], list[tuple[float, Any]]] = {}
    for file in (REPOSITORY / "docs/results" / search).glob("*/result.json"):
        result = json.loads(file.read_text())
        method = result["config"]["method"]
        row = method["name"], "official" if method.get("variant") == "official" else ""
        score = result["metrics"]["acc" if method["name"] == "joint" else "aaa"]
        found.setdefault(row, []).append((score, (method, result["config"]["train"]["lr"])))
    return found


UNTUNED = ("ranpac", "simplecil")
"""No rate moves these: the one finds its ridge on its training data, the other has nothing to find."""


@pytest.mark.parametrize(("search", "table"), [("tune-icons", "icons"), ("tune-icons-all", "icons-all")])
def test_every_row_is_the_winner_of_the_committed_search(search: str, table: str) -> None:
    found = searched(search)
    icons = [choice.model_copy(update={"source": ""}) for choice in load_grid("icons").methods]
    assert {row: len(tried) for row, tried in found.items()} == rows(search)
    assert rows(table).keys() - rows(search).keys() == (
        set() if table == "icons" else {*rows("icons"), *((name, "") for name in UNTUNED)}
    )
    winners = [max(tried, key=lambda each: each[0])[1] for tried in found.values()]
    table_runs = plan_runs(load_grid(table), Path("out"))
    for choice in load_grid(table).methods:
        row = choice.name, (choice.model_extra or {}).get("variant", "")
        if choice.name in UNTUNED:
            continue
        if row not in found:
            assert choice.model_copy(update={"source": ""}) in icons
            continue
        score = max(score for score, _ in found[row])
        measure = "Acc" if choice.name == "joint" else "AAA"
        assert choice.source == f"{search}: {measure} {score:.1f}, the best of {len(found[row])}"
        mine = [run.config.plain() for run in table_runs if run.config.method.name == choice.name]
        assert mine and all((config["method"], config["train"]["lr"]) in winners for config in mine)


def test_the_prompt_ablation_counts_from_no_prompts_to_twenty_in_few_and_many_tasks() -> None:
    runs = plan_runs(load_grid("ablation-prompts"), Path("out"))
    found = {(run.config.tasks, run.config.plain()["method"]["prompt_tokens"]) for run in runs}
    assert found == {(tasks, m) for tasks in (5, 20) for m in (0, 1, 5, 10, 20)}
    assert {run.variant for run in runs} >= {"fmlora prompt_tokens=0", "fmlora prompt_tokens=20"}


def test_the_ablation_of_parts_has_each_alone_and_both() -> None:
    methods = [run.config.method.model_copy() for run in plan_runs(load_grid("ablation-parts"), Path("out"))]
    facts = [method.model_dump() for method in methods]
    fixed = {(each["task_rank"], each["prompt_tokens"]) for each in facts if not each["drs"]}
    ranks = FMLoRAConfig().candidate_ranks()
    assert fixed == {*((rank, 0) for rank in ranks), (max(ranks), 1)}, "each rank that DRS may choose, and + DMP"
    chosen = {(each["prompt_tokens"], each["drs_price"]) for each in facts if each["drs"]}
    assert chosen == {(0, 0.1), (1, 0.1), (1, 0.0)}, "+ DRS, both, and the paper's literal formula"


def test_the_rank_ablation_has_ranks_with_and_without_their_choice() -> None:
    methods = [run.config.plain()["method"] for run in plan_runs(load_grid("ablation-rank"), Path("out"))]
    found = {(method["rank"], method["drs"]) for method in methods}
    assert found == {(rank, drs) for rank in (2, 4, 8, 16, 32) for drs in (True, False)}


def test_settings_merge_from_the_grid_to_the_sweep(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def rate(**train: float) -> dict[str, object]:
        return {"train": train}

    override = {"source": "a search", "rank": 5, "settings": rate(weight_decay=0.4), "resources": {"memory": "1GiB"}}
    method = {"name": "lora", "rank": 3, "settings": rate(lr=0.3, clip=0.3, weight_decay=0.3)}
    method |= {"benchmarks": {"icons_mini": override}, "sweep": {"train.clip": [0.5]}, "resources": {"cpus": 2}}
    axis = {"benchmark": "icons_mini", "tasks": [5], "settings": rate(lr=0.2), "resources": {"cpus": 1.5}}
    file = write(settings=rate(lr=0.1, validation=0.1), benchmarks=[axis], methods=[method], resources={"gpus": 0.5})
    (run,) = plan_runs(load_grid(file), tmp_path)
    train, plain = run.config.train, run.config.plain()
    assert (train.validation, train.lr, train.weight_decay, train.clip) == (0.1, 0.3, 0.4, 0.5)
    assert plain["method"]["rank"] == 5
    assert run.resources.bundle() == {"CPU": 2.0, "GPU": 0.5, "memory": 2.0**30}
    assert run.config.threads == 2, "as many as its cores, unless the settings say otherwise"


def test_only_runs_that_ask_for_gpus_look_for_one(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    methods = ["frozen", {"name": "lora", "resources": {"gpus": 0.5}}]
    assert [run.config.device for run in plan_runs(load_grid(write(methods=methods)), tmp_path)] == ["cpu", "auto"]
    told = write(methods=methods, settings={"device": "cuda:1"})
    assert [run.config.device for run in plan_runs(load_grid(told), tmp_path)] == ["cuda:1"] * 2


def test_a_data_root_holds_one_folder_a_benchmark(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=f"found no folder {tmp_path}/imagenet_r"):
        plan_runs(load_grid("paper"), tmp_path, data_root=str(tmp_path), check=True)
    (run,) = plan_runs(load_grid(write()), tmp_path, data_root=str(tmp_path))
    assert run.config.data_root == "", "embedded, and not there"
    with pytest.raises(UserError, match=r"data_root: found no folder .*nowhere"):
        plan_runs(load_grid(write()), tmp_path, data_root=str(tmp_path / "nowhere"))
    write_tiny(tmp_path / "icons")
    (run,) = plan_runs(
        load_grid(write(benchmarks=[{"benchmark": "icons_mini", "tasks": [3]}])), tmp_path, data_root=str(tmp_path)
    )
    assert run.config.data_root == str(tmp_path / "icons"), "a cut reads the folder of what it is cut from"


def test_a_grid_is_the_product_of_its_axes(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = write(
        benchmarks=[
            {"benchmark": "icons_mini", "tasks": [5, 10]},
            {"benchmark": "icons", "scenario": "dil", "settings": {"epochs": 7, "train": {"lr": 0.5}}},
        ],
        methods=["frozen", {"name": "lora", "rank": 3}],
        seeds=[4, 5],
        settings={"epochs": 2, "threads": 1, "train": {"optimizer": "sgd"}},
    )
    runs = plan_runs(load_grid(file), tmp_path)
    facts = [(run.config.benchmark, run.config.tasks, run.config.method.name, run.config.seed) for run in runs]
    assert len(set(facts)) == len(facts) == 3 * 2 * 2
    assert ("icons", 6, "lora", 5) in facts
    last = runs[-1].config
    assert (last.scenario, last.epochs, last.train.lr, last.train.optimizer) == ("dil", 7, 0.5, "sgd")
    assert runs[0].config.epochs == 2
    assert last.plain()["method"]["rank"] == 3


def test_a_runs_directory_is_named_by_what_it_is(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (run,) = plan_runs(load_grid(write()), tmp_path)
    assert run.folder == tmp_path / "runs" / f"icons_mini-5-lora-s0-{run.config.key()[:10]}"
    (other,) = plan_runs(load_grid(write(settings={"epochs": 99})), tmp_path)
    assert other.folder != run.folder
    (same,) = plan_runs(load_grid(write(settings={"workers": 1})), tmp_path)
    assert same.folder == run.folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["lora"]}, "unknown field 'method': did you mean 'methods'"),
        (
            {"benchmarks": [{"benchmark": "icons", "task": [5]}]},
            "unknown field 'benchmarks.0.task': did you mean 'tasks'",
        ),
        ({"resources": {"gpu": 1}}, "unknown field 'resources.gpu': did you mean 'gpus'"),
        ({"methods": []}, "methods: "),
        ({"seeds": []}, "seeds: "),
        ({"benchmarks": []}, "benchmarks: "),
        ({"benchmarks": [{"benchmark": "icons", "tasks": []}]}, "benchmarks.0.tasks: "),
        ({"seeds": "left out"}, "has no field 'seeds'"),
        ({"methods": ["lorra"]}, "unknown method 'lorra': did you mean 'lora'"),
        ({"methods": [{"name": "lora", "rnk": 2}]}, "did you mean 'rank'"),
        ({"benchmarks": [{"benchmark": "icon"}]}, "unknown benchmark 'icon'"),
        ({"settings": {"epoch": 2}}, "did you mean 'epochs'"),
        ({"settings": {"seed": 2}}, "settings.seed would go unread"),
        ({"seeds": [1, 1]}, "twice"),
        ({"resources": {"cpus": 0}}, "resources.cpus: "),
        ({"resources": {"cpus": float("inf")}}, "resources.cpus: "),
        ({"resources": {"gpus": float("inf")}}, "resources.gpus: "),
        ({"resources": {"gpus": 1.5}}, "resources: gpus: found 1.5, expected a whole number"),
        ({"resources": {"memory": "many"}}, "resources.memory: found 'many', expected a number with KiB"),
        ({"methods": [{"name": "lora", "setings": {}}]}, "unknown field 'setings': did you mean 'settings'"),
        ({"methods": [{"name": "lora", "sweep": {"train.lr": []}}]}, "methods.0.sweep.train.lr: "),
        ({"methods": [{"name": "lora", "sweep": {"train.lrr": [1]}}]}, "did you mean 'lr'"),
        ({"methods": [{"name": "lora", "sweep": {"seed": [1]}}]}, "sweep.seed would go unread"),
        ({"methods": [{"name": "lora", "sweep": {"tasks.n": [1]}}]}, "sweep.tasks.n would go unread"),
        ({"methods": [{"name": "lora", "settings": {"tasks": 5}}]}, "settings.tasks would go unread"),
        (
            {"methods": [{"name": "lora", "benchmarks": {"icons_mini": {"rank": 2}}}]},
            "has no field 'methods.0.benchmarks.icons_mini.source'",
        ),
        (
            {"methods": [{"name": "lora", "benchmarks": {"icons": {"source": "x"}}}]},
            "the grid has no benchmark 'icons': did you mean 'icons_mini'",
        ),
        (
            {"methods": [{"name": "lora", "benchmarks": {"icons_mini": {"source": "x", "resources": {"gpu": 1}}}}]},
            "did you mean 'gpus'",
        ),
    ],
)
def test_a_wrong_grid_ends_with_one_line_that_says_what(write, tmp_path, changes, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as caught:
        run_grid(write(**changes), tmp_path / "out", Console(quiet=True))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("dmo", "unknown grid 'dmo': did you mean 'demo'"), ("nowhere/x.yaml", "cannot read nowhere/x.yaml")],
)
def test_an_unknown_grid_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_grid(name)


@pytest.mark.parametrize("text", ["a: [", "just text", "", "a: 2020-13-45"])
def test_a_file_that_is_no_grid_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_grid(str(tmp_path / "x.yaml"))


def test_a_grid_without_a_name_has_that_of_its_file(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = Path(write(name=""))
    assert load_grid(str(file)).name == file.stem


def test_a_run_with_a_broken_result_is_not_finished(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (run,) = plan_runs(load_grid(write()), tmp_path)
    assert not run.finished
    run.folder.mkdir(parents=True)
    result = {"schema": 1, "status": "complete", "benchmark": "icons_mini", "n_tasks": 5, "method": "lora", "seed": 0}
    (run.folder / "result.json").write_text(json.dumps(result | {"metrics": {"acc": 1.0}}))
    assert run.finished
    (run.folder / "result.json").write_text("{")
    assert not run.finished
