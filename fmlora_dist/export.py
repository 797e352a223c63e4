"""A trained run as a plain timm ViT: a file that timm alone loads, or one that an ONNX runtime runs."""

import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors.torch import save

from fmlora_dist.data import RunData
from fmlora_dist.errors import UserError
from fmlora_dist.method import Method
from fmlora_dist.record import RunDirectory
from fmlora_dist.registry import get_method
from fmlora_dist.restore import restore
from fmlora_dist.vit.backbone import Backbone

if TYPE_CHECKING:
    from benchmarks.transforms import Transform

__all__ = ["PlainModel", "check_onnx", "plain_model", "timm_input"]

_TOLERANCE = 1e-4
"""Of the logits, absolute and relative to the largest."""
_CHECKED_IMAGES = 16
_ONNX_BYTES = 2**31 - 2**24
"""Protobuf's limit, less room for the graph."""


@dataclass(frozen=True, kw_only=True)
class PlainModel:
    """A timm ViT with the logits of a run's final model, and what its file says of it.

    ``metadata`` holds JSON by name: ``timm_create_model`` (model_name, kwargs), ``class_names`` (by the number of the
    logit; where each domain has a head of its own, each class once a domain), ``normalisation`` (mean, std of pixels in
    [0, 1]) and ``protocol``; and ``protocol_hash`` as it is in result.json.
    """

    model: Backbone
    metadata: dict[str, str]

    def to_safetensors(self) -> bytes:
        """The weights in fp32 by timm's names, and the metadata."""
        return save({name: value.contiguous() for name, value in self.model.state_dict().items()}, self.metadata)

    def to_onnx(self) -> bytes:
        """A graph from ``images`` [batch, 3, H, W] (normalised) to ``logits`` [batch, classes], and the metadata.

        Raises:
            UserError: the packages for it are not installed, or the model does not fit into one file.
        """
        check_onnx()
        import onnx

        size = sum(value.nbytes for value in self.model.state_dict().values())
        if size > _ONNX_BYTES:
            raise UserError(
                f"onnx: the weights have {size / 2**30:.1f} GiB, and an ONNX file holds at most 2; export safetensors"
            )
        program = torch.onnx.export(
            self.model,
            (torch.zeros(2, 3, *self.model.patch_embed.img_size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        graph = program.model_proto
        onnx.helper.set_model_props(graph, self.metadata)
        content: bytes = graph.SerializeToString()
        return content


def check_onnx() -> None:
    """Raises ``UserError`` where the packages that torch writes ONNX files with are not installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"onnx: {' and '.join(missing)} cannot be imported; install the extra: pip install 'fmlora-dist[onnx]'"
        )


def plain_model(folder: Path) -> PlainModel:
    """The final model of a complete run, on the CPU, its logits compared with the run's on test images.

    Raises:
        UserError: the folder holds no complete run, or the method's function is not that of a plain ViT.
    """
    record = RunDirectory(folder)
    name = record.config().method.name
    if not get_method(name).is_plain():
        raise UserError(
            f"export: {folder} is a run of '{name}', whose function is not that of a plain timm ViT, so timm cannot "
            "load it; `fmlora evaluate` tests it"
        )
    method, data, _ = restore(folder, device="cpu")
    result = record.result()
    if result is None:
        raise UserError(f"{record.result_file} cannot be read; `fmlora run --resume` makes it again")
    protocol = result["protocol"]
    shared = protocol["shared"]
    class_names = data.sequence.joint().class_names
    made = {
        "model_name": shared["backbone"],
        "kwargs": shared["backbone_options"]
        | {
            "img_size": shared["image_size"],
            "num_classes": len(class_names),
            "reg_tokens": method.backbone.num_reg_tokens,
            "no_embed_class": method.backbone.no_embed_class,
            "pretrained_cfg_overlay": timm_input(data.spec.image_size, data.transform)
            | {"mean": shared["mean"], "std": shared["std"]},
        },
    }
    model = _build(made, method, name)
    _compare(model, method, data, name)
    metadata = {
        "timm_create_model": json.dumps(made),
        "class_names": json.dumps(class_names, ensure_ascii=False),
        "normalisation": json.dumps({"mean": shared["mean"], "std": shared["std"]}),
        "protocol": json.dumps(protocol),
        "protocol_hash": result["protocol_hash"],
    }
    return PlainModel(model=model, metadata=metadata)


def timm_input(size: int, transform: "Transform") -> dict[str, Any]:
    """The test transform by timm's names: ``timm.data.resolve_model_data_config`` gives what the run had."""
    resize = transform.test_resize or size
    share = size / resize
    while math.floor(size / share) < resize:  # as timm computes the length to resize to
        share = math.nextafter(share, 0)
    return {
        "input_size": [3, size, size],
        "interpolation": transform.test_interpolation,
        "crop_pct": share,
        "crop_mode": "center" if transform.test_keeps_aspect else "squash",
    }


def _build(made: dict[str, Any], method: Method, name: str) -> Backbone:
    model = timm.create_model(made["model_name"], **made["kwargs"])
    assert isinstance(model, Backbone)
    weights = method.plain_weights()
    own = {key: value.shape for key, value in model.state_dict().items()}
    given = {key: value.shape for key, value in weights.items()}
    differ = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if differ:
        raise UserError(
            f"export: '{name}' on the backbone {made['model_name']} is not a plain timm ViT with one linear head: "
            f"{', '.join(differ[:3])}{' …' if len(differ) > 3 else ''} would be missing, unknown or of another shape"
        )
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def _compare(model: Backbone, method: Method, data: RunData, name: str) -> None:
    """A method of somebody else's may take itself for plain and not be."""
    for images, _ in data.test(data.tests[0], first=_CHECKED_IMAGES):
        expected = method(images)
        difference = (model(images) - expected).abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(
                f"export: the logits of '{name}' differ by {difference:.2g} from those of a plain timm ViT with its "
                "weights, so timm cannot load it; `fmlora evaluate` tests it"
            )
