"""What makes two runs comparable, as an object that is hashed and stands under every table."""

import hashlib
import json
from typing import Any

import timm

from fmlora_dist.config import RunConfig
from fmlora_dist.data import RunData
from fmlora_dist.engine import Precision
from fmlora_dist.vit.backbone import Pretrained

__all__ = ["describe"]


def describe(config: RunConfig, data: RunData, pretrained: Pretrained, precision: Precision) -> dict[str, Any]:
    """The protocol of a run: a ``shared`` part in which all runs of a table agree, the row's ``recipe``, both hashes.

    Seeds are in neither: what the class order's seed decides is stated as a rule.
    """
    shared = {
        "benchmark": data.index.name,
        "split": data.index.split_hash,
        "tested_on": "validation" if config.train.validation else "test",
        **_sequence(data),
        "backbone": pretrained.name,
        "backbone_options": pretrained.options,
        "weights": pretrained.weights_hash,
        "image_size": data.spec.image_size,
        "mean": list(pretrained.mean),
        "std": list(pretrained.std),
        "test_transform": _test_transform(data),
        "metrics": "acc: mean over tasks; aaa: mean over t of the mean of row t",
        "predictions": config.method.predictions,
    }
    recipe: dict[str, Any] = {
        "method": config.method.model_dump(mode="json"),
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        # With what 'auto' stood for: else a run in fp32 and one in bf16 would be averaged in one cell.
        "train": config.train.model_dump(mode="json", exclude={"accumulation"}) | {"precision": precision.name},
        "crop_scale": list(data.transform.crop_scale),
        "crop_interpolation": data.transform.interpolation,
        "flip": data.transform.flip,
        "brightness": data.transform.brightness,
    }
    if precision.bf16:  # older results lack it: their tests rounded logits to bf16 as well
        recipe["test_logits"] = "fp32"
    if data.transform.train_resize:
        del recipe["crop_scale"]
        recipe["train_resize"] = data.transform.train_resize
    return {
        "shared": shared,
        "shared_hash": _hash(shared),
        "recipe": recipe,
        "recipe_hash": _hash(recipe),
        "timm": timm.__version__,
    }


def _test_transform(data: RunData) -> str:
    transform, size = data.transform, data.spec.image_size
    sides = "shorter side" if transform.test_keeps_aspect else "both sides"
    return f"{sides} to {transform.test_resize or size} ({transform.test_interpolation}), centre crop {size}"


def _sequence(data: RunData) -> dict[str, Any]:
    """How the images become tasks; what the scenario does not have is left out."""
    sequence = data.sequence
    facts: dict[str, Any] = {
        "split_rule": sequence.index.split_rule,
        "train_images": sum(len(task.train) for task in sequence),
        "test_images": sum(len(task.test) for task in sequence),
        "scenario": sequence.scenario,
        "order_rule": sequence.order_rule,
        "n_tasks": len(sequence),
    }
    if sequence.first_task:
        facts["first_task"] = sequence.first_task
    if sequence.scenario == "dil":
        facts |= {"domain_order": list(sequence.domains), "dil_head": sequence.heads}
    if sequence.excluded_domains:
        facts["excluded_domains"] = list(sequence.excluded_domains)
    return facts


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
