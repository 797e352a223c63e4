"""ImageNet-A: 200 ImageNet classes of images that classifiers get wrong, without a split of its authors' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.listing import Counts, Listing
from benchmarks.public_codes import BACKBONE, BATCH_SIZE, IMAGE_SIZE, PILOT
from benchmarks.spec import BenchmarkSpec
from benchmarks.wnids import ready_made, split_at_random, whole
from fmlora_dist.registry import register_benchmark

if TYPE_CHECKING:
    from benchmarks.preparation.sources import Source
    from benchmarks.preparation.splits import Split

__all__ = ["imagenet_a", "read"]

PUBLISHED = Counts(classes=200, images=7_500, train=6_000, test=1_500)


def read(source: Source, split: Split) -> Listing:
    """The folders of WordNet ids, from the folder or archive imagenet-a, or train/ and test/ with `--split folders`.

    Raises:
        UserError: If the folders are others than the split needs.
    """
    if split.kind == "folders":
        return ready_made(source, Counts(classes=PUBLISHED.classes))
    return split_at_random(whole(source), split.seed, PUBLISHED)


@register_benchmark
def imagenet_a() -> BenchmarkSpec:
    """200 classes, 7,500 images; N = 10 in SD-LoRA.

    - Split: the user's choice, since its authors have none. SD-LoRA reads the train/ and test/ folders that PILOT
      offers (`folders`); their sizes are not established. `random` draws 80/20, and its numbers are not comparable with
      those.
    - Transforms: PILOT, SD-LoRA and InfLoRA's data class do the same. All feed [0, 1].
    - Recipe: batches of 128 as SD-LoRA; its epochs are not established here, its learning rate last drops at epoch 15:
      20, as on its other data sets of 200 classes.
    """
    return BenchmarkSpec(
        name="imagenet_a",
        summary="ImageNet-A, 200 classes of hard photographs, 7,500 images",
        licence="MIT, as its repository says",
        image_size=IMAGE_SIZE,
        task_counts=(10,),
        backbone_name=BACKBONE,
        epochs=20,
        batch_size=BATCH_SIZE,
        transforms={"pilot": PILOT, "sdlora": PILOT, "inflora": PILOT},
        normalisation="unit",
        splits=("random", "folders"),
        read=read,
        download="https://github.com/hendrycks/natural-adv-examples (imagenet-a.tar)",
    )
