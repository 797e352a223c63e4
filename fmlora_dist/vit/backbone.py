"""The pretrained timm vision transformer that every method starts from."""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from fmlora_dist.errors import UserError, nearest

__all__ = ["Backbone", "BackboneConfig", "Pretrained", "load_backbone"]

Backbone = VisionTransformer
"""A timm ViT without classifier: images [b, 3, H, W] -> pooled features [b, num_features]."""

RANDOM = "random"


class BackboneConfig(BaseModel):
    """Which ViT, and from which weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: str = ""
    """Full timm tag, such as vit_base_patch16_224.augreg_in21k; empty: the benchmark's own backbone."""
    weights: str = ""
    """File of weights (safetensors, npz, pth), or 'random'; empty: the benchmark's own, or the tag's hub weights."""
    options: dict[str, int | float | bool | str] = Field(default_factory=dict)
    """Further keyword arguments for timm.create_model, as JSON."""
    normalisation: str = ""
    """Pixels: 'model' (as the weights were trained), 'unit' ([0, 1], as most codes), 'imagenet', 'cifar' or 'half';
    empty: what the benchmark's published tables have, else 'model'."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A loaded backbone with the facts that the protocol records."""

    model: Backbone
    name: str
    options: dict[str, Any]
    """Further keyword arguments of timm.create_model; some, such as num_heads, leave no trace in the weights."""
    weights_hash: str
    n_parameters: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_NORMALISATIONS = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def load_backbone(config: BackboneConfig, *, image_size: int) -> Pretrained:
    """Build the ViT and load its weights.

    A safetensors file whose metadata holds ``timm_create_model`` (JSON: model_name, kwargs) says its own architecture.

    Raises:
        UserError: unknown tag, file that is missing or holds no weights, or weights of another architecture.
    """
    if config.normalisation not in ("", "model", *_NORMALISATIONS):
        known = nearest(config.normalisation, ("model", *_NORMALISATIONS))
        raise UserError(f"backbone.normalisation: unknown '{config.normalisation}': {known}")
    stated: dict[str, Any] = {}
    state: dict[str, Tensor] | None = None
    path = Path(config.weights)
    if config.weights not in ("", RANDOM):
        if not path.is_file():
            raise UserError(f"backbone.weights: no file {path}; give a file of weights, or leave the field empty")
        if path.suffix == ".safetensors":
            state, stated = _read_safetensors(path)
    described = stated.get("timm_create_model", {})
    name = config.name or described.get("model_name", "")
    if not name:
        raise UserError("backbone.name: none given, and the weights do not name their architecture; give a timm tag")
    options = described.get("kwargs", {}) | config.options
    sizes = {"img_size": image_size, "num_classes": 0}
    if told := config.options.keys() & sizes.keys():
        raise UserError(f"backbone.options: found {min(told)}, which is the benchmark's matter; leave it out")
    model = _create(name, options | sizes, pretrained=config.weights == "")
    if state is not None:
        _load(model, state, path)
    elif config.weights not in ("", RANDOM):
        _load_npz(model, path) if path.suffix == ".npz" else _load(model, _read_pickle(model, path), path)
    broken = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"backbone.weights: {path} holds values that are not finite ({broken[0]}); give sound weights")
    mean, std = _normalisation(config, model, stated)
    model.eval()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    options = {key: value for key, value in options.items() if key not in sizes}
    return Pretrained(
        model=model,
        name=name,
        options=options,
        weights_hash=_hash(model),
        n_parameters=n_parameters,
        mean=mean,
        std=std,
    )


