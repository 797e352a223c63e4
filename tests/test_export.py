"""An exported model is the run's, and needs timm alone."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import benchmarks.transforms
from baselines.frozen import Frozen
from benchmarks.index import Index
from benchmarks.transforms import Transform
from fmlora_dist import registry
from fmlora_dist.card import LOADING
from fmlora_dist.errors import UserError
from fmlora_dist.export import PlainModel, timm_input
from fmlora_dist.fmlora.method import FMLoRAConfig
from fmlora_dist.registry import get_method, list_benchmarks, list_methods
from fmlora_dist.restore import restore
from fmlora_dist.vit.backbone import BackboneConfig, load_backbone
from running import command, command_here, finished, result, run_arguments, scratch, tiny_data

# Plugins that happen to be installed are not ours to test.
OURS = {name: cls for name, cls in list_methods().items() if cls.__module__.startswith(("baselines.", "fmlora_dist."))}
PLAIN = [name for name, cls in OURS.items() if cls.is_plain()]
SHORT: dict[str, object] = {"method": "fmlora", "method__drs": False, "tasks": 2, "epochs": 1}
AVERAGED = {"class_token": False, "global_pool": "avg"}
EMBEDDED = {"patch_size": 2, "depth": 6, "embed_dim": 192}
RUNS: dict[str, dict[str, object]] = {
    "no prompts": {"method": "fmlora", "method__prompt_tokens": 0},
    "sdlora official": {"method": "sdlora", "method__variant": "official"},
    "sdlora paper": {"method": "sdlora", "method__variant": "paper"},
    "domains": SHORT | {"scenario": "dil"},
    "a head a domain": {"method": "lora", "scenario": "dil", "tasks": 2, "dil_head": "per_domain", "train__lr": 0.01},
    # All runs above have a class token with an entry in the position embedding, which prompts make into another.
    "average": SHORT | {"backbone__options": json.dumps(AVERAGED)},
    "average after the norm": SHORT | {"backbone__options": json.dumps(AVERAGED | {"fc_norm": False})},
    "average beside a class token": SHORT | {"backbone__options": json.dumps({"global_pool": "avg"})},
    "registers of its own": SHORT | {"method__prompt_tokens": 0, "backbone__name": "test_vit3"},
    "another ViT": SHORT
    | {"method__prompt_tokens": 4, "backbone__name": "test_vit", "backbone__normalisation": "imagenet"},
    "embedded": SHORT | {"backbone__name": "", "backbone__weights": "", "backbone__options": json.dumps(EMBEDDED)},
}

WITH_TIMM_ALONE = """
import os, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fmlora_dist", "baselines", "benchmarks", "cluster"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
loading, *folders = sys.argv[1:]
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in folders:
    os.chdir(folder)
    names = {}
    exec(loading, names)
    with torch.no_grad():
        save_file({"logits": names["model"](load_file("images.safetensors")["images"])}, "logits.safetensors")
"""


@cache
def trained(name: str) -> Path:
    """The directory of a run of ``RUNS``, or of a method; not to be changed."""
    if name not in RUNS:
        return finished(name)
    out = scratch() / f"run-{name.replace(' ', '-')}"
    done = command(run_arguments(out, **RUNS[name]))
    assert done.code == 0, done.err
    return out


@cache
def exported(name: str) -> Path:
    """The file of such a run."""
    file = scratch() / f"export-{name.replace(' ', '-')}" / "model.safetensors"
    file.parent.mkdir()
    done = command_here(["export", trained(name), "--out", file])
    assert done.code == 0, done.err
    assert str(file) in done.out
    return file


@cache
def expected(name: str) -> tuple[Tensor, Tensor]:
    """Test images, and the logits that the run's own final model gives them."""
    method, data, _ = restore(trained(name), device="cpu")
    with torch.no_grad():
        images = torch.cat([next(data.test(samples, first=8))[0] for samples in data.tests])
        return images, method(images)


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def load(file: Path) -> nn.Module:
    """The model by the documented lines."""
    names: dict[str, Any] = {}
    exec(LOADING.replace('"model.safetensors"', repr(str(file))), names)
    model = names["model"]
    assert isinstance(model, timm.models.VisionTransformer)
    return model


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """By name, the logits of the exported model in a process that cannot import this project."""
    folders = {name: exported(name).parent for name in (*PLAIN, *RUNS)}
    for name, folder in folders.items():
        save_file({"images": expected(name)[0]}, folder / "images.safetensors")
    words = [sys.executable, "-I", "-c", WITH_TIMM_ALONE, LOADING, *map(str, folders.values())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=scratch())
    assert done.returncode == 0, done.stderr
    return {name: load_file(folder / "logits.safetensors")["logits"] for name, folder in folders.items()}


