"""Backbones: by tag, from files, and what is said of those that do not fit."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fmlora_dist.errors import UserError
from fmlora_dist.vit.backbone import Backbone, BackboneConfig, Pretrained, load_backbone

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "patch_size": 8}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def load(weights: str | Path = "random", *, name: str = NAME, size: int = 32, **fields: Any) -> Pretrained:
    options = fields.pop("options", TINY)
    return load_backbone(BackboneConfig(name=name, weights=str(weights), options=options, **fields), image_size=size)


def timm_model(seed: int = 1, **options: Any) -> Backbone:
    """Trained elsewhere: a timm model with its classifier, and no parameter left at a constant."""
    torch.manual_seed(seed)
    model: Backbone = timm.create_model(NAME, img_size=32, num_classes=7, **(TINY | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def features(model: Backbone) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
    return out


def write_npz(model: Backbone, path: Path) -> None:
    """Google's layout of a ViT, written out from the names that timm documents."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads  # type: ignore[union-attr,index]
    out: dict[str, Any] = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for number in range(len(model.blocks)):
        block, there = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        for own, foreign in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[there + foreign + "/scale"] = state[block + own + ".weight"]
            out[there + foreign + "/bias"] = state[block + own + ".bias"]
        attention = there + "MultiHeadDotProductAttention_1/"
        for place, which in enumerate(("query", "key", "value")):
            part = slice(place * width, (place + 1) * width)
            kernel = state[block + "attn.qkv.weight"][part].T
            out[attention + which + "/kernel"] = kernel.reshape(width, heads, -1)
            out[attention + which + "/bias"] = state[block + "attn.qkv.bias"][part].reshape(heads, -1)
        out[attention + "out/kernel"] = state[block + "attn.proj.weight"].T.reshape(heads, -1, width)
        out[attention + "out/bias"] = state[block + "attn.proj.bias"]
        for layer in (0, 1):
            out[there + f"MlpBlock_3/Dense_{layer}/kernel"] = state[block + f"mlp.fc{layer + 1}.weight"].T
            out[there + f"MlpBlock_3/Dense_{layer}/bias"] = state[block + f"mlp.fc{layer + 1}.bias"]
    np.savez(path, **out)


