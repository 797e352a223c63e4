"""What several public codes share, whatever the data set: the size at which images enter, and their transforms.

A benchmark lists its transforms by the name of the code that uses them, so that a number is compared under the
transform of the code that it comes from. All feed pixels in [0, 1] (`normalisation` "unit") unless the benchmark says
otherwise.
"""

from __future__ import annotations

from benchmarks.transforms import Transform

__all__ = ["BACKBONE", "BATCH_SIZE", "CODA", "IMAGE_SIZE", "PILOT"]

IMAGE_SIZE = 224
BACKBONE = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
"""SD-LoRA's, as its logs show, and that of LibContinual's SD-LoRA; PILOT has `augreg_in21k_ft_in1k`, InfLoRA
`augreg_in21k`. A bare timm name means another of them in every second version of timm."""
BATCH_SIZE = 128
"""Of SD-LoRA, InfLoRA, CODA-Prompt and PILOT's fine-tuning."""
PILOT = Transform(crop_scale=(0.05, 1.0), test_resize=256, test_interpolation="bicubic")
"""PILOT and SD-LoRA on all their data sets."""
CODA = Transform(crop_scale=(0.08, 1.0), test_resize=256, test_interpolation="bilinear")
"""CODA-Prompt and InfLoRA on ImageNet-R and DomainNet."""