@pytest.mark.parametrize("name", [*PLAIN, *RUNS])
def test_timm_alone_gives_the_runs_logits(name: str, alone: dict[str, Tensor]) -> None:
    torch.testing.assert_close(alone[name], expected(name)[1], atol=1e-4, rtol=0)
    assert alone[name].std() > 1e-3, "logits that are all alike would show nothing"


def test_low_rank_methods_and_bounds_are_exported_and_the_others_refused(tmp_path: Path) -> None:
    assert {"finetune", "fmlora", "frozen", "inflora", "joint", "lora", "sdlora"} <= set(PLAIN)
    for name in set(OURS) - set(PLAIN):
        (tmp_path / "config.yaml").write_text(f"method: {name}\n")
        done = command_here(["export", tmp_path, "--out", tmp_path / "model.safetensors"])
        assert done.code == 2
        assert f"a run of '{name}', whose function is not that of a plain timm ViT" in done.err


@pytest.mark.parametrize("name", ["fmlora", "no prompts", "another ViT", "registers of its own"])
def test_metadata_says_all_that_is_needed(name: str) -> None:
    facts = metadata(exported(name))
    made = json.loads(facts["timm_create_model"])
    shared = result(trained(name))["protocol"]["shared"]
    assert made["model_name"] == shared["backbone"]
    assert made["kwargs"].items() >= shared["backbone_options"].items()
    assert (made["kwargs"]["img_size"], made["kwargs"]["num_classes"]) == (48, 12)
    prompts = {"fmlora": FMLoRAConfig().prompt_tokens, "another ViT": 4}.get(name, 0)
    assert made["kwargs"]["reg_tokens"] == prompts + (name == "registers of its own")
    assert made["kwargs"]["no_embed_class"] == (prompts > 0)
    assert json.loads(facts["normalisation"]) == {"mean": shared["mean"], "std": shared["std"]}
    assert facts["protocol_hash"] == result(trained(name))["protocol_hash"]
    assert json.loads(facts["protocol"]) == result(trained(name))["protocol"]


@pytest.mark.parametrize("name", ["fmlora", "joint", "domains", "a head a domain", "another ViT"])
def test_class_names_and_transform_give_the_runs_accuracies(name: str) -> None:
    """From the stored images to the names of their classes by what the file says, without this project."""
    index, model = Index.load(tiny_data()), load(exported(name))
    transform = create_transform(**resolve_model_data_config(model))
    names = json.loads(metadata(exported(name))["class_names"])
    right: dict[object, list[bool]] = {}
    _, data, _ = restore(trained(name), device="cpu")
    for task, samples in enumerate(data.sequence):
        images = [Image.open(stored_image(index, row)).convert("RGB") for row in samples.test]
        with torch.no_grad():
            answers = model(torch.stack([transform(image) for image in images])).argmax(1)
        classes = [index.classes[index.label[row]] for row in samples.test]
        right[task] = [names[answer] == wanted for answer, wanted in zip(answers, classes, strict=True)]
    accuracies = [100 * sum(found) / len(found) for found in right.values()]
    assert accuracies == pytest.approx(result(trained(name))["accuracy_matrix"][-1])
    assert sum(accuracies) > 0


def stored_image(index: Index, row: int) -> Any:
    import io

    shard = tiny_data() / index.shards[index.shard[row]].name
    return io.BytesIO(shard.read_bytes()[index.offset[row] : index.offset[row] + index.size[row]])


def test_a_head_a_domain_names_each_class_once_a_domain() -> None:
    names = json.loads(metadata(exported("a head a domain"))["class_names"])
    assert names == 2 * list(Index.load(tiny_data()).classes)
    assert json.loads(metadata(exported("domains"))["class_names"]) == names[:12]


def shipped_transforms() -> Iterator[tuple[int, Transform]]:
    for spec in list_benchmarks().values():
        yield from ((spec.image_size, transform) for transform in spec.transforms.values())


