"""Train and test transforms on uint8 images, as the public codes do them on PIL images.

What is random is drawn on the host for a whole global batch, so the images depend neither on the number of processes
nor on the device, and no step waits for a copy back from the device. Images differ in size, so cropping, resizing and
mirroring go image by image, through one function: on a CPU in the threads that read, on a GPU after the cropped
windows were moved there together. Brightness and normalisation take the whole batch, on the run's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

__all__ = [
    "Crops",
    "Normalisation",
    "Transform",
    "Windows",
    "brighten",
    "draw_crops",
    "normalise",
    "resize_window",
    "view",
]

TRIES = 10
RATIO = (3 / 4, 4 / 3)

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done to images of one benchmark, in training and in test, before they are normalised."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of a training crop, as a share of the image (torchvision's RandomResizedCrop)."""
    interpolation: Interpolation = "bilinear"
    """Of the resize in training."""
    train_resize: int | None = None
    """Length in pixels to which training resizes both sides of the whole image, before it cuts a square of the image
    size out of it, anywhere; None: the random resized crops of `crop_scale`."""
    flip: bool = True
    """Whether training mirrors half of the images."""
    brightness: float = 0.0
    """Training multiplies pixels by a factor from [1 - brightness, 1 + brightness] (torchvision's ColorJitter)."""
    test_resize: int | None = None
    """Length in pixels to which a test image's shorter side is resized before the centre crop; None: the image size."""
    test_interpolation: Interpolation = "bicubic"
    """Of the test resize."""
    test_keeps_aspect: bool = True
    """False: both sides are resized to `test_resize`, whatever the image's shape."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels in [0, 1], as the backbone expects them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """What was drawn for n training images."""

    boxes: NDArray[np.int64]
    """[n, 4]: top, left, height, width in pixels of the original image."""
    places: NDArray[np.float64]
    """[n, 2]: where in the resized box, from 0 to 1 down and across, the square is cut (`train_resize`)."""
    mirrored: NDArray[np.bool_]
    """[n]: whether the crop is mirrored left to right."""
    brightness: Tensor
    """float32 [n]: factor of the pixels."""

    def __getitem__(self, part: slice) -> Crops:
        return Crops(
            boxes=self.boxes[part],
            places=self.places[part],
            mirrored=self.mirrored[part],
            brightness=self.brightness[part],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Crops of b images that are not resized yet, in one buffer: one copy takes them to a device."""

    pixels: Tensor
    """uint8, one dimension: the windows one after another, each [height, width, 3]."""
    shapes: tuple[tuple[int, int], ...]
    """Height and width of each window."""
    places: tuple[tuple[float, float], ...]
    """Of each window, as in ``Crops``."""
    mirrored: tuple[bool, ...]
    """Whether each window is mirrored."""
    size: int
    """Height and width S that they are to have."""
    transform: Transform

    def __len__(self) -> int:
        return len(self.shapes)

    def to(self, device: torch.device) -> Tensor:
        """The resized windows, uint8 [b, 3, S, S] on the device, without waiting for it."""
        moved = self.pixels.to(device, non_blocking=True)
        parts = moved.split([3 * height * width for height, width in self.shapes])
        return torch.stack(
            [
                resize_window(part.view(*shape, 3).permute(2, 0, 1), self.size, self.transform, place, mirrored)
                for part, shape, place, mirrored in zip(parts, self.shapes, self.places, self.mirrored, strict=True)
            ]
        )


