"""One image on its way into a shard: looked at whole, and kept byte for byte unless a smaller one is asked for."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.index import FORMATS

__all__ = ["QUALITY", "BrokenImage", "check_image", "encode_pixels", "shrink"]

QUALITY = 95
"""Of re-encoded JPEG and WebP images."""

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_MOST_PIXELS = 1 << 27  # 134 million: 400 MB decoded, more than any photograph of a data set has


class BrokenImage(ValueError):
    """Bytes that are no image; says what was found."""


def check_image(content: bytes) -> str:
    """Decode an encoded image to its last byte; gives its suffix: jpg, png or webp.

    A JPEG is decoded at an eighth of its size: all its coefficients are read, as a truncated or mangled one shows in
    them, and only the pixels are spared, which takes 0.7 of the time.

    Raises:
        BrokenImage: If it is none of ``FORMATS``, cannot be decoded, or has more than 2^27 pixels.
    """
    with _open(content) as image:
        image.draft(None, (1, 1))
        _load(image)
        return _SUFFIXES[str(image.format)]


def shrink(content: bytes, short_side: int) -> tuple[bytes, str]:
    """The image with its shorter side `short_side` pixels long; as it is where that is no longer anyway.

    Resized by Pillow's bicubic filter with antialiasing, and encoded as what it was: JPEG and WebP with quality
    ``QUALITY`` (JPEG without chroma subsampling), PNG without loss. Grey images stay grey, all others become RGB.

    Returns:
        The encoded image and its suffix.

    Raises:
        BrokenImage: As ``check_image``.
    """
    with _open(content) as image:
        form = str(image.format)
        width, height = image.size
        if min(width, height) <= short_side:
            _load(image)
            return content, _SUFFIXES[form]
        _load(image)
        scale = short_side / min(width, height)
        size = max(short_side, round(width * scale)), max(short_side, round(height * scale))
        small = image.convert("L" if image.mode == "L" else "RGB").resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    options = {"JPEG": {"quality": QUALITY, "subsampling": 0}, "WEBP": {"quality": QUALITY}, "PNG": {}}[form]
    small.save(buffer, form, **options)
    return buffer.getvalue(), _SUFFIXES[form]


def encode_pixels(pixels: NDArray[np.uint8]) -> tuple[bytes, str]:
    """Pixels [H, W] (grey) or [H, W, 3] -> PNG and its suffix."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue(), _SUFFIXES["PNG"]


def _open(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit on pixels, which is lower
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"more pixels than {_MOST_PIXELS} ({error})") from error
    except Exception as error:  # Pillow's decoders raise whatever the bytes make them stumble over
        raise BrokenImage(f"{len(content)} bytes that are no {', '.join(FORMATS)} image") from error
    if image.width * image.height > _MOST_PIXELS:
        raise BrokenImage(f"more pixels than {_MOST_PIXELS} ({image.width} x {image.height})")
    return image


def _load(image: Image.Image) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF data, which nobody reads
            image.load()
    except Exception as error:
        raise BrokenImage(f"bytes that cannot be decoded ({type(error).__name__}: {error})") from error
