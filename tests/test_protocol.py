"""What makes two runs comparable, and what only makes two rows differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.transforms import Transform
from fmlora_dist.config import RunConfig, parse_config
from fmlora_dist.data import RunData
from fmlora_dist.distributed import World
from fmlora_dist.engine import Precision
from fmlora_dist.protocol import describe
from fmlora_dist.vit.backbone import load_backbone
from tiny_benchmark import tiny_arguments, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny")
    write_tiny(path, per_class=6)
    return path


def protocol(folder: Path, *flags: str, **fields: object) -> dict[str, Any]:
    config, _ = parse_config([*tiny_arguments(folder, **fields), *flags], prog="test")
    return of(config)


def of(config: RunConfig) -> dict[str, Any]:
    data = RunData(config, World("cpu", 1))
    pretrained = load_backbone(config.backbone, image_size=data.spec.image_size)
    return describe(config, data, pretrained, Precision(config.train.precision, data.world))


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 3},
        {"order_seed": 5},
        {"method": "lora"},
        {"method": "frozen", "seed": 1},
        {"epochs": 7},
        {"batch_size": 4},
        {"train__lr": 0.1},
        {"method__rank": 4},
        {"workers": 0},
        {"cache_budget": 0},
    ],
    ids=str,
)
def test_shared_hash_is_equal_for_other_seeds_methods_and_recipes(folder: Path, fields: dict[str, object]) -> None:
    assert protocol(folder, **fields)["shared_hash"] == protocol(folder)["shared_hash"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tasks": 4},
        {"scenario": "dil", "tasks": 2},
        {"backbone__normalisation": "imagenet"},
        {"backbone__name": "deit_tiny_patch16_224"},
        {"backbone__options": '{"depth": 1, "embed_dim": 48, "num_heads": 3, "patch_size": 16}'},
        {"backbone__options": '{"depth": 2, "embed_dim": 48, "num_heads": 4, "patch_size": 16}'},
        {"train__validation": 0.25},
    ],
    ids=str,
)
def test_shared_hash_differs_where_numbers_cannot_be_compared(folder: Path, fields: dict[str, object]) -> None:
    assert protocol(folder, **fields)["shared_hash"] != protocol(folder)["shared_hash"]


def test_shared_hash_differs_for_another_split(folder: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path, per_class=9)
    other, own = protocol(tmp_path), protocol(folder)
    assert other["shared"]["split"] != own["shared"]["split"]
    assert other["shared_hash"] != own["shared_hash"]


def test_heads_of_attention_are_in_the_shared_part_though_the_weights_are_the_same(folder: Path) -> None:
    options = '{"depth": 2, "embed_dim": 48, "num_heads": 4, "patch_size": 16}'
    other, own = protocol(folder, backbone__options=options), protocol(folder)
    assert other["shared"]["weights"] == own["shared"]["weights"]
    assert other["shared"]["backbone_options"]["num_heads"] == 4


def test_same_data_elsewhere_is_the_same_protocol(folder: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path, per_class=6)
    assert protocol(tmp_path) == protocol(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 7},
        {"batch_size": 4},
        {"method": "lora"},
        {"method__rank": 4},
        {"method__drs": "false"},
        {"method__prompt_tokens": 0},
        {"train__lr": 0.1},
        {"train__optimizer": "sgd"},
        {"train__precision": "bf16"},
    ],
    ids=str,
)
def test_recipe_hash_differs_by_every_part_of_the_recipe(folder: Path, fields: dict[str, object]) -> None:
    assert protocol(folder, **fields)["recipe_hash"] != protocol(folder)["recipe_hash"]


def test_the_recipe_says_in_which_precision_the_run_was(folder: Path) -> None:
    for asked, found in (("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")):
        recipe = protocol(folder, train__precision=asked)["recipe"]
        assert recipe["train"]["precision"] == found, "on a CPU, auto is fp32"


@pytest.mark.parametrize("fields", [{"seed": 3}, {"order_seed": 5}, {"tasks": 4}, {"workers": 0}], ids=str)
def test_recipe_hash_is_equal_for_other_seeds_and_task_counts(folder: Path, fields: dict[str, object]) -> None:
    assert protocol(folder, **fields)["recipe_hash"] == protocol(folder)["recipe_hash"]


def test_seeds_are_in_neither_part_and_all_is_json(folder: Path) -> None:
    found = protocol(folder, seed=987654, order_seed=876543)
    text = json.dumps(found)
    assert "987654" not in text and "876543" not in text
    assert json.loads(text) == found


def test_shared_part_states_what_a_table_must_agree_in(folder: Path) -> None:
    shared = protocol(folder)["shared"]
    assert shared["benchmark"] == "icons"
    assert shared["order_rule"] == "numpy"
    assert shared["n_tasks"] == 3
    assert shared["backbone"] == "vit_tiny_patch16_224"
    assert (shared["mean"], shared["std"]) == ([0.5] * 3, [0.5] * 3)
    assert shared["tested_on"] == "test"
    assert len(shared["weights"]) == 64


@pytest.mark.parametrize("method", ["l2p", "dualprompt"])
def test_a_choice_of_prompts_by_the_batch_is_stated_and_keeps_a_run_apart(folder: Path, method: str) -> None:
    plain = protocol(folder, method=method)
    batchwise = protocol(folder, method=method, method__paper_compat="batchwise_prompt")
    assert (
        plain["shared"]["predictions"]
        == protocol(folder)["shared"]["predictions"]
        == "independent of other test images"
    )
    assert batchwise["shared"]["predictions"] == "dependent on other test images (paper_compat)"
    assert batchwise["shared_hash"] != plain["shared_hash"]


def test_the_test_part_of_a_transform_is_shared_and_the_training_part_is_the_rows_recipe(folder: Path) -> None:
    config, _ = parse_config(tiny_arguments(folder), prog="test")
    data = RunData(config, World("cpu", 1))
    pretrained = load_backbone(config.backbone, image_size=data.spec.image_size)
    found = {}
    for fields in (
        {},
        {"test_resize": 55},
        {"test_interpolation": "bilinear"},
        {"test_keeps_aspect": False},
        {"crop_scale": (0.05, 1.0)},
        {"interpolation": "bicubic"},
        {"brightness": 0.2},
        {"train_resize": 60},
        {"flip": False},
    ):
        data.transform = Transform(**fields)
        found[next(iter(fields), "")] = describe(config, data, pretrained, Precision("fp32", data.world))
    assert "shorter side to 48 (bicubic), centre crop 48" in found[""]["shared"]["test_transform"]
    for name, other in found.items():
        tested = name.startswith("test")
        assert (other["shared_hash"] != found[""]["shared_hash"]) == tested, name
        assert (other["recipe_hash"] != found[""]["recipe_hash"]) == (not tested and name != ""), name
