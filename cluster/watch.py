"""What a grid's runs are doing: a live table in a terminal, a plain line for each finished task elsewhere.

Everything comes from the runs' own events.jsonl, so it is the same whoever started a run, and wherever.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["LOST", "MEMORY", "Follower", "RunState", "Watch", "show_duration"]

_STYLES = {"running": "cyan", "failed": "red", "done": "green", "elsewhere": "yellow", "waiting": "dim"}
"""Of each status; where not all runs fit the terminal, those of an earlier one are shown first."""
_BEGINNING = {"task": 1, "epoch": 0}
MEMORY = "use fewer runs at once, by resources.memory, or a smaller --batch-size or --cache-budget"
"""What to do when memory runs out."""
LOST = "its Ray worker was lost"
_BORDERS = 8
"""Lines of a terminal that are not rows of the table."""


class Follower:
    """Reads what was appended to a file of JSON lines since it was last asked."""

    def __init__(self, file: Path):
        self.file = file
        self._position = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The new whole lines that are JSON objects; a line still being written is left for the next time."""
        try:
            with open(self.file, "rb") as file:
                file.seek(self._position)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a process was killed in the middle of this line, and the next one went on after it
            if isinstance(event, dict):
                yield event


@dataclass
class RunState:
    """What is known of one run."""

    label: str
    """Benchmark, tasks and seed."""
    method: str
    folder: Path
    status: str = "waiting"
    """waiting, running, done, failed, or elsewhere: in the hands of another grid."""
    task: int = 0
    n_tasks: int = 0
    done: float = 0.0
    """Part of the whole run, from 0 to 1."""
    images_per_second: float | None = None
    acc: float | None = None
    """Mean accuracy after the last finished task, in %."""
    seconds_left: float | None = None
    message: str = ""
    """Why it failed."""
    failures: list[str] = field(default_factory=list)
    """Why it was tried again, each time."""
    started: float | None = None
    seconds: float | None = None
    """How long it took, once it is done."""
    host: str = ""
    """Where it works, or last did, as far as it has said it."""
    resumed: bool = False
    """Whether it went on from a checkpoint, or was started more than once."""
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    """Told every event of the run from the moment that it is added."""
    events: Follower = field(init=False)

    def __post_init__(self) -> None:
        self.events = Follower(self.folder / "events.jsonl")

    def update(self) -> list[dict[str, Any]]:
        """Take in the new events; gives them."""
        new = list(self.events.read())
        for event in new:
            kind = event.get("event")
            self.n_tasks = event.get("n_tasks", self.n_tasks)
            if kind == "start":
                self.message = ""  # of an earlier attempt
                self.host = str(event.get("host", ""))
                self.resumed = self.resumed or event.get("resumed_at", _BEGINNING) != _BEGINNING
            elif kind == "progress":
                self.task = event.get("task", self.task)
                self.done = event.get("done", self.done)
                self.images_per_second = event.get("images_per_second")
                self.seconds_left = event.get("seconds_left")
            elif kind in ("task", "complete"):
                self.task = event.get("task", self.task)
                self.acc = event.get("acc", self.acc)
            elif kind == "error":
                self.message = str(event.get("message", ""))
            for listener in self.listeners:
                listener(event)
        return new

    def begin(self) -> None:
        """It was given its place."""
        self.status, self.started = "running", time.monotonic()
        self.images_per_second = self.seconds_left = None  # what an earlier start left behind is no news
        self.host = self.message = ""

    def end(self, exit_code: int | None, message: str = "") -> None:
        """Its process has ended (with a negative code: by a signal; None: with its worker)."""
        self._stop(exit_code, message)
        self.status = "done" if exit_code == 0 else "failed"

    def again(self, exit_code: int | None, message: str = "") -> None:
        """Its process has ended, and it waits to be tried once more."""
        self._stop(exit_code, message)
        self.status, self.resumed = "waiting", True
        self.failures.append(self.message)

    def leave(self) -> None:
        """Another grid's process works on it."""
        self.status = "elsewhere"

    def _stop(self, exit_code: int | None, message: str) -> None:
        self.update()
        self.seconds = None if self.started is None else time.monotonic() - self.started
        if message:
            self.message = message
        elif exit_code is None:
            self.message = LOST
        elif exit_code < 0:
            self.message = f"it was ended by signal {-exit_code}" + (
                f" (out of memory? {MEMORY})" if exit_code == -9 else ""
            )
        elif exit_code > 0:
            self.message = self.message or _last_line(self.folder / "log.txt") or f"exit code {exit_code}"


