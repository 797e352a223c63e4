"""Pretrain the embedded backbone: `python -m benchmarks.icons.pretrain --package … --out …/backbone.safetensors`.

A small hybrid ViT that timm builds by itself learns from clean ink drawings of the benchmark's training-side families,
none of a concept that is in the benchmark. So it has seen neither a class, nor a test-side family, nor a rendition
other than ink of what the continual learners are asked. Two stages: first the concepts that many families draw, then
the words in the names of all drawings (`fast-boat` is `fast` and `boat`), of which there are three times as many. From
random weights the words alone got nowhere: after two epochs the loss had hardly left that of guessing by frequency.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.icons.catalogue import read_package
from benchmarks.icons.probe import probe
from benchmarks.icons.stages import STAGES, Data, Recipe, pretraining_data

__all__ = ["ARCHITECTURE", "NORMALISATION", "augment", "main", "pretrain"]

ARCHITECTURE: dict[str, Any] = {
    "model_name": "vit_tiny_r_s16_p8_224",
    "kwargs": {"img_size": 48, "patch_size": 2, "depth": 6, "num_classes": 0},
}
NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def augment(coverage: Tensor, generator: torch.Generator) -> Tensor:
    """Random affine maps, mirror images and widths of stroke: (B, S, S) uint8 → (B, 3, S, S) normalised ink.

    Families differ most in how thick they draw, and the families that are asked for later are none of these.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(coverage), generator=generator)

    angle, shear = uniform(-0.3, 0.3), uniform(-0.15, 0.15)
    scale_x, scale_y = uniform(0.9, 1.25), uniform(0.9, 1.25)
    flip = (uniform(0, 1) < 0.5).float() * 2 - 1
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([flip * cos * scale_x, -sin * scale_y + shear, uniform(-0.12, 0.12)], dim=1),
            torch.stack([flip * sin * scale_x, cos * scale_y, uniform(-0.12, 0.12)], dim=1),
        ],
        dim=1,
    )
    images = coverage.unsqueeze(1).float() / 255
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    width = uniform(-0.5, 0.8)[:, None, None, None]
    thick = nn.functional.max_pool2d(moved, 3, stride=1, padding=1)
    thin = -nn.functional.max_pool2d(-moved, 3, stride=1, padding=1)
    return _normalise(moved + torch.where(width > 0, width * (thick - moved), width * (moved - thin)))


def _normalise(images: Tensor) -> Tensor:
    """(B, 1, S, S) coverage in [0, 1] → black ink on white, three channels, in [-1, 1]."""
    return (1 - 2 * images).expand(-1, 3, -1, -1)


