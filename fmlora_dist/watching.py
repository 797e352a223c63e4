"""How a single run shows its progress: a bar in a terminal, a line a task elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fmlora_dist.record import RunDirectory

__all__ = ["show"]


@contextmanager
def show(record: RunDirectory, *, enabled: bool) -> Iterator[None]:
    """Show the record's events until the run ends."""
    if not enabled:
        yield
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn()
    console = Console()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=1.0, facts="")

        def listen(event: dict[str, Any]) -> None:
            kind = event["event"]
            if kind == "progress":
                facts = f"{event['images_per_second']:.0f} images/s"
                where = f"task {event['task']}/{event['n_tasks']} epoch {event['epoch']}/{event['epochs']}"
                progress.update(bar, completed=event["done"], description=where, facts=facts)
            elif kind == "task":
                say(f"task {event['task']}: accuracy {event['acc']:.2f}, last task {event['accuracies'][-1]:.2f}")
            elif kind == "complete":
                aaa = "" if event["aaa"] is None else f", AAA {event['aaa']:.2f}"
                say(f"{record.folder} is complete: Acc {event['acc']:.2f}{aaa}")

        def say(line: str) -> None:
            # One line, however narrow the terminal, and just as it is: a path may be long and hold brackets.
            console.print(line, soft_wrap=True, markup=False, highlight=False)

        record.listeners.append(listen)
        try:
            yield
        finally:
            record.listeners.remove(listen)
