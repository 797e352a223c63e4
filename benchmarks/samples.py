"""The images of one task and split: read by byte range, decoded by a few threads, kept when they fit in memory."""

from __future__ import annotations

import io
import math
import mmap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.index import FORMATS, Index
from benchmarks.store import Store
from benchmarks.transforms import Crops, Transform, Windows, resize_window, view
from fmlora_dist.errors import UserError

__all__ = ["Samples", "decoded_bytes"]

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
Places = Sequence[int] | NDArray[np.int64]

_FEW = 1 << 20
"""Bytes of decoded images below which starting threads takes longer than cropping and resizing them."""


class Samples:
    """The images that the given index rows name, and nothing else of the benchmark. Several threads may use it.

    Images are kept decoded, at the size they were stored in, so that crops are cut from the original pixels; or, where
    nothing but the test transform is asked for (`test_only`), as it leaves them.
    """

    opened: Callable[[Sequence[str]], None] | None = None
    """Receives the keys of the images that are about to be read, before each read."""

    def __init__(
        self,
        index: Index,
        store: Store,
        rows: Rows,
        labels: Rows,
        *,
        image_size: int | None = None,
        transform: Transform | None = None,
        test_only: bool = False,
        cache_bytes: int = 0,
        workers: int = 0,
        pin: bool = False,
    ):
        """Describe the images; nothing is read yet.

        Args:
            index: The benchmark's index.
            store: Its shards.
            rows: (n,) index rows of the images.
            labels: (n,) their labels.
            image_size: Height and width S of the images given out, in pixels; the index's own if None.
            transform: How images become S x S in training and in test.
            test_only: No crops will be asked for.
            cache_bytes: Memory for decoded images. If all n fit, each is opened and decoded once; if not, none is kept.
            workers: Threads that read, decode, crop and resize; 0 does it in the calling thread.
            pin: Whether what is given out lies in pinned memory, for a fast way to a GPU.
        """
        self.image_size = image_size or index.image_size
        if self.image_size < 1:
            raise ValueError(f"the images of '{index.name}' differ in size, so image_size must be given")
        self.transform = transform or Transform()
        self.pin = pin
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.keys = tuple(index.keys[row] for row in rows)
        self._index, self._store, self._workers = index, store, workers
        self._rows = np.asarray(rows, dtype=np.int64)
        self.heights, self.widths = (column[self._rows].astype(np.int64) for column in (index.height, index.width))
        """(n,) size of each original image in pixels."""
        self._test_only = test_only
        sizes = 3 * (np.full(len(rows), self.image_size**2) if test_only else self.heights * self.widths)
        self._ends = np.cumsum(sizes)
        self._fits = bool(sizes.sum() <= cache_bytes)
        self._kept: Pixels | None = None
        self._cached = np.zeros(len(rows), dtype=bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.keys)

    def images(self, positions: Places) -> Tensor:
        """Images (b,) under the test transform -> uint8 [b, 3, S, S], in memory of their own.

        Raises:
            UserError: If a shard is missing or too short, or its bytes are no image.
        """
        images = self._empty(len(positions))
        pixels = images.numpy()

        def put(place: int, kept: Pixels) -> None:
            pixels[place] = kept if self._test_only else self._view(kept)

        self._each(positions, put)
        return images

    def crops(self, positions: Places, crops: Crops) -> Tensor:
        """Training crops of the images (b,) -> uint8 [b, 3, S, S], in memory of their own.

        Raises:
            UserError: As ``images``.
        """
        images = self._empty(len(positions))
        pixels = images.numpy()
        boxes, places, mirrored = crops.boxes.tolist(), crops.places.tolist(), crops.mirrored.tolist()

        def put(place: int, original: Pixels) -> None:
            top, left, height, width = boxes[place]
            # Resizing bytes whose colours lie side by side, without a gap, takes half the time, the copy counted.
            window = original[top : top + height, left : left + width].copy()
            image = torch.from_numpy(window).permute(2, 0, 1)
            pixels[place] = resize_window(
                image, self.image_size, self.transform, places[place], mirrored[place]
            ).numpy()

        self._each(positions, put)
        return images

    def windows(self, positions: Places, crops: Crops) -> Windows:
        """Training crops of the images (b,) that are yet to be resized, for a device that does it faster.

        Raises:
            UserError: As ``images``.
        """
        boxes = crops.boxes.tolist()
        ends = np.cumsum([3 * height * width for _, _, height, width in boxes]).tolist()
        pixels = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=self.pin)
        flat = pixels.numpy()

        def put(place: int, original: Pixels) -> None:
            top, left, height, width = boxes[place]
            window = flat[ends[place] - 3 * height * width : ends[place]].reshape(height, width, 3)
            window[:] = original[top : top + height, left : left + width]

        self._each(positions, put)
        return Windows(
            pixels=pixels,
            shapes=tuple((height, width) for _, _, height, width in boxes),
            places=tuple(map(tuple, crops.places.tolist())),
            mirrored=tuple(crops.mirrored.tolist()),
            size=self.image_size,
            transform=self.transform,
        )

    def release(self) -> None:
        """Give back the memory of the decoded images; they are read anew when they are asked for again."""
        with self._lock:
            self._kept = None
            self._cached[:] = False

    def _each(self, positions: Places, put: Callable[[int, Pixels], None]) -> None:
        """put(place, image) for the image at each position, in any order, in the reading threads."""
        wanted = np.asarray(positions, dtype=np.int64)
        if not self._fits:
            self._open(wanted)
            self._in_threads(lambda place: put(place, self._read(wanted[place])), len(wanted))
            return
        with self._lock:  # or two threads that want the same image would both open it
            kept = self._kept
            if kept is None:
                kept = self._kept = _memory(int(self._ends[-1]) if len(self) else 0)
            missing = np.unique(wanted[~self._cached[wanted]])
            if missing.size:
                self._open(missing)
                self._in_threads(lambda n: self._copy(kept, missing[n]), len(missing))
                self._cached[missing] = True
        few = 3 * int((self.heights[wanted] * self.widths[wanted]).sum()) < _FEW
        self._in_threads(lambda place: put(place, self._place(kept, wanted[place])), len(wanted), alone=few)

    def _open(self, positions: Rows) -> None:
        if self.opened is not None:
            self.opened([self.keys[position] for position in positions])

    def _in_threads(self, work: Callable[[int], None], n: int, *, alone: bool = False) -> None:
        """work(0), …, work(n - 1)."""
        if alone or self._workers == 0 or n < 2:
            for number in range(n):
                work(number)
            return
        numbers = iter(range(n))  # shared: a thread that is done with one takes the next

        def some() -> None:
            for number in numbers:
                work(number)

        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as threads:
            for done in [threads.submit(some) for _ in range(min(self._workers, n))]:
                done.result()

    def _place(self, kept: Pixels, position: int) -> Pixels:
        """Where an image is kept: uint8 [H, W, 3]; [3, S, S] where nothing but the test transform is asked for."""
        if self._test_only:
            shape = (3, self.image_size, self.image_size)
        else:
            shape = (int(self.heights[position]), int(self.widths[position]), 3)
        end = int(self._ends[position])
        return kept[end - shape[0] * shape[1] * shape[2] : end].reshape(shape)

    def _copy(self, kept: Pixels, position: int) -> None:
        self._place(kept, position)[:] = self._read(position)

    def _read(self, position: int) -> Pixels:
        """The image at a position, from its shard, as it is kept."""
        original = self._decode(position)
        return self._view(original) if self._test_only else original

    def _view(self, original: Pixels) -> Pixels:
        """[H, W, 3] -> [3, S, S] under the test transform."""
        image = torch.tensor(original).permute(2, 0, 1)
        shown: Pixels = view(image, self.image_size, self.transform).numpy()
        return shown

    def _decode(self, position: int) -> Pixels:
        """The original image at a position, uint8 [H, W, 3], not to be written to."""
        row = int(self._rows[position])
        encoded = self._store.read(row)
        try:
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise whatever the bytes make them stumble over.
            raise UserError(
                f"{self._where(row)}: found {len(encoded)} bytes that cannot be decoded"
                f" ({type(error).__name__}: {error}), expected a {', '.join(FORMATS)} image; restore the shard, or"
                " write the index again if it is another shard's"
            ) from error
        height, width = int(self.heights[position]), int(self.widths[position])
        if pixels.shape[:2] != (height, width):
            raise UserError(
                f"{self._where(row)}: found an image of {pixels.shape[1]}x{pixels.shape[0]} pixels, expected"
                f" {width}x{height} as the index says; write the index again"
            )
        return pixels

    def _where(self, row: int) -> str:
        index = self._index
        shard = index.shards[index.shard[row]].name
        return f"{self._store.folder.where}/{shard}: sample '{index.keys[row]}' at byte {int(index.offset[row])}"

    def _empty(self, n: int) -> Tensor:
        shape = (n, 3, self.image_size, self.image_size)
        if self.pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(_memory(math.prod(shape), again=True).reshape(shape))


def _memory(n: int, *, again: bool = False) -> Pixels:
    """n bytes straight from the system, which gets them back when they are let go of.

    The C library would keep what a thread freed for that thread's successors, and each of them would add to it.

    Args:
        n: Number of bytes.
        again: The same amount will be asked for again and again: in huge pages, if there are any. Once and much would
            be slower in them, since the system first has to clear huge pages of what lies there.
    """
    if n < _FEW or not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(n, dtype=np.uint8)
    pages = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if again and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=np.uint8)


def decoded_bytes(index: Index, rows: Rows) -> int:
    """Bytes of the decoded images at the given index rows (n,), at the size they are stored in."""
    return 3 * int((index.height[rows].astype(np.int64) * index.width[rows]).sum())