def pretrain(
    data: Data, recipe: Recipe, scratch: Path | None = None, start: dict[str, Tensor] | None = None
) -> tuple[nn.Module, dict[str, float]]:
    """Train on `data`.

    Args:
        data: Drawings to train on, and those of held-out families to test on.
        recipe: Everything that decides the result.
        scratch: Where the state is kept after each epoch, and taken up from if it is there.
        start: Weights to begin with, by timm's names; those that are missing (the classifier's) are random.

    Returns:
        The network with its classifier, and `accuracy` on the held-out families in % (the likeliest label is one of the
        drawing's), `minutes`, `images_per_second`.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    generator = torch.Generator().manual_seed(recipe.seed)
    head = {"num_classes": len(data.labels), "patch_drop_rate": recipe.patch_drop}
    model = timm.create_model(ARCHITECTURE["model_name"], **{**ARCHITECTURE["kwargs"], **head})
    if start is not None:
        model.load_state_dict({**model.state_dict(), **start})
    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    per_epoch = len(data.train) // recipe.batch_size
    steps = per_epoch * recipe.epochs

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * step / steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    first, seconds = _resume(scratch, parts, generator)
    for epoch in range(first, recipe.epochs):
        begun, total = time.monotonic(), 0.0
        model.train()
        order = torch.randperm(len(data.train), generator=generator)
        for batch in order[: per_epoch * recipe.batch_size].split(recipe.batch_size):
            # 1.3 times as fast as fp32 on a CPU that multiplies bf16, slower on one that does not.
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(augment(data.train[batch], generator))
            target = _targets(data.train_labels[batch], len(data.labels))
            loss = nn.functional.cross_entropy(logits.float(), target, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
            done = scheduler.last_epoch - epoch * per_epoch
            if done % 100 == 0:
                print(
                    f"  step {done}/{per_epoch}: {done * recipe.batch_size / (time.monotonic() - begun):.0f} images/s"
                )
        spent = time.monotonic() - begun
        seconds += spent
        accuracy = _accuracy(model, data.test, data.test_labels)
        print(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {total / per_epoch:.3f}, held-out families {accuracy:.2f} %, "
            f"{per_epoch * recipe.batch_size / spent:.0f} images/s",
            flush=True,
        )
        _keep(scratch, parts, generator, epoch + 1, seconds)
    images = per_epoch * recipe.batch_size * recipe.epochs
    outcome = {
        "accuracy": round(_accuracy(model, data.test, data.test_labels), 2),
        "minutes": round(seconds / 60, 1),
        "images_per_second": round(images / max(seconds, 1e-9)),
    }
    return model, outcome


def _targets(labels: Tensor, count: int) -> Tensor:
    """(B, W) numbers of labels, then -1 → (B, count), the same share for each label of a row."""
    known = (labels >= 0).float()
    shares = known / known.sum(dim=1, keepdim=True)
    return torch.zeros(len(labels), count).scatter_add_(1, labels.clamp(min=0), shares)


def save_backbone(model: nn.Module, path: Path, recipe: dict[str, object]) -> None:
    """Write the network without its classifier, in 16 bits, with what timm needs to build it in the metadata."""
    weights = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if not name.startswith("head.")
    }
    metadata = {
        "timm_create_model": json.dumps(ARCHITECTURE),
        "normalisation": json.dumps(NORMALISATION),
        "recipe": json.dumps(recipe, sort_keys=True),
    }
    temporary = path.with_suffix(".tmp")
    save_file(weights, temporary, metadata=metadata)
    temporary.replace(path)


@torch.inference_mode()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = 0
    for part, truth in zip(images.split(512), labels.split(512), strict=True):
        likeliest = model(_normalise(part.unsqueeze(1).float() / 255)).argmax(dim=1, keepdim=True)
        right += int((likeliest == truth).any(dim=1).sum())
    return 100 * right / len(labels)


def _keep(scratch: Path | None, parts: dict[str, Any], generator: torch.Generator, epoch: int, seconds: float) -> None:
    if scratch is None:
        return
    state = {name: part.state_dict() for name, part in parts.items()}
    numbers = {"generator": generator.get_state(), "patches": torch.get_rng_state(), "epoch": epoch, "seconds": seconds}
    temporary = scratch / "pretrain.tmp"
    torch.save({**state, **numbers}, temporary)
    temporary.replace(scratch / "pretrain.pt")


def _resume(scratch: Path | None, parts: dict[str, Any], generator: torch.Generator) -> tuple[int, float]:
    if scratch is None or not (scratch / "pretrain.pt").exists():
        return 0, 0.0
    state = torch.load(scratch / "pretrain.pt", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["patches"])
    return int(state["epoch"]), float(state["seconds"])


def _cached(scratch: Path | None, package: Path, benchmark: Path, recipe: Recipe) -> tuple[Data, str]:
    """The data and the package's version; rendered once, then read from `scratch`, a folder of this recipe's own."""
    path = None if scratch is None else scratch / "pretrain-data.pt"
    if path is not None and path.exists():
        stored = torch.load(path, weights_only=True)
        return Data(**stored["data"]), stored["version"]
    read = read_package(package)
    data = pretraining_data(read, benchmark, recipe)
    if path is not None:
        torch.save({"data": vars(data), "version": read.version}, path)
    return data, read.version


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description="Pretrain the embedded backbone on ink drawings outside the benchmark."
    )
    parser.add_argument("--package", type=Path, required=True, help="folder or .tgz of @iconify/json")
    parser.add_argument(
        "--out", type=Path, required=True, help="the .safetensors to write, beside the benchmark's index"
    )
    parser.add_argument("--scratch", type=Path, help="folder for rendered drawings and checkpoints; resumes from them")
    options = parser.parse_args(arguments)
    benchmark = options.out.parent
    weights: dict[str, Tensor] | None = None
    stages: list[dict[str, Any]] = []
    for recipe in STAGES:
        # What another recipe, package or benchmark has left there is not taken up.
        scratch = None if options.scratch is None else options.scratch / _key(recipe, options.package, benchmark)
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        data, version = _cached(scratch, options.package, benchmark, recipe)
        print(f"{len(data.labels)} {recipe.labels}, {len(data.train)} drawings, {len(data.test)} held out", flush=True)
        model, outcome = pretrain(data, recipe, scratch, weights)
        model.reset_classifier(0)  # type: ignore[operator]
        weights = model.state_dict()
        sizes = {"count": len(data.labels), "train_drawings": len(data.train), "test_drawings": len(data.test)}
        stages.append({"package_version": version, **asdict(recipe), **sizes, **outcome})
    record = {
        "seed": STAGES[0].seed,
        "stages": stages,
        "benchmark": probe(model, benchmark),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    save_backbone(model, options.out, record)
    print(json.dumps(record, indent=2))


def _key(recipe: Recipe, package: Path, benchmark: Path) -> str:
    """Name of a folder for what is made of these."""
    facts = [asdict(each) for each in STAGES[: STAGES.index(recipe) + 1]]
    digest = hashlib.sha256(json.dumps([facts, ARCHITECTURE, package.name], sort_keys=True).encode())
    for name in ("index.json", "recipe.json"):
        digest.update((benchmark / name).read_bytes())
    return f"{recipe.labels}-{digest.hexdigest()[:10]}"


if __name__ == "__main__":
    main()
