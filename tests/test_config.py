"""One config from flags, YAML and defaults."""

import re
from pathlib import Path

import pytest
import yaml

from fmlora_dist.config import RunConfig, make_config, parse_config
from fmlora_dist.errors import UserError
from fmlora_dist.registry import get_benchmark, get_method, list_methods
from running import tiny_data
from tiny_benchmark import tiny_arguments


def _parse(*words: object) -> RunConfig:
    return parse_config([str(word) for word in words], prog="fmlora run")[0]


def test_every_flag_of_the_issue_fills_its_field() -> None:
    words = "--benchmark icons --scenario cil --tasks 10 --seed 3 --order-seed 4 --epochs 2 --batch-size 64"
    words += (
        " --device cpu --threads 2 --method fmlora --method.rank 16 --method.candidates 2,4,8,16 --method.drs false"
    )
    words += " --method.drs_price 0.2 --method.prompt_tokens 7 --train.lr 1e-3 --backbone.name x --backbone.weights f"
    config = _parse(*words.split(), "--data-root", "/data")
    plain = config.plain()
    assert plain["tasks"] == 10 and plain["seed"] == 3 and plain["order_seed"] == 4
    assert plain["epochs"] == 2 and plain["batch_size"] == 64 and plain["data_root"] == "/data"
    assert plain["device"] == "cpu" and plain["threads"] == 2 and plain["train"]["lr"] == 0.001
    assert plain["backbone"]["name"] == "x" and plain["backbone"]["weights"] == "f"
    method = {"rank": 16, "candidates": [2, 4, 8, 16], "drs": False, "drs_price": 0.2, "prompt_tokens": 7}
    assert method.items() <= plain["method"].items()


@pytest.mark.parametrize(
    "words", [["--method.candidates", "4,16"], ["--method.candidates=4,16"], ["--method.candidates", "[4, 16]"]]
)
def test_a_list_is_written_with_commas_or_as_json(words: list[str]) -> None:
    assert _parse(*words).plain()["method"]["candidates"] == [4, 16]


@pytest.mark.parametrize("method", list_methods())
def test_a_config_survives_its_own_yaml(method: str) -> None:
    config = _parse(*tiny_arguments(tiny_data(), method=method))
    again = make_config(yaml.safe_load(yaml.safe_dump(config.plain())))
    assert again.plain() == config.plain() and again.key() == config.key()


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: {name: lora, rank: 4}\nseed: 5\ntrain: {lr: 0.5}\n")
    config = _parse("--config", path, "--method.alpha", 2, "--train.clip", 1)
    assert config.method.model_dump() == {"name": "lora", "rank": 4, "alpha": 2.0, "projections": ("q", "v")}
    assert (config.seed, config.order_seed, config.train.lr, config.train.clip) == (5, 5, 0.5, 1.0)


def test_another_method_by_flag_drops_the_files_fields_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: {name: fmlora, drs_price: 0.3}\nseed: 5\n")
    config = _parse("--config", path, "--method", "finetune")
    assert config.method.model_dump() == {"name": "finetune"} and config.seed == 5


@pytest.mark.parametrize("text", ["method: lora", "method: {name: lora}"])
def test_a_method_may_be_a_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert _parse("--config", tmp_path / "c.yaml").method.name == "lora"


def test_defaults_come_from_the_benchmark_and_the_method() -> None:
    config, spec = _parse("--method", "lora"), get_benchmark("icons")
    assert config.epochs == spec.epochs and config.batch_size == spec.batch_size
    assert config.tasks in spec.task_counts
    assert config.train.lr == get_method("lora").info.lr
    assert config.order_seed == config.seed == 0
    assert config.threads is not None and config.threads >= 1


def test_the_key_counts_what_changes_a_number_and_nothing_else() -> None:
    base = _parse(*tiny_arguments(tiny_data()))
    for name, value in (("workers", 7), ("cache_budget", 0), ("device", "cpu"), ("data_root", tiny_data().parent)):
        assert _parse(*tiny_arguments(tiny_data(), **{name: value})).key() == base.key(), name
    changed = {"seed": 1, "order_seed": 1, "epochs": 3, "batch_size": 9, "threads": 2, "tasks": 4, "method": "lora"}
    changed |= {"method__rank": 8, "train__lr": 0.1, "train__precision": "bf16", "backbone__normalisation": "unit"}
    keys = {_parse(*tiny_arguments(tiny_data(), **{name: value})).key() for name, value in changed.items()}
    assert len(keys | {base.key()}) == len(changed) + 1


@pytest.mark.parametrize("method", list_methods())
def test_every_field_of_a_method_is_explained(method: str) -> None:
    for name, field in get_method(method).Config.model_fields.items():
        assert field.description and re.match(r"\S.{10,}", field.description), f"{method}.{name}"


def test_a_field_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown field '--method.drs'"):
        _parse("--method", "lora", "--method.drs", "true")


def test_a_resumed_run_keeps_its_threads_unless_others_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("threads: 3\n")
    words = ["--out", str(tmp_path), "--resume"]
    assert parse_config(words, prog="fmlora run")[0].threads == 3
    assert parse_config([*words, "--threads", "2"], prog="fmlora run")[0].threads == 2
    assert parse_config(["--out", str(tmp_path / "none"), "--resume"], prog="fmlora run")[0].threads is not None


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=r"train.lr: .*finite"):
        make_config({"train": {"lr": float("inf")}})


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 << 20), ("8GiB", 8 << 30), ("0", 0), ("1.5 KiB", 1536), ("1TiB", 1 << 40), ("77", 77)],
)
def test_the_cache_budget_is_written_with_its_unit(text: str, size: int) -> None:
    assert _parse("--cache-budget", text).cache_bytes == size


@pytest.mark.parametrize("text", ["8GB", "lots", "-1", "GiB", "", "1e3GiB", "9" * 400])
def test_a_cache_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"cache_budget: .*expected .*GiB.*for example"):
        make_config({"cache_budget": text})


def test_a_budget_of_zero_may_be_a_number_in_yaml() -> None:
    assert make_config({"cache_budget": 0}).cache_bytes == 0


def test_a_transform_is_one_of_the_benchmarks_by_name_and_its_first_by_default() -> None:
    names = list(get_benchmark("imagenet_r").transforms)
    assert _parse("--benchmark", "imagenet_r").transform == names[0]
    assert _parse("--benchmark", "imagenet_r", "--transform", names[1]).transform == names[1]
    with pytest.raises(UserError, match=rf"transform: benchmark 'imagenet_r' has no '{names[1]}x'.*'{names[1]}'"):
        _parse("--benchmark", "imagenet_r", "--transform", names[1] + "x")


def test_pixels_are_normalised_as_the_benchmarks_published_tables_have_them_unless_told_otherwise() -> None:
    for name in ("icons", "imagenet_r"):
        assert _parse("--benchmark", name).backbone.normalisation == get_benchmark(name).normalisation
    assert get_benchmark("imagenet_r").normalisation == "unit"
    told = _parse("--benchmark", "imagenet_r", "--backbone.normalisation", "model")
    assert told.backbone.normalisation == "model"