def without_head(model: Backbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head.")}


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
def test_file_of_each_kind_gives_the_models_features(tmp_path: Path, suffix: str, with_head: bool) -> None:
    model, path = timm_model(), tmp_path / f"model.{suffix}"
    state = dict(model.state_dict()) if with_head else without_head(model)
    if suffix == "safetensors":
        save_file(state, path)
    elif suffix == "pth":
        torch.save({"state_dict": state} if with_head else state, path)
    else:
        write_npz(model, path)
    loaded = load(path)
    torch.testing.assert_close(features(loaded.model), features(model), atol=1e-6, rtol=0)
    assert not loaded.model.training
    assert all(parameter.isfinite().all() for parameter in loaded.model.parameters())


def test_half_precision_file_is_loaded_as_fp32(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in without_head(timm_model()).items()}
    save_file(state, tmp_path / "half.safetensors")
    loaded = load(tmp_path / "half.safetensors").model.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert all(torch.equal(value, state[name].float()) for name, value in loaded.items())


def test_metadata_describes_architecture_and_normalisation(tmp_path: Path) -> None:
    model, path = timm_model(num_heads=4, class_token=False, global_pool="avg"), tmp_path / "model.safetensors"
    described = {"model_name": NAME, "kwargs": TINY | {"num_heads": 4, "class_token": False, "global_pool": "avg"}}
    normalisation = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    metadata = {"timm_create_model": json.dumps(described), "normalisation": json.dumps(normalisation), "by": "us"}
    save_file(dict(model.state_dict()), path, metadata=metadata)
    loaded = load(path, name="", options={})
    assert loaded.name == NAME
    assert loaded.options == described["kwargs"]
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    torch.testing.assert_close(features(loaded.model), features(model), atol=1e-6, rtol=0)
    assert load(path, name="", options={}, normalisation="unit").mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"timm_create_model": "[]"}, "timm_create_model should be an object"),
        ({"timm_create_model": '{"model_name": [1]}'}, "timm_create_model should be an object with model_name"),
        ({"timm_create_model": '{"model_name": "x", "kwargs": [1]}'}, "kwargs"),
        ({"timm_create_model": "{"}, "no safetensors file of ours"),
        ({"normalisation": '{"mean": [0, 0, 0]}'}, "normalisation should hold mean and std"),
        ({"normalisation": '{"mean": [0, 0, 0], "std": ["a", 1, 1]}'}, "normalisation should hold mean and std"),
        ({"normalisation": "[1]"}, "normalisation should hold mean and std"),
    ],
)
def test_metadata_that_describe_nothing_are_one_clear_line(tmp_path: Path, metadata: dict[str, str], what: str) -> None:
    save_file(timm_model().state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(
        UserError, match=r"backbone\.weights: .*w\.safetensors is no safetensors file of ours"
    ) as caught:
        load(tmp_path / "w.safetensors")
    assert what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = timm_model().state_dict()
    state["blocks.1.attn.qkv.weight"][0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"not finite \(blocks.1.attn.qkv.weight\)"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("options", "what"),
    [({"img_size": 64}, "found img_size"), ({"num_classes": 5}, "found num_classes"), ({"depth": 0}, "has no blocks")],
)
def test_options_that_are_no_choice_of_the_user_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        load(options=TINY | options)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone\.weights: no file .*nothing\.pth"):
        load(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=r"backbone\.weights: no file"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin", "npz"])
@pytest.mark.parametrize("content", [b"", b"{ no weights at all }" * 20])
def test_file_that_is_no_weights_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"text.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"backbone\.weights: .*text\.{suffix}") as error:
        load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_truncated_file_is_named(tmp_path: Path) -> None:
    for suffix, write in (
        ("safetensors", lambda path: save_file(without_head(timm_model()), path)),
        ("pth", lambda path: torch.save(without_head(timm_model()), path)),
        ("npz", lambda path: write_npz(timm_model(), path)),
    ):
        path = tmp_path / f"cut.{suffix}"
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=rf"backbone\.weights: .*cut\.{suffix}"):
            load(path)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"depth": 3}, ["unknown: blocks.2.attn.proj.bias"]),
        ({"depth": 1}, ["missing: blocks.1.norm1.weight"]),
        ({"embed_dim": 24}, ["of another shape: cls_token"]),
        ({"class_token": False, "global_pool": "avg"}, ["missing: cls_token"]),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_another_architecture_name_the_first_keys_that_differ(
    tmp_path: Path, suffix: str, options: dict[str, Any], names: list[str]
) -> None:
    path = tmp_path / f"other.{suffix}"
    state = dict(timm_model(**options).state_dict())
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(UserError, match=r"backbone\.weights: .*other.*fits another architecture") as error:
        load(path)
    assert all(name in str(error.value) for name in names)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("options", "named"),
    [({"depth": 3}, "encoderblock_2"), ({"depth": 1}, "encoderblock_1"), ({"embed_dim": 24}, "other.npz")],
)
def test_npz_of_another_architecture_is_refused(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    """timm's loader itself would take the first two of three blocks and say nothing."""
    write_npz(timm_model(**options), tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"backbone\.weights: .*architecture") as error:
        load(tmp_path / "other.npz")
    assert named in str(error.value)


def test_npz_without_some_tensors_names_them(tmp_path: Path) -> None:
    write_npz(timm_model(), tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as whole:
        np.savez(tmp_path / "part.npz", **{key: whole[key] for key in whole.files if "encoder_norm" not in key})
    with pytest.raises(UserError, match=r"encoder_norm/scale|norm\.weight"):
        load(tmp_path / "part.npz")


class _Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_nothing_is_unpickled(tmp_path: Path, suffix: str) -> None:
    path, trace = tmp_path / f"evil.{suffix}", tmp_path / "ran"
    if suffix == "pth":
        torch.save({"state_dict": _Malicious(trace)}, path)
    elif suffix == "npz":
        np.savez(path, **{"embedding/kernel": np.array([_Malicious(trace)], dtype=object)})
    else:
        path.write_bytes(pickle.dumps(_Malicious(trace)))
    with pytest.raises(UserError, match=r"backbone\.weights"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_tiny_patch16_242", "did you mean 'vit_tiny_patch16_224'"),
        ("vit_bass_patch16_224.augreg_in21k", "did you mean 'vit_base_patch16_224'"),
        ("vit_base_patch16_224.augreg_in21", "did you mean 'vit_base_patch16_224.augreg_in21k'"),
    ],
)
def test_unknown_tag_names_the_nearest(name: str, hint: str) -> None:
    for weights in ("random", ""):
        with pytest.raises(UserError, match=rf"backbone\.name: timm knows no '{name}'") as error:
            load(weights, name=name)
        assert hint in str(error.value)


def test_a_name_without_its_weights_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="names no weights") as error:
        load("", name="vit_base_patch16_224")
    assert "vit_base_patch16_224.augreg_in21k" in str(error.value)


