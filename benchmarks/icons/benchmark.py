"""The embedded benchmark: everyday concepts as many open icon families draw them, in six renditions."""

from dataclasses import replace
from pathlib import Path

from benchmarks.spec import BenchmarkSpec, Cut
from benchmarks.transforms import Transform
from fmlora_dist.registry import register_benchmark

__all__ = ["icons", "icons_mini"]

DATA = Path(__file__).parent.parent / "data" / "icons"
LICENCE = "MIT, Apache-2.0, ISC, BSD, CC0, OFL, Unlicense or CC-BY, by icon family (benchmarks/data/icons/LICENSES.md)"


@register_benchmark
def icons() -> BenchmarkSpec:
    """200 concepts; the six renditions are the domains."""
    return BenchmarkSpec(
        name="icons",
        summary="200 concepts drawn by open icon families, in six renditions; 48x48; embedded",
        licence=LICENCE,
        image_size=48,
        task_counts=(5, 10, 20),
        backbone_weights=DATA / "backbone.safetensors",
        # By task 1's validation part (docs/study.md): as good as 12 epochs in batches of 32, in less time.
        epochs=8,
        batch_size=16,
        transforms={"default": Transform(crop_scale=(0.6, 1.0))},
        embedded=DATA,
    )


@register_benchmark
def icons_mini() -> BenchmarkSpec:
    """A fifth of the concepts and fewer drawings of each, for the demo."""
    return replace(
        icons(),
        name="icons_mini",
        summary="40 of the concepts of icons, at most 18 train and 8 test drawings each; for the demo",
        task_counts=(5, 10),
        epochs=6,
        batch_size=8,
        cut=Cut(of="icons", n_classes=40, max_train=18, max_test=8),
    )
