"""Class orders, uneven cuts, domains and heads, from the command line to the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster.plan import load_grid, plan_runs
from fmlora_dist.config import RunConfig, make_config, parse_config
from fmlora_dist.data import RunData
from fmlora_dist.distributed import World
from fmlora_dist.engine import Precision
from fmlora_dist.errors import UserError
from fmlora_dist.protocol import describe
from fmlora_dist.restore import restore
from fmlora_dist.vit.backbone import load_backbone
from running import assert_same_run, checkpoint, command, result, run_arguments, tiny_data
from tiny_benchmark import tiny_arguments

N_CLASSES = 12
DIL = {"scenario": "dil", "tasks": 2}


def config(**fields: object) -> RunConfig:
    return parse_config(tiny_arguments(tiny_data(), **fields), prog="fmlora run")[0]


def protocol(**fields: object) -> dict[str, Any]:
    made = config(**fields)
    data = RunData(made, World("cpu", 1))
    pretrained = load_backbone(made.backbone, image_size=data.spec.image_size)
    return describe(made, data, pretrained, Precision("fp32", data.world))


# -- the config ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--domain-order", "b,a"], ["--domain_order=b,a"], ["--domain-order", '["b", "a"]']])
def test_domains_are_written_with_commas_or_as_json(words: list[str]) -> None:
    assert parse_config(words, prog="fmlora run")[0].domain_order == ("b", "a")


def test_one_domain_is_a_list_too() -> None:
    assert parse_config(["--exclude-domains", "ink"], prog="fmlora run")[0].exclude_domains == ("ink",)


def test_as_many_tasks_as_domains_are_left() -> None:
    made = parse_config(["--scenario", "dil", "--exclude-domains", "ink,chalk"], prog="fmlora run")[0]
    assert made.tasks == 4


CHANGES: list[dict[str, object]] = [
    {"class_order": "sorted"},
    {"class_order": "python"},
    {"first_task": 6, "tasks": 4},
    {"exclude_domains": "clay"},
    DIL,
    {**DIL, "domain_order": "wood,clay"},
    {**DIL, "dil_head": "per_domain"},
    {**DIL, "exclude_domains": "clay", "tasks": 1},
    {**DIL, "exclude_domains": "wood", "tasks": 1},
]


def test_each_field_makes_another_run_under_another_protocol() -> None:
    assert len({config().key(), *(config(**fields).key() for fields in CHANGES)}) == len(CHANGES) + 1
    hashes = {protocol()["shared_hash"], *(protocol(**fields)["shared_hash"] for fields in CHANGES)}
    assert len(hashes) == len(CHANGES) + 1


@pytest.mark.parametrize("fields", CHANGES, ids=str)
def test_a_config_survives_its_own_yaml(fields: dict[str, object]) -> None:
    made = config(**fields)
    again = make_config(yaml.safe_load(yaml.safe_dump(made.plain())))
    assert again.plain() == made.plain() and again.key() == made.key()


# -- the protocol -------------------------------------------------------------------------------------------------


def test_the_protocol_says_how_images_become_tasks() -> None:
    plain = protocol()["shared"]
    assert (plain["order_rule"], plain["split_rule"], plain["scenario"]) == ("numpy", "official", "cil")
    assert (plain["train_images"], plain["test_images"]) == (96, 48)
    assert not {"first_task", "domain_order", "dil_head", "excluded_domains"} & set(plain), "nothing that is not there"
    assert protocol(first_task=6, tasks=4)["shared"]["first_task"] == 6
    kept = protocol(exclude_domains="clay")["shared"]
    assert kept["excluded_domains"] == ["clay"]
    assert (kept["train_images"], kept["test_images"]) == (48, 24)
    domains = protocol(**DIL, domain_order="wood,clay", dil_head="per_domain")["shared"]
    assert (domains["domain_order"], domains["dil_head"]) == (["wood", "clay"], "per_domain")
    assert protocol(**DIL)["shared"]["domain_order"] == ["clay", "wood"]


def test_the_protocol_holds_an_order_files_content_and_not_its_place(tmp_path: Path) -> None:
    for name, order in (("one", range(12)), ("two", range(12)), ("three", range(11, -1, -1))):
        (tmp_path / name).write_text("".join(f"{number}\n" for number in order))
    one, two, three = (protocol(class_order=f"file:{tmp_path / name}") for name in ("one", "two", "three"))
    assert one["shared_hash"] == two["shared_hash"] != three["shared_hash"]
    assert one["shared"]["order_rule"].startswith("file:") and str(tmp_path) not in str(one)


@pytest.mark.parametrize("rule", ["numpy", "python"])
def test_the_seed_of_the_order_is_not_in_the_protocol(rule: str) -> None:
    one, other = (protocol(class_order=rule, order_seed=seed) for seed in (3, 4))
    assert one == other


# -- mistakes -----------------------------------------------------------------------------------------------------

MISTAKES = [
    ("--class-order numpi", ["class_order: found 'numpi'", "did you mean 'numpy'?"]),
    ("--class-order file:nowhere.txt", ["class_order: nowhere.txt", "No such file"]),
    ("--first-task 5 --tasks 4", ["tasks: found 4", "7 classes", "2, 8"]),
    ("--first-task 0", ["first_task: ", "found '0'"]),
    ("--first-task 12", ["first_task: found 12", "1 to 11"]),
    ("--domain-order wood,clay", ["domain_order: ", "--scenario dil"]),
    ("--dil-head per_domain", ["dil_head: ", "--scenario dil"]),
    ("--dil-head each", ["dil_head: ", "'shared' or 'per_domain'", "found 'each'"]),
    ("--exclude-domains wod", ["exclude_domains: found 'wod'", "did you mean 'wood'?"]),
    ("--scenario dil --tasks 2 --class-order list", ["class_order: found 'list'", "--scenario cil"]),
    ("--scenario dil --tasks 2 --first-task 3", ["first_task: found '3'", "--scenario cil"]),
    ("--scenario dil --tasks 2 --domain-order wood", ["domain_order: found no 'clay'"]),
    ("--scenario dil --tasks 2 --exclude-domains wood", ["tasks: found 2, expected 1"]),
]


@pytest.mark.parametrize(("words", "parts"), MISTAKES)
def test_a_mistake_is_one_line_before_any_training(words: str, parts: list[str], tmp_path: Path) -> None:
    done = command([*run_arguments(tmp_path / "run"), *words.split()])
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1, done.err
    assert all(part in done.err for part in parts), done.err
    assert not (tmp_path / "run").exists()


def test_a_grid_is_refused_for_an_order_that_does_not_exist(tmp_path: Path) -> None:
    grid = {"benchmarks": [{"benchmark": "icons_mini", "tasks": [5]}], "methods": ["lora"], "seeds": [0, 1]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**grid, "settings": {"class_order": "sorted"}}))
    assert [run.config.class_order for run in plan_runs(load_grid(str(file)), tmp_path)] == ["sorted"] * 2
    methods = ["lora", {"name": "finetune", "settings": {"class_order": "sortd"}}]
    file.write_text(yaml.safe_dump({**grid, "methods": methods}))
    with pytest.raises(UserError, match=r"class_order: found 'sortd'.*did you mean 'sorted'"):
        plan_runs(load_grid(str(file)), tmp_path)


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["lora", "fmlora"])
def per_domain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a head for each domain that was killed in task 2 and resumed."""
    out: Path = tmp_path_factory.mktemp(request.param) / "run"
    words = run_arguments(out, method=request.param, **DIL, domain_order="wood,clay", dil_head="per_domain")
    assert command(words, kill_at_replace=(6, True)).code == -9
    done = command([*words, "--resume"])
    assert done.code == 0, done.err
    return out


