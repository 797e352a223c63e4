"""What a grid shows, from the runs' event files alone."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.place import _why_lost
from cluster.watch import LOST, Follower, RunState, Watch


def write(folder: Path, *events: dict[str, Any], end: str = "\n") -> None:
    folder.mkdir(exist_ok=True)
    with open(folder / "events.jsonl", "a") as file:
        file.write("\n".join(map(json.dumps, events)) + end)


def started(folder: Path) -> RunState:
    state = RunState(label="icons N=5 s0", method="lora", folder=folder)
    state.begin()
    return state


START = {"event": "start", "benchmark": "icons", "method": "lora", "n_tasks": 5, "seed": 0}
PROGRESS = {"event": "progress", "task": 2, "images_per_second": 123.4, "done": 0.25, "seconds_left": 61.0}
TASK = {"event": "task", "task": 1, "accuracies": [80.0], "acc": 80.0}


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "events.jsonl")
    assert list(follower.read()) == []
    write(tmp_path, START, TASK, end="")
    assert list(follower.read()) == [START]
    write(tmp_path, end="\n")
    assert list(follower.read()) == [TASK]
    assert list(follower.read()) == []


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "pro{"event": "start"}\n[1]\n' + json.dumps(TASK) + "\n")
    assert list(Follower(tmp_path / "events.jsonl").read()) == [TASK]


def test_a_run_says_where_it_works_and_a_new_place_is_not_known_before_it_does(tmp_path: Path) -> None:
    state = started(tmp_path)
    write(tmp_path, START | {"host": "a"})
    state.update()
    assert state.host == "a"
    state.again(None)
    state.begin()
    assert state.host == ""


def test_a_runs_state_follows_its_events(tmp_path: Path) -> None:
    state = started(tmp_path)
    write(tmp_path, START, TASK, PROGRESS)
    state.update()
    assert (state.task, state.n_tasks, state.acc, state.done, state.seconds_left) == (2, 5, 80.0, 0.25, 61.0)
    write(tmp_path, {"event": "complete", "acc": 70.0, "aaa": 75.0})
    state.end(0)
    assert (state.status, state.acc) == ("done", 70.0)


@pytest.mark.parametrize(
    ("events", "log", "code", "message"),
    [
        ([{"event": "error", "message": "the loss is nan in task 2"}], "x", 2, "the loss is nan in task 2"),
        ([], "Traceback\nfmlora: error: no such weights\n\n", 2, "no such weights"),
        ([], "", 1, "exit code 1"),
        ([], "task 1: accuracy 80\n", -9, "it was ended by signal 9 (out of memory? use fewer"),
        ([{"event": "error", "message": "of an earlier start"}, START], "", 1, "exit code 1"),
        ([], "", None, "its Ray worker was lost"),
    ],
)
def test_a_failure_has_its_reason_in_one_line(
    tmp_path: Path, events: list[dict[str, Any]], log: str, code: int | None, message: str
) -> None:
    state = started(tmp_path)
    write(tmp_path, *events)
    (tmp_path / "log.txt").write_text(log)
    state.end(code)
    assert state.status == "failed" and state.message.startswith(message)


def test_a_failure_has_not_the_reason_of_an_earlier_try(tmp_path: Path) -> None:
    state = started(tmp_path)
    write(tmp_path, {"event": "error", "message": "the disk is full"})
    state.again(2)
    assert state.message == "the disk is full"
    state.begin()
    (tmp_path / "log.txt").write_text("fmlora: error: no such weights\n")
    state.end(2)
    assert (state.message, state.failures) == ("no such weights", ["the disk is full"])


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        ("2 worker(s) were killed due to the node running low on memory.", True),
        ("(tasks and actors) killed due to memory pressure (OOM), ", True),
        (
            "(1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force is called",
            False,
        ),
        (None, False),
    ],
)
def test_memory_is_blamed_for_a_lost_worker_only_where_rays_monitor_says_so(error: str | None, memory: bool) -> None:
    message = _why_lost(Exception(error) if error else None)
    assert message.startswith(LOST) and ("resources.memory" in message) == memory


def test_without_a_terminal_each_finished_task_is_a_plain_line(tmp_path: Path) -> None:
    write(tmp_path, START, TASK)  # of an earlier start: no news
    state = RunState(label="icons N=5 s0", method="lora", folder=tmp_path)
    out = io.StringIO()
    with Watch([state], Console(file=out, width=40), slots=1) as watch:
        state.begin()
        watch.poll()
        state.again(-9)
        state.begin()  # at once, so that nobody sees it wait
        watch.poll()
        write(tmp_path, START, PROGRESS, TASK | {"task": 2, "acc": 70.5})
        watch.poll()
        state.end(0)
        watch.poll()
        watch.poll()
    lines = out.getvalue().splitlines()
    assert lines.pop(0).startswith("icons N=5 s0 lora: tried again: it was ended by signal 9")
    assert lines[0] == "icons N=5 s0 lora: task 2 of 5, accuracy 70.5, 123 images/s, 1:01 left"
    assert lines[1].startswith("icons N=5 s0 lora: done, accuracy 70.5 (1 of 1 runs done")
    assert len(lines) == 2


def test_in_a_terminal_there_is_a_live_table(tmp_path: Path) -> None:
    states = [RunState(label=f"icons N=5 s{n}", method="lora", folder=tmp_path / str(n), n_tasks=5) for n in range(4)]
    states[0].begin()
    write(states[0].folder, START, TASK, PROGRESS)
    states[1].begin()
    states[2].begin()
    states[2].end(1)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40, record=True)
    with Watch(states, console, slots=2) as watch:
        watch.poll()
        console.print(watch.render())
    rows = console.export_text().splitlines()
    for facts in (
        ("s0", "2 of 5", "123", "80.0", "1:01", "running 25%"),
        ("s1", "starting"),
        ("s2", "failed: exit code 1"),
        ("s3", "waiting"),
        ("0 of 4 runs done, 2 running, 1 waiting, 1 failed",),
    ):
        assert any(all(fact in row for fact in facts) for row in rows), facts


def test_a_table_longer_than_the_terminal_shows_what_works_first(tmp_path: Path) -> None:
    states = [RunState(label=f"run {n}", method="lora", folder=tmp_path / str(n)) for n in range(60)]
    states[50].begin()
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20, record=True)
    console.print(Watch(states, console, slots=1).render())
    text = console.export_text()
    assert "run 50" in text
    assert "48 more not shown" in text
    assert len(text.splitlines()) <= 20


def test_the_time_left_counts_the_waiting_runs(tmp_path: Path) -> None:
    states = [RunState(label=str(n), method="lora", folder=tmp_path / str(n)) for n in range(4)]
    watch = Watch(states, Console(file=io.StringIO()), slots=2)
    assert watch.seconds_left() is None
    states[0].status, states[0].seconds = "done", 100.0
    states[1].begin()
    states[1].seconds_left = 100.0
    assert watch.seconds_left() == pytest.approx((100 + 2 * 100) / 2, abs=1)