def _create(name: str, options: dict[str, Any], *, pretrained: bool) -> Backbone:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models("*vit*"), n=1)
        ending = f"did you mean '{close[0]}'?" if close else "timm.list_models('*vit*') names those that it has"
        raise UserError(f"backbone.name: timm knows no '{name}': {ending}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if pretrained and tags and not tag:
        raise UserError(
            f"backbone.name: '{name}' names no weights, and timm may change which it takes; "
            f"choose one of {', '.join(tags)}"
        )
    if tag and name not in tags:
        raise UserError(f"backbone.name: timm knows no '{name}': {nearest(name, tags)}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # so that 'random' weights are the same in every process and run
            model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm's constructors and the hub's client (offline, missing, refused) raise many kinds
        if not pretrained or isinstance(error, (TypeError, ValueError, AssertionError)):
            raise UserError(f"backbone: timm cannot build {name} with {options}: {error}") from error
        raise UserError(
            f"backbone: the hub weights of {name} cannot be had ({type(error).__name__}: {error}); "
            "give a file with --backbone.weights FILE"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"backbone.name: {name} is a {type(model).__name__}, not a VisionTransformer; choose a timm ViT"
        )
    if not len(model.blocks):
        raise UserError(f"backbone: {name} with {options} has no blocks; choose a depth of at least 1")
    return model


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            stated = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if value[:1] in "{["}
        _check_stated(stated)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"backbone.weights: {path} is no safetensors file of ours or timm's: {error}") from error
    return state, stated


def _check_stated(stated: dict[str, Any]) -> None:
    """Raises ``ValueError`` when what the metadata say of architecture or normalisation cannot be read."""
    made = stated.get("timm_create_model", {})
    if not isinstance(made, dict) or not isinstance(made.get("model_name", ""), str):
        raise ValueError("its timm_create_model should be an object with model_name and kwargs")
    if not isinstance(made.get("kwargs", {}), dict):
        raise ValueError("the kwargs of its timm_create_model should be an object")
    facts = stated.get("normalisation")
    if facts is not None:
        numbers = [facts.get(name) for name in ("mean", "std")] if isinstance(facts, dict) else [None]
        for each in numbers:
            if not isinstance(each, list) or len(each) != 3 or not all(isinstance(n, (int, float)) for n in each):
                raise ValueError("its normalisation should hold mean and std, three numbers each")


def _load(model: Backbone, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    missing = [key for key in own if key not in state]
    extra = sorted(key for key in state if key not in own)  # the order in a file says nothing
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or extra or shapes:
        facts = [
            f"{what}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
            for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
            if keys
        ]
        raise UserError(f"backbone.weights: {path} fits another architecture ({'; '.join(facts)}); check backbone.name")
    model.load_state_dict({key: value.float() for key, value in state.items()})


def _read_pickle(model: Backbone, path: Path) -> dict[str, Tensor]:
    """A pth file by timm's own reader and mapping of names, without unpickling objects."""
    try:
        state = load_state_dict(str(path), weights_only=True)
        if not any(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("no tensors by name in it")
    except Exception as error:  # whatever a file that is no weights makes torch and timm raise
        raise UserError(f"backbone.weights: {path} holds no weights for timm: {_first_line(error)}") from error
    try:
        return checkpoint_filter_fn(state, model)
    except Exception:  # of another architecture, so that its shapes cannot be mapped: then the names tell
        return state


def _load_npz(model: Backbone, path: Path) -> None:
    """Google's npz by timm's own loader, which takes what it finds: so what it left is looked for afterwards."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    try:
        with np.load(path) as file:
            blocks = {int(found[1]) for key in file.files if (found := re.search(r"encoderblock_(\d+)/", key))}
        model.load_pretrained(str(path))
    except Exception as error:  # whatever a file that is no weights, or of other shapes, makes numpy and timm raise
        raise UserError(f"backbone.weights: {path} does not fit this architecture: {_first_line(error)}") from error
    left = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    left += [f"encoderblock_{number}" for number in sorted(blocks) if number >= len(model.blocks)]
    if left:
        facts = f"{', '.join(left[:3])}{' …' if len(left) > 3 else ''}"
        raise UserError(f"backbone.weights: {path} fits another architecture (no match: {facts}); check backbone.name")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _normalisation(config: BackboneConfig, model: Backbone, stated: dict[str, Any]) -> tuple[Any, Any]:
    if config.normalisation not in ("", "model"):
        return _NORMALISATIONS[config.normalisation]
    facts: Any = stated.get("normalisation") or model.pretrained_cfg
    return tuple(facts["mean"]), tuple(facts["std"])


def _hash(model: Backbone) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()
