"""The grid's own event log: what was started where, what was tried again, what failed; JSON lines, only appended to.

Several grids may write into one: each line is appended by one call. In an object store each start of a grid has one of
its own: events.jsonl, events-2.jsonl, …
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmlora_dist.errors import UserError

if TYPE_CHECKING:
    from fmlora_dist.report.aggregate import Planned

__all__ = ["Journal", "read_plans"]

_PLANNED = ("benchmark", "scenario", "n_tasks", "method")


class Journal:
    """A log in a grid's output folder."""

    def __init__(self, out: Path, grid: str, name: str = "events.jsonl"):
        """Raises ``UserError`` when the folder cannot be written."""
        self.file = out / name
        self.grid = grid
        self.broken = ""
        """Why lines were lost; '' when none were. A full disk must not stop the runs that still have room."""
        try:
            (out / "runs").mkdir(parents=True, exist_ok=True)
            with open(self.file, "ab"):
                pass
        except OSError as error:
            raise UserError(f"out: cannot write to {out}: {error.strerror}; choose another --out") from error

    def write(self, event: str, **facts: Any) -> None:
        """Append one event."""
        line = json.dumps(
            {"time": round(time.time(), 3), "event": event, "grid": self.grid, "pid": os.getpid(), **facts}
        )
        try:
            with open(self.file, "ab") as file:
                file.write(line.encode() + b"\n")
        except OSError as error:
            self.broken = self.broken or f"{self.file} cannot be written: {error.strerror}"

    @staticmethod
    def read(out: Path) -> list[dict[str, Any]]:
        """All events; lines that a kill has cut are left out."""
        files = sorted(out.glob("events*.jsonl"), key=lambda file: (len(file.name), file.name))
        try:
            lines = [line for file in files for line in file.read_bytes().splitlines()]
        except OSError:
            return []
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    @staticmethod
    def planned(out: Path) -> list[dict[str, Any]]:
        """The runs that the grids of a folder mean to make, as their last starts have written them."""
        last = {
            str(event.get("grid")): event.get("plan") for event in Journal.read(out) if event.get("event") == "grid"
        }
        plans = [plan for plan in last.values() if isinstance(plan, list)]
        return [run for plan in plans for run in plan if isinstance(run, dict) and {"run", *_PLANNED} <= run.keys()]

    @staticmethod
    def seconds(out: Path) -> dict[str, float]:
        """Seconds of each run that went from start to end in one piece, by name; its process's start included."""
        return {
            str(event["run"]): float(event["seconds"])
            for event in Journal.read(out)
            if event.get("event") == "done" and not event.get("resumed") and event.get("seconds")
        }


def read_plans(folders: Iterable[Path]) -> "list[Planned]":
    """What the grids of these folders mean to run (a grid's folder may hold others, or be named by its runs/)."""
    from fmlora_dist.report.aggregate import Column, Planned  # brings torch, which a trial leaves to its run

    found = []
    for folder in folders:
        grids = [folder.parent] if folder.name == "runs" else [folder, *(runs.parent for runs in folder.glob("*/runs"))]
        for plan in (plan for grid in grids for plan in Journal.planned(grid)):
            column = Column(plan["benchmark"], plan["scenario"], plan["n_tasks"])
            found.append(Planned(plan["run"], column, plan["method"]))
    return found
