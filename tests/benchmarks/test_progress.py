"""The progress of `fmlora prepare` and `fmlora verify`: a bar on a terminal, a line now and then elsewhere."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks.preparation.progress import ImageProgress


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        monkeypatch.setattr("benchmarks.preparation.progress.time", SimpleNamespace(monotonic=self))

    def __call__(self) -> float:
        return self.now


def test_a_terminal_gets_a_bar_with_images_a_second_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shown = Clock(monkeypatch), io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system=None, width=100, get_time=clock)
    with ImageProgress("prepare", 180, console) as progress:
        progress.already(20)
        clock.now += 10
        progress.advance(50)
        clock.now += 2
        progress.advance(10)
        assert progress.rate == 5
    last = [line for line in shown.getvalue().splitlines() if "prepare" in line][-1]
    assert "━" in last
    assert last.split()[-5:] == ["80/180", "5", "images/s", "0:00:12", "0:00:20"], last


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shown = Clock(monkeypatch), io.StringIO()
    with ImageProgress("verify", 100, Console(file=shown)) as progress:
        clock.now += 5
        progress.advance(10)
        assert shown.getvalue() == ""
        clock.now += 6
        progress.advance(34)
        clock.now += 5
        progress.advance(6)
        assert shown.getvalue() == "verify: 44 of 100 images, 4 images/s, 14 s left\n"
        clock.now += 9
        progress.advance(50)
    assert shown.getvalue().splitlines()[1:] == ["verify: 100 of 100 images, 4 images/s, 0 s left"]