class Watch:
    """Shows the runs of a grid while they work; ``with Watch(...) as watch`` and ``watch.poll()`` now and then."""

    def __init__(self, states: Iterable[RunState], console: Console, *, slots: int):
        """``slots`` runs work at once."""
        self.states = list(states)
        self.console = console
        self.slots = max(1, slots)
        self._begun = time.monotonic()
        self._ended: set[Path] = set()
        self._told: dict[Path, int] = {}
        self._live = (
            Live(console=console, get_renderable=self.render, refresh_per_second=4) if _moves(console) else None
        )

    def __enter__(self) -> "Watch":
        for state in self.states:
            state.update()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def poll(self) -> None:
        """Take in the news of all runs, and print them where there is no live table."""
        for state in self.states:
            for why in state.failures[self._told.get(state.folder, 0) :]:
                self._print(state, f"tried again: {why}")
            self._told[state.folder] = len(state.failures)
            if state.status != "running":
                self._print_end(state)
                continue
            for event in state.update():
                if event.get("event") == "task":
                    self._print(
                        state,
                        f"task {event.get('task')} of {state.n_tasks}, accuracy {_number(event.get('acc'))}, "
                        f"{_number(state.images_per_second, 0)} images/s, {show_duration(state.seconds_left)} left",
                    )

    def render(self) -> RenderableType:
        """The live table: as many runs as fit the terminal, those that work first."""
        table = Table(header_style="bold")
        for name in ("run", "method"):
            table.add_column(name, no_wrap=True)
        for name in ("task", "images/s", "accuracy", "time left"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("state")
        room = max(3, self.console.height - _BORDERS)
        shown = self.states
        if len(shown) > room:
            order = list(_STYLES)
            shown = sorted(shown, key=lambda state: order.index(state.status))[:room]
        for state in shown:
            table.add_row(
                state.label,
                state.method,
                f"{state.task} of {state.n_tasks}" if state.task else "–",
                _number(state.images_per_second, 0) if state.status == "running" else "–",
                _number(state.acc),
                show_duration(state.seconds_left) if state.status == "running" else "–",
                Text(_status(state), style=_STYLES[state.status], overflow="ellipsis"),
            )
        return Group(table, Text(self._summary(len(self.states) - len(shown)), style="dim"))

    def seconds_left(self) -> float | None:
        """An estimate for the whole grid, from the runs that are done or under way; None before there are any."""
        totals = [state.seconds for state in self.states if state.status == "done" and state.seconds]
        now, left = time.monotonic(), 0.0
        running = [state for state in self.states if state.status == "running"]
        for state in running:
            if state.started is not None and state.seconds_left is not None:
                left += state.seconds_left
                totals.append(now - state.started + state.seconds_left)
        waiting = sum(state.status == "waiting" for state in self.states)
        if not totals:
            return None
        longest = max((state.seconds_left or 0.0 for state in running), default=0.0)
        return max(longest, (left + waiting * sum(totals) / len(totals)) / self.slots)

    def _summary(self, hidden: int) -> str:
        count = {status: sum(state.status == status for state in self.states) for status in _STYLES}
        facts = [f"{count['done']} of {len(self.states)} runs done", f"{count['running']} running"]
        facts += [f"{count['waiting']} waiting"] if count["waiting"] else []
        facts += [f"{count['failed']} failed"] if count["failed"] else []
        facts += [f"{count['elsewhere']} in another grid"] if count["elsewhere"] else []
        facts += [f"{hidden} more not shown"] if hidden else []
        facts.append(f"{show_duration(time.monotonic() - self._begun)} so far")
        facts.append(f"about {show_duration(self.seconds_left())} left")
        return ", ".join(facts)

    def _print_end(self, state: RunState) -> None:
        if state.status in ("done", "failed") and state.started is not None and state.folder not in self._ended:
            self._ended.add(state.folder)
            ends = f"done, accuracy {_number(state.acc)}" if state.status == "done" else f"failed: {state.message}"
            self._print(state, f"{ends} ({self._summary(0)})")

    def _print(self, state: RunState, news: str) -> None:
        if not self._live:
            self.console.print(f"{state.label} {state.method}: {news}", highlight=False, markup=False, soft_wrap=True)


def _moves(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _status(state: RunState) -> str:
    if state.status == "running":
        return "starting" if state.seconds_left is None else f"running {state.done:.0%}"
    if state.status == "failed":
        return f"failed: {state.message}"
    if state.status == "waiting" and state.failures:
        return f"tried again: {state.failures[-1]}"
    return "in another grid" if state.status == "elsewhere" else state.status


def _last_line(file: Path) -> str:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip().removeprefix("fmlora: error: ") for line in reversed(lines) if line.strip()), "")


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def show_duration(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 2:03."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
