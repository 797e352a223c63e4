"""Six ways of showing one drawing: the benchmark's domains.

Each takes the drawing's coverage (how much of each pixel is ink, 0 to 1) at twice the output size and a random
generator, and returns the picture as (S, S, 3) uint8. `ink` is what the backbone was pretrained on; the others differ
from it as ImageNet-R's paintings and toys differ from ImageNet's photographs.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["RENDITIONS", "render"]

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]


def render(rendition: str, coverage: Array, key: str) -> Picture:
    """Show a drawing in a rendition.

    Args:
        rendition: One of `RENDITIONS`.
        coverage: (2S, 2S) in [0, 1].
        key: The drawing's key; it seeds what is random, so that the same drawing always looks the same.

    Returns:
        (S, S, 3) RGB.
    """
    seed = int.from_bytes(hashlib.sha256(f"{rendition}/{key}".encode()).digest()[:8], "little")
    picture = RENDITIONS[rendition](coverage, np.random.default_rng(seed))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _ink(coverage: Array, rng: np.random.Generator) -> Array:
    """The drawing as it is: black on white."""
    return _mix((255, 255, 255), (0, 0, 0), _halve(coverage))


def _blueprint(coverage: Array, rng: np.random.Generator) -> Array:
    """Pale lines on blue paper with a faint grid."""
    size = coverage.shape[0] // 2
    paper = np.tile(np.array([32.0, 78.0, 156.0]) + rng.uniform(-14, 14, 3), (size, size, 1))
    pitch = int(rng.integers(7, 10))
    start_y, start_x = rng.integers(0, pitch, 2)
    paper[start_y::pitch, :] += 22
    paper[:, start_x::pitch] += 22
    lines = 0.45 * _halve(coverage) + 0.55 * _halve(_contours(coverage, 1.0))
    return _blend(paper, np.array([222.0, 236.0, 250.0]), np.clip(lines * 1.15, 0, 1))


def _colour(coverage: Array, rng: np.random.Generator) -> Array:
    """A random hue on another, either of them the lighter one."""
    hue = rng.uniform()
    other = hue + rng.uniform(0.25, 0.75)
    dark = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1.0), rng.uniform(0.35, 0.6))) * 255
    pale = np.array(colorsys.hsv_to_rgb(other % 1, rng.uniform(0.25, 0.6), rng.uniform(0.88, 1.0))) * 255
    ground, figure = (dark, pale) if rng.uniform() < 0.5 else (pale, dark)
    return _mix(ground, figure, _halve(coverage))


def _pixel(coverage: Array, rng: np.random.Generator) -> Array:
    """Twelve pixels a side, enlarged: dark on white in four grey levels."""
    size = coverage.shape[0] // 2
    cell = coverage.shape[0] // 12
    coarse = coverage.reshape(12, cell, 12, cell).mean(axis=(1, 3))
    coarse = np.rint(np.clip(coarse * 1.6, 0, 1) * 3) / 3
    return _mix((250, 250, 250), (20, 20, 20), np.kron(coarse, np.ones((size // 12, size // 12))))


def _chalk(coverage: Array, rng: np.random.Generator) -> Array:
    """Light, grainy, slightly trembling strokes on a dark board."""
    size = coverage.shape[0] // 2
    strokes = _halve(_tremble(_blur(coverage, 0.8), rng, 2.4))
    grain = np.clip(rng.normal(0.62, 0.42, (size, size)), 0.0, 1.0)
    dust = np.clip(_halve(_blur(coverage, 6.0)) * 0.18, 0, 1)
    board = np.array([38.0, 52.0, 46.0]) + rng.uniform(-12, 12)
    return _mix(board, (236, 234, 222), np.clip(strokes * grain + dust, 0, 1))


def _sketch(coverage: Array, rng: np.random.Generator) -> Array:
    """The contours alone, drawn twice with an unsteady pencil, on grey paper."""
    size = coverage.shape[0] // 2
    contours = _contours(coverage, 1.2)
    first, second = (_halve(_tremble(contours, rng, 3.0)) for _ in range(2))
    pencil = np.clip(np.maximum(first, 0.7 * second) * rng.uniform(0.7, 1.0, (size, size)), 0, 1)
    paper = rng.uniform(168, 205) + rng.normal(0, 4.0, (size, size))
    return _blend(np.repeat(paper[..., None], 3, axis=2), np.array([66.0, 66.0, 70.0]), pencil * 0.9)


RENDITIONS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "ink": _ink,
    "blueprint": _blueprint,
    "colour": _colour,
    "pixel": _pixel,
    "chalk": _chalk,
    "sketch": _sketch,
}
"""The domains, in the order of the domain-incremental sequence."""


def _halve(image: Array) -> Array:
    """(2S, 2S) → (S, S) by the mean of 2×2 pixels."""
    size = image.shape[0] // 2
    return image.reshape(size, 2, size, 2).mean(axis=(1, 3))


def _mix(ground: object, figure: object, amount: Array) -> Array:
    """A picture of two colours: `figure` where amount is 1, `ground` where it is 0."""
    paper = np.broadcast_to(np.asarray(ground, dtype=np.float64), (*amount.shape, 3))
    return _blend(paper, np.asarray(figure, dtype=np.float64), amount)


def _blend(paper: Array, figure: Array, amount: Array) -> Array:
    return paper + (figure - paper) * amount[..., None]


def _blur(image: Array, radius: float) -> Array:
    blurred = Image.fromarray(np.rint(image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float64) / 255


def _contours(coverage: Array, radius: float) -> Array:
    """Where ink meets paper: the gradient's length, scaled so that a sharp edge is about 1."""
    dy, dx = np.gradient(_blur(np.pad(coverage, 2), radius))
    return np.clip(np.hypot(dy, dx)[2:-2, 2:-2] * 2.6 * radius, 0, 1)


def _tremble(image: Array, rng: np.random.Generator, reach: float) -> Array:
    """Shift every pixel by a smooth random field of up to about `reach` pixels."""
    size = image.shape[0]
    fields = []
    for _ in range(2):
        coarse = Image.fromarray(rng.uniform(-reach, reach, (7, 7)).astype(np.float32))
        fields.append(np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64))
    y, x = np.mgrid[0:size, 0:size]
    rows = np.clip(np.rint(y + fields[0]), 0, size - 1).astype(np.intp)
    columns = np.clip(np.rint(x + fields[1]), 0, size - 1).astype(np.intp)
    return image[rows, columns]
