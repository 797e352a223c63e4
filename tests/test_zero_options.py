"""DeepSpeed's JSON files against the run's config."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.utils.config import get_timers_config
from hypothesis import given
from hypothesis import strategies as st

from fmlora_dist.config import RunConfig, make_config, parse_config
from fmlora_dist.errors import UserError
from fmlora_dist.zero_options import deepspeed_names, fill_options, load_options, stage
from running import REPOSITORY


def _config(deepspeed: object, **fields: Any) -> RunConfig:
    return make_config({"benchmark": "icons", "method": "finetune", "deepspeed": str(deepspeed), **fields})


def _file(folder: Path, **options: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(options))
    return path


def test_the_shipped_configs_are_the_four_stages_with_everything_of_the_runs_left_to_the_run() -> None:
    assert [stage(load_options(name)) for name in deepspeed_names()] == [0, 1, 2, 3]
    for name in deepspeed_names():
        options = load_options(name)
        numbers = {key for key, value in options.items() if value == "auto"}
        assert numbers >= {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
        assert "gradient_clipping" in numbers and options["torch_autocast"]["enabled"] == "auto"
        for precision in ("fp32", "bf16", "auto"):
            assert _config(name, train={"precision": precision, "accumulation": 2}).deepspeed == name


@pytest.mark.parametrize("name", deepspeed_names())
def test_a_shipped_config_passes_the_check_of_a_users_file(name: str, tmp_path: Path) -> None:
    options = load_options(name)
    assert load_options(str(_file(tmp_path, **options))) == options


@given(st.integers(1, 64), st.integers(1, 8), st.floats(0, 10), st.booleans())
def test_auto_values_are_filled_from_the_run(micro: int, accumulation: int, clip: float, bf16: bool) -> None:
    filled = fill_options(load_options("zero2"), micro_batch=micro, accumulation=accumulation, clip=clip, bf16=bf16)
    assert '"auto"' not in json.dumps(filled)
    assert filled["train_micro_batch_size_per_gpu"] == micro and filled["gradient_clipping"] == clip
    assert filled["gradient_accumulation_steps"] == accumulation and filled["torch_autocast"]["enabled"] is bf16
    assert filled["zero_optimization"] == load_options("zero2")["zero_optimization"]
    assert not get_timers_config(filled).enabled, "it would wait for the GPU in every micro-batch"


def test_a_file_may_repeat_what_the_run_says(tmp_path: Path) -> None:
    repeated = {"train_batch_size": 16, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0}
    path = _file(
        tmp_path,
        **repeated,
        bf16={"enabled": "auto"},
        zero_optimization={"stage": 1, "offload_optimizer": {"device": "none"}, "reduce_bucket_size": "auto"},
    )
    config = _config(path, batch_size=16, train={"accumulation": 2, "clip": 1.0})
    assert config.deepspeed == str(path)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"train_batch_size": 99}, ["train_batch_size 99", "expected 16 or 'auto'", "--batch_size"]),
        ({"train_micro_batch_size_per_gpu": 4}, ["train_micro_batch_size_per_gpu 4", "--train.accumulation"]),
        ({"gradient_accumulation_steps": 3}, ["gradient_accumulation_steps 3", "expected 1", "--train.accumulation"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping 0.5", "expected 0.0", "--train.clip"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled True", "--train.precision"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled True", "--train.precision"]),
        ({"torch_autocast": {"enabled": True}}, ["torch_autocast.enabled True", "--train.precision"]),
        ({"optimizer": {"type": "Adam"}}, ["sets optimizer", "--train.optimizer"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["sets scheduler", "--train.schedule"]),
        ({"zero_optimisation": {}}, ["unknown key 'zero_optimisation'", "'zero_optimization'"]),
        ({"zero_optimization": {"stge": 1}}, ["unknown key 'zero_optimization.stge'", "'stage'"]),
        ({"zero_optimization": {"stage": 7}}, ["zero_optimization.stage", "found 7"]),
        ({"zero_optimization": {"stage": "auto"}}, ["zero_optimization.stage", "found 'auto'"]),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, ["offload_optimizer"]),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "nvme"}}}, ["offload_param"]),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, ["offload_optimizer"]),
        ({"communication_data_type": "fp17"}, ["does not take the file", "fp17"]),
        ({"flops_profiler": 3}, ["does not take the file"]),
        ({"torch_autocast": {"enabled": "auto", "dtype": "float16"}}, ["torch_autocast.dtype", "'float16'"]),
        ({"zero_optimization": 1}, ["zero_optimization: found 1"]),
    ],
)
def test_a_file_that_contradicts_the_run_is_refused(options: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        _config(_file(tmp_path, **options), batch_size=16, train={"precision": "fp32"})
    assert "deepspeed: " in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "part"), [(None, "cannot read"), ("{", "is no JSON"), ("[]", "holds a list, expected keys and values")]
)
def test_a_file_that_is_no_config_is_refused(text: str | None, part: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=part):
        load_options(str(path))


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"deepspeed: unknown 'zeero1': did you mean 'zero1'\?"):
        _config("zeero1")


@pytest.mark.parametrize("method", ["fmlora", "lora", "inflora", "sdlora", "hide_prompt", "frozen", "joint"])
def test_zero_3_is_refused_for_methods_that_do_not_train_all_weights(method: str) -> None:
    with pytest.raises(UserError, match=rf"zero3 is ZeRO-3.*found method '{method}'.*zero0, zero1 or zero2"):
        _config("zero3", method=method)


def test_more_micro_batches_than_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"train.accumulation: found 17, expected at most the 16 images"):
        _config("zero0", batch_size=16, train={"accumulation": 17})


def test_how_a_run_fits_the_machine_is_no_part_of_what_it_is() -> None:
    other = _config("zero2", train={"accumulation": 2})
    assert other.key() == _config("zero0").key()


def test_the_commands_of_the_page_are_valid_runs() -> None:
    page = (REPOSITORY / "docs" / "deepspeed.md").read_text()
    commands = [line.partition("train.py ")[2].split() for line in page.splitlines() if line.startswith("deepspeed ")]
    assert [parse_config(words, prog="fmlora run")[0].deepspeed for words in commands] == ["zero2", "zero3"]
    assert all(f"| `{name}` |" in page for name in deepspeed_names())