def test_heads_per_domain_resume_to_the_same_run(per_domain: Path, tmp_path: Path) -> None:
    done = command(["run", "--config", per_domain / "config.yaml", "--out", tmp_path / "again"])
    assert done.code == 0, done.err
    assert_same_run(per_domain, tmp_path / "again")


def test_each_domain_has_rows_of_its_own_in_the_head(per_domain: Path) -> None:
    tensors, _ = checkpoint(per_domain)
    assert tensors["method/head.past_weight"].shape[0] == tensors["method/head.weight"].shape[0] == N_CLASSES


def test_with_heads_per_domain_a_prediction_is_right_when_its_class_is(per_domain: Path) -> None:
    method, data, precision = restore(per_domain, device="cpu")
    index, counted, elsewhere = data.index, [], 0
    for place, samples in enumerate(data.tests):
        label_of_key = dict(zip(index.keys, index.label.tolist(), strict=True))
        truth = torch.tensor([label_of_key[key] for key in samples.keys])
        with torch.no_grad(), method.merged(), precision():
            logits = torch.cat([method(images) for images, _ in data.test(samples)])
        assert logits.shape == (24, 2 * N_CLASSES)
        by_domain = logits.view(24, 2, N_CLASSES).amax(dim=1)  # a class is as likely as its likeliest domain says
        elsewhere += int((logits.argmax(dim=1) // N_CLASSES != place).sum())
        counted.append(100.0 * (by_domain.argmax(dim=1) == truth).sum().item() / len(truth))
    assert result(per_domain)["accuracy_matrix"][-1] == counted
    assert elsewhere, "some answers come from another domain's head, or this proves nothing"


def test_a_joint_run_learns_the_heads_of_all_domains_at_once(tmp_path: Path) -> None:
    done = command(run_arguments(tmp_path / "run", method="joint", epochs=1, **DIL, dil_head="per_domain"))
    assert done.code == 0, done.err
    assert checkpoint(tmp_path / "run")[0]["method/head.weight"].shape[0] == 2 * N_CLASSES
    assert len(result(tmp_path / "run")["accuracy_matrix"][0]) == 2


def test_an_uneven_first_task_goes_from_the_head_to_the_metrics(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = command(run_arguments(out, method="lora", epochs=1, tasks=4, first_task=6, class_order="python"))
    assert done.code == 0, done.err
    found = result(out)
    assert found["test_sizes"] == [24, 8, 8, 8]
    rows, sizes = found["accuracy_matrix"], found["test_sizes"]
    assert [len(row) for row in rows] == [1, 2, 3, 4]
    assert found["metrics"]["acc"] == pytest.approx(sum(rows[-1]) / 4)
    assert found["metrics"]["acc_samples"] == pytest.approx(
        sum(a * n for a, n in zip(rows[-1], sizes, strict=True)) / 48
    )
    tensors, _ = checkpoint(out)
    assert (tensors["method/head.past_weight"].shape[0], tensors["method/head.weight"].shape[0]) == (10, 2)
