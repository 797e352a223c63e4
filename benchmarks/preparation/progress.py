"""How far many jobs are: a bar with images/s and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["ImageProgress"]

_SILENCE = 10.0
"""Seconds between two lines where there is no terminal."""


class ImageProgress:
    """Counts images until all are done."""

    def __init__(self, what: str, total: int, console: Console):
        """`what` is being done to `total` images."""
        self._what, self._total, self._console = what, total, console
        self._done, self._first = 0, 0
        self._start = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, rate="")

    def __enter__(self) -> ImageProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Images per second until now, without those that were there before."""
        return (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def already(self, images: int) -> None:
        """Images that an earlier call has done."""
        self._first = images
        self.advance(images)

    def advance(self, images: int) -> None:
        """That many more are done."""
        self._done += images
        rate = f"{self.rate:,.0f} images/s"
        self._bar.update(self._task, completed=self._done, rate=rate)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > _SILENCE:
            self._said = now
            left = (self._total - self._done) / max(self.rate, 1e-9)
            say = f"{self._what}: {self._done} of {self._total} images, {rate}, {left:,.0f} s left"
            self._console.print(say, soft_wrap=True, markup=False, highlight=False)
