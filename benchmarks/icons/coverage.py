"""SVG to coverage: how much of each pixel is ink. And whether two drawings are the same drawing."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.icons.catalogue import Drawing

__all__ = ["SIDE", "first_of_each", "rasterise"]

SIDE = 96
"""Pixels a side of a coverage map: twice the benchmark's images, so that filters have room."""

_SIGNATURE = 24
_BLANK, _FULL = 0.015, 0.75


def rasterise(drawings: Sequence[Drawing], processes: int = 2) -> tuple[list[Drawing], NDArray[np.uint8]]:
    """Render drawings in black on white.

    Returns:
        The drawings that are drawings, leaving out those that resvg cannot read and those that come out nearly empty
        or nearly full, and their (n, SIDE, SIDE) coverage, 255 where there is ink.
    """
    with get_context("spawn").Pool(processes) as pool:
        maps = pool.map(_rasterise_one, [drawing.svg for drawing in drawings], chunksize=256)
    kept = [(drawing, image) for drawing, image in zip(drawings, maps, strict=True) if image is not None]
    stack = np.array([image for _, image in kept], dtype=np.uint8).reshape(-1, SIDE, SIDE)
    return [drawing for drawing, _ in kept], stack


def first_of_each(drawings: Sequence[Drawing], coverage: NDArray[np.uint8], threshold: float) -> list[int]:
    """Positions of the drawings that are no near-copy of one before them.

    Two drawings are near-copies if their SVG bodies are equal but for spaces, or if the correlation of their
    signatures reaches `threshold`. A signature is the inked box of the drawing, stretched to a small square and
    blurred; so a copy that was moved, scaled, or redrawn with a slightly thicker pen is still found.

    Args:
        drawings: n drawings, the more wanted first.
        coverage: (n, SIDE, SIDE) of the same drawings.
        threshold: Correlation in (0, 1].
    """
    signatures = np.stack([_signature(image) for image in coverage])
    kept: list[int] = []
    bodies: set[str] = set()
    taken = np.empty_like(signatures)
    for number, drawing in enumerate(drawings):
        body = hashlib.sha256(re.sub(r"\s+", "", drawing.svg).encode()).hexdigest()
        if body in bodies or (kept and float((taken[: len(kept)] @ signatures[number]).max()) >= threshold):
            continue
        bodies.add(body)
        taken[len(kept)] = signatures[number]
        kept.append(number)
    return kept


def _rasterise_one(svg: str) -> NDArray[np.uint8] | None:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIDE, height=SIDE, background="#ffffff", skip_system_fonts=True
        )
    except ValueError:
        return None
    grey = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("L"))
    coverage = (255 - grey).astype(np.uint8)
    if coverage.shape != (SIDE, SIDE) or not _BLANK <= coverage.mean() / 255 <= _FULL:
        return None
    return coverage


def _signature(coverage: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(SIDE, SIDE) → (_SIGNATURE²,), mean 0 and length 1."""
    ys, xs = np.nonzero(coverage > 64)
    if not len(ys):
        return np.zeros(_SIGNATURE**2, dtype=np.float32)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    small = Image.fromarray(coverage).resize((_SIGNATURE, _SIGNATURE), Image.Resampling.BOX, box=box)
    flat = np.asarray(small, dtype=np.float32)
    blurred = np.add.reduce([np.roll(flat, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]).ravel()
    blurred = blurred - blurred.mean()
    return np.asarray(blurred / max(float(np.linalg.norm(blurred)), 1e-6), dtype=np.float32)