def draw_crops(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    transform: Transform,
    generator: np.random.Generator,
    *,
    ratio: tuple[float, float] = RATIO,
) -> Crops:
    """Draw for n images what torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip`` and ``ColorJitter`` draw,
    or its ``RandomCrop`` where `train_resize` comes first.

    The distributions are theirs; the numbers are not, since theirs come one by one from global state.

    Args:
        heights: [n] heights of the original images in pixels.
        widths: [n] their widths.
        transform: Which crops.
        generator: Advances by the same amount whatever is drawn.
        ratio: Smallest and largest width of a box over its height.
    """
    n = len(heights)
    uniform = generator.random((5, n, TRIES))
    dimmed = generator.random(n)
    scale = transform.crop_scale
    area = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * uniform[0])
    aspect = np.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * uniform[1])
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (height >= 1) & (height <= heights[:, None]) & (width >= 1) & (width <= widths[:, None])
    first = fits.argmax(axis=1)[:, None]
    height, width, along, across, mirrored = (
        np.take_along_axis(values, first, axis=1)[:, 0] for values in (height, width, *uniform[2:])
    )
    top, left = np.floor(along * (heights - height + 1)), np.floor(across * (widths - width + 1))
    boxes = np.where(fits.any(axis=1), (top, left, height, width), _centred(heights, widths, ratio))
    if transform.train_resize:
        boxes = np.stack([np.zeros(n), np.zeros(n), heights, widths])
    brightness = 1 + transform.brightness * (2 * dimmed - 1)
    return Crops(
        boxes=boxes.T.astype(np.int64),
        places=np.stack([along, across], axis=1),
        mirrored=(mirrored < 0.5) & transform.flip,
        brightness=torch.from_numpy(np.maximum(brightness, 0).astype(np.float32)),
    )


def resize_window(
    window: Tensor, size: int, transform: Transform, place: tuple[float, float], mirrored: bool
) -> Tensor:
    """One training crop: uint8 [3, h, w] -> uint8 [3, S, S], antialiased as PIL does, mirrored if asked for.

    With `train_resize` the resized window is larger, and the square at `place` in it is the crop.
    """
    length = transform.train_resize or size
    mode = InterpolationMode(transform.interpolation)
    resized = F.resize(window, [length, length], interpolation=mode, antialias=True)
    top, left = (int(part * (length - size + 1)) for part in place)
    square = resized[:, top : top + size, left : left + size]
    return F.horizontal_flip(square) if mirrored else square


def view(image: Tensor, size: int, transform: Transform) -> Tensor:
    """One image under the test transform: uint8 [3, H, W] -> uint8 [3, S, S], resized and its centre cut out."""
    length = transform.test_resize or size
    sides = [length] if transform.test_keeps_aspect else [length, length]
    resized = F.resize(image, sides, interpolation=InterpolationMode(transform.test_interpolation), antialias=True)
    return F.center_crop(resized, [size, size])


def brighten(images: Tensor, factors: Tensor) -> Tensor:
    """Images uint8 [b, 3, S, S] times their factors [b] -> uint8 [b, 3, S, S]; like PIL, rounded down."""
    return images.float().mul_(factors[:, None, None, None]).clamp_(0, 255).to(torch.uint8)


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Images uint8 [b, 3, S, S] -> float32 [b, 3, S, S], (pixel / 255 - mean) / std."""
    factor, offset = _factor_and_offset(normalisation, images.device)
    if images.device.type != "cpu":
        return images.float().mul_(factor).add_(offset)
    # NumPy asks the system for huge pages, torch does not: a batch in small ones costs more than its arithmetic.
    pixels = torch.from_numpy(np.empty(images.shape, dtype=np.float32))
    return pixels.copy_(images).mul_(factor).add_(offset)


def _centred(
    heights: NDArray[np.int64], widths: NDArray[np.int64], ratio: tuple[float, float]
) -> Sequence[NDArray[np.int64]]:
    """Torchvision's way out when no try fits: the largest centred box of an allowed ratio."""
    shape = widths / heights
    height = np.where(shape < min(ratio), np.rint(widths / min(ratio)).astype(np.int64), heights)
    width = np.where(shape > max(ratio), np.rint(heights * max(ratio)).astype(np.int64), widths)
    return (heights - height) // 2, (widths - width) // 2, height, width


# Remembered for each device, since every new copy of a Python number to a device makes the host wait.
@lru_cache(maxsize=32)
def _factor_and_offset(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(normalisation.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(normalisation.std, dtype=torch.float64)[:, None, None]
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