@pytest.mark.parametrize(
    ("size", "transform"), [*shipped_transforms(), (21, Transform(test_resize=38)), (32, Transform(test_resize=16))]
)
def test_timm_makes_the_same_images_of_it(size: int, transform: Transform) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((300, 260), Image.Resampling.BICUBIC)
    facts = timm_input(size, transform)
    assert math.floor(size / facts["crop_pct"]) == (transform.test_resize or size)
    theirs = create_transform(**facts, mean=(0, 0, 0), std=(1, 1, 1))(image)
    ours = benchmarks.transforms.view(torch.tensor(np.array(image)).permute(2, 0, 1), size, transform) / 255
    assert theirs.shape == ours.shape == (3, size, size)
    assert (theirs - ours).abs().max() < 3 / 255, "PIL and torch round apart"


def test_an_exported_model_is_a_backbone_for_further_runs() -> None:
    file = exported("fmlora")
    loaded = load_backbone(BackboneConfig(weights=str(file)), image_size=48)
    images, _ = expected("fmlora")
    method, _, _ = restore(trained("fmlora"), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), method.features(images), atol=1e-4, rtol=0)
    assert loaded.mean == (0.5, 0.5, 0.5)


# -- ONNX ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "files"), [("fmlora", 2), ("embedded", 1)])
def test_onnxruntime_gives_the_runs_logits_whatever_the_batch(name: str, files: int, tmp_path: Path) -> None:
    import onnxruntime

    out = tmp_path / ("model.safetensors" if files == 2 else "model.onnx")
    done = command_here(["export", trained(name), "--out", out, "--onnx"])
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "model.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images, logits = expected(name)
    for size in (1, 3, len(images)):
        (found,) = session.run(["logits"], {"images": images[:size].numpy()})
        np.testing.assert_allclose(found, logits[:size].numpy(), atol=1e-4, rtol=0)
    assert session.get_modelmeta().custom_metadata_map == metadata(exported(name))


def test_a_model_beyond_what_one_onnx_file_holds_is_refused() -> None:
    model = timm.create_model("vit_huge_patch14_224", device="meta")
    with pytest.raises(UserError, match=r"the weights have 2\.3 GiB, and an ONNX file holds at most 2"):
        PlainModel(model=model, metadata={}).to_onnx()


def test_onnx_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as where it is not installed
    done = command_here(["export", finished("frozen"), "--out", tmp_path / "model.safetensors", "--onnx"])
    assert done.code == 2
    assert "onnxscript cannot be imported" in done.err and "pip install 'fmlora-dist[onnx]'" in done.err
    assert list(tmp_path.iterdir()) == []


# -- what is refused ----------------------------------------------------------------------------------------------


class Squared(Frozen):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images).square()


class Pretender(Squared):
    @classmethod
    def is_plain(cls) -> bool:
        return True


class Extended(Frozen):
    def __init__(self, *words: Any, **options: Any):
        super().__init__(*words, **options)
        self.backbone.extra = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Squared, "a run of 'odd', whose function is not that of a plain timm ViT"),
        (Pretender, "the logits of 'odd' differ by"),
        (Extended, "not a plain timm ViT with one linear head: extra.bias, extra.weight would be missing"),
    ],
)
def test_a_function_that_is_no_plain_vit_is_refused(
    method: type[Frozen], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._methods, "odd", method)
    folder = tmp_path / "run"
    shutil.copytree(finished("frozen"), folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("name: frozen", "name: odd"))
    assert get_method("odd") is method
    done = command_here(["export", folder, "--out", tmp_path / "model.safetensors"])
    assert (done.code, message in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "model.pth"], "out: found model.pth, expected FILE.safetensors"),
        (["--out", "model.onnx"], "or FILE.onnx with --onnx"),
        (["--out", "nowhere/model.safetensors"], "out: cannot write nowhere/model.safetensors: No such file"),
        ([], "the following arguments are required: --out"),
    ],
)
def test_a_wrong_file_is_refused(words: list[str], message: str, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    done = command_here(["export", finished("frozen"), *words])
    assert (done.code, message in done.err, done.err.count("\n")) == (2, True, 1), done.err


def test_only_complete_runs_are_exported(tmp_path: Path) -> None:
    done = command_here(["export", tmp_path, "--out", tmp_path / "model.safetensors"])
    assert done.code == 2 and "is no run directory" in done.err
    (tmp_path / "run").mkdir()
    shutil.copy(finished("frozen") / "config.yaml", tmp_path / "run")
    done = command_here(["export", tmp_path / "run", "--out", tmp_path / "model.safetensors"])
    assert done.code == 2 and "the run is not complete" in done.err
    shutil.copy(finished("frozen") / "checkpoint.safetensors", tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{")
    done = command_here(["export", tmp_path / "run", "--out", tmp_path / "model.safetensors"])
    assert done.code == 2 and "result.json cannot be read" in done.err