def test_name_like_nothing_is_refused_in_one_short_line() -> None:
    with pytest.raises(UserError, match=r"backbone\.name: timm knows no 'qqq'") as error:
        load(name="qqq")
    assert len(str(error.value)) < 300


def test_model_that_is_no_vit_is_refused() -> None:
    with pytest.raises(UserError, match="eva02_tiny_patch14_224 is a Eva, not a VisionTransformer"):
        load(name="eva02_tiny_patch14_224", options={"depth": 1}, size=28)


@pytest.mark.parametrize("options", [{"embed_dim": 50}, {"no_such_option": 1}, {"patch_size": 0}])
def test_options_that_timm_cannot_build_are_one_clear_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"backbone: timm cannot build {NAME} with .*{next(iter(options))}"):
        load(options=TINY | options)


def test_no_name_and_no_description_is_an_error(tmp_path: Path) -> None:
    save_file(without_head(timm_model()), tmp_path / "plain.safetensors")
    for weights in ("random", tmp_path / "plain.safetensors"):
        with pytest.raises(UserError, match=r"backbone\.name: none given"):
            load(weights, name="")


def test_random_weights_are_the_same_each_time_and_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    two = load()
    assert one.weights_hash == two.weights_hash
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


def test_hash_is_of_the_weights_not_of_the_file(tmp_path: Path) -> None:
    state = without_head(timm_model())
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file(dict(reversed(state.items())), tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.pth")
    hashes = {load(tmp_path / name).weights_hash for name in ("a.safetensors", "b.safetensors", "c.pth")}
    assert len(hashes) == 1
    state["norm.bias"][0] += 1e-6
    save_file(state, tmp_path / "d.safetensors")
    assert load(tmp_path / "d.safetensors").weights_hash not in hashes


def test_hash_takes_tensors_without_dimensions() -> None:
    loaded = load(name="vit_tiny_r_s16_p8_224", size=48, options={"patch_size": 2, "depth": 1})
    loaded.model.register_buffer("counter", torch.tensor(3))
    from fmlora_dist.vit.backbone import _hash

    assert _hash(loaded.model) != loaded.weights_hash


def test_parameters_are_counted_without_a_classifier() -> None:
    loaded = load()
    expected = sum(value.numel() for name, value in timm_model().named_parameters() if not name.startswith("head."))
    assert loaded.n_parameters == expected


@pytest.mark.parametrize(
    ("normalisation", "mean", "std"),
    [
        ("model", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("cifar", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ("unit", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_the_models_or_the_stated_one(normalisation: str, mean: Any, std: Any) -> None:
    loaded = load(normalisation=normalisation)
    assert (loaded.mean, loaded.std) == (mean, std)


def test_normalisation_of_the_model_follows_its_tag() -> None:
    imagenet = load(name="deit_tiny_patch16_224", options=TINY)
    assert imagenet.mean == pytest.approx((0.485, 0.456, 0.406))


def test_unknown_normalisation_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"backbone\.normalisation: unknown 'imagnet': did you mean 'imagenet'"):
        load(normalisation="imagnet")
