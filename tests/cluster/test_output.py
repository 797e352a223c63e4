"""A grid's record behind a URL: what the grid sees of it, which URLs are refused, and runs that work in it."""

import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console

from cluster import carry
from cluster.carry import Copy
from cluster.journal import Journal
from cluster.launch import Cluster, Options, print_plan, run_grid
from cluster.output import CheckedOut, ObjectStore, Output, open_output
from cluster.trial import Trial, _run, _unfit, supervise
from fmlora_dist import __version__
from fmlora_dist.config import make_config
from fmlora_dist.errors import InUseError, UserError
from fmlora_dist.record import RunDirectory
from memory_store import get, names, put
from running import assert_same_run, checkpoint, command_here, events, finished, result, tiny_data
from tiny_benchmark import BACKBONE

# -- the grid's side --------------------------------------------------------------------------------------------------


def test_a_path_is_a_folder_and_so_is_a_url_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for where in (tmp_path / "out", "out", f"file://{tmp_path}/out"):
        output = open_output(where)
        assert type(output) is Output and output.folder == tmp_path / "out"


def test_the_grids_copy_holds_results_and_logs_and_what_it_writes_there_is_put(url: str) -> None:
    put(url, events_jsonl=b'{"event": "grid"}\n', runs__x__result_json=b"{}", runs__x__events_jsonl=b"e\n")
    put(url, runs__x__checkpoint_safetensors=b"t")
    with open_output(url).opened() as output:
        run = output.folder / "runs" / "x"
        assert (run / "result.json").exists() and not (run / "events.jsonl").exists()
        output.refresh(["x"], [])
        assert (run / "events.jsonl").exists()
        put(url, runs__x__events_jsonl=b"e\nf\n", runs__y__events_jsonl=b"g\n")
        output.refresh(["x"], [])
        assert (run / "events.jsonl").read_text() == "e\n", "not so soon again"
        output.refresh(["x"], ["y"])
        assert (run / "events.jsonl").read_text() == "e\nf\n"
        assert (output.folder / "runs" / "y" / "events.jsonl").exists()
        assert not (run / "checkpoint.safetensors").exists()
        (output.folder / "tables.md").write_text("|")
        (run / "tensorboard").mkdir()
        (run / "tensorboard" / "events").write_text("-")
    assert {"tables.md", "runs/x/tensorboard/events"} <= names(url)
    assert not output.folder.exists()


def test_each_start_of_a_grid_has_a_log_of_its_own_and_all_are_read(url: str) -> None:
    for number in range(3):
        with open_output(url).opened() as output:
            journal = Journal(output.folder, "mine", output.begin())
            journal.write("done", run=f"run {number}", seconds=1.0)
    assert names(url) == {"events.jsonl", "events-2.jsonl", "events-3.jsonl"}
    with open_output(url).opened() as output:
        assert [event["run"] for event in Journal.read(output.folder)] == ["run 0", "run 1", "run 2"]
        assert Journal.seconds(output.folder) == {f"run {number}": 1.0 for number in range(3)}


def test_a_broken_result_is_renamed_there_too(url: str) -> None:
    put(url, runs__x__result_json=b"{", runs__x__checkpoint_safetensors=b"t")
    with open_output(url).opened() as output:
        aside = output.set_result_aside("x")
        assert aside is not None and aside.name == "result.json.broken-1"
        assert names(url) == {"runs/x/result.json.broken-1", "runs/x/checkpoint.safetensors"}
        put(url, runs__x__result_json=b'{"schema": 1}')
        output.update(())
        assert (output.folder / "runs" / "x" / "result.json").read_bytes() == b'{"schema": 1}'


def test_a_run_is_busy_while_its_holder_counts(url: str) -> None:
    store = ObjectStore(url, beat=0.05, patience=0.5)
    assert not store.busy("x")
    with store.check_out("x"):
        assert store.busy("x")
        time.sleep(0.7)
        assert store.busy("x")
        with pytest.raises(InUseError, match=f"another process works on {url}/runs/x"), ObjectStore(url).check_out("x"):
            pass
    assert not store.busy("x")


class Careless(MemoryFileSystem):
    """A server that does not know the condition under which it is to create."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value)


class Looking(LocalFileSystem):
    """Fsspec's own way: look whether there is a file, then write one."""

    protocol = "looking"


class Locked(MemoryFileSystem):
    protocol = "locked"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        raise PermissionError("no such luck")


for kind in (Careless, Looking, Locked):
    fsspec.register_implementation(str(kind.protocol), kind, clobber=True)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3:/bucket/paper", "found 's3:/bucket/paper', expected a folder, or a URL such as s3://bucket/paper"),
        ("s3://", "expected a folder, or a URL such as s3://bucket/paper"),
        ("s3:///paper", "expected a folder, or a URL such as s3://bucket/paper"),
        ("nonsense://x", "nonsense://x: found a URL that fsspec does not open (Protocol not known: nonsense)"),
        ("sftp://host/x", "sftp://host/x: found no installed package that opens it"),
        ("careless://x/y", "careless://x/y: found no way to create objects exclusively"),
        ("looking://x/y", "looking://x/y: found no way to create objects exclusively"),
        ("locked://x/y", "locked://x/y: found PermissionError: no such luck; check the URL, your credentials"),
    ],
)
def test_a_url_that_no_grid_can_use_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command_here(["grid", "demo", "--out", out])
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert "Ray" not in done.out and list(tmp_path.iterdir()) == []


def test_a_plan_and_a_report_read_what_is_behind_a_url(tmp_path: Path, url: str) -> None:
    root = finished("lora")
    (tmp_path / "one.yaml").write_text("benchmarks: [{benchmark: icons_mini, tasks: [5]}]\nmethods: [lora]\nseeds: [0]")
    text = io.StringIO()
    assert print_plan(str(tmp_path / "one.yaml"), url, Console(file=text, width=200), Options(), Cluster(cpus=2)) == 0
    assert "grid one: 1 runs, 0 done, 1 to run" in text.getvalue() and names(url) == set()
    put(url, runs__one__result_json=(root / "result.json").read_bytes())
    done = command_here(["report", url])
    assert done.code == 0 and "lora [1]" in done.out
    assert command_here(["report", "sftp://host/x"]).code == 2


def test_when_all_is_finished_nothing_but_the_report_is_written(tmp_path: Path, url: str) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("benchmarks: [{benchmark: icons_mini, tasks: [5]}]\nmethods: [lora]\nseeds: [0]\n")
    from cluster.plan import load_grid, plan_runs

    (run,) = plan_runs(load_grid(str(file)), tmp_path)
    loaded = result(finished("lora"))
    put(f"{url}/runs/{run.name}", result_json=json.dumps(loaded).encode())
    text = io.StringIO()
    assert run_grid(str(file), url, Console(file=text, width=200)) == 0
    assert "1 finished, 0 to run" in text.getvalue()
    assert f"written: {url}/report/tables.md, {url}/report/tables.tex" in text.getvalue()
    written = {name for name in names(url) if not name.startswith("runs/")}
    forms = {"report/tables.md", "report/tables.tex", "report/tables.csv", "report/index.html"}
    assert forms < written
    assert {name.partition("/")[0] + Path(name).suffix for name in written - forms} == {"report.svg", "report.pdf"}


# -- the worker's side ------------------------------------------------------------------------------------------------


def trial(url: str, **changes: object) -> Trial:
    backbone: dict[str, Any] = {
        name.removeprefix("--backbone."): value for name, value in zip(BACKBONE[::2], BACKBONE[1::2], strict=True)
    }
    backbone["options"] = json.loads(backbone["options"])
    values: dict[str, Any] = {"benchmark": "icons", "data_root": str(tiny_data()), "tasks": 3, "epochs": 2}
    values |= {"batch_size": 8, "threads": 1, "backbone": backbone, "method": "lora"}
    config = make_config(values).plain()
    made: dict[str, Any] = {"name": "x", "config": config, "out": url, "folder": "", "cwd": str(Path.cwd())}
    made |= {"version": __version__, "processes": 1, "bundle": {"CPU": 1.0}, "stall_timeout": 0.0}
    return {**made, **changes}  # type: ignore[typeddict-item, return-value]


def children() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"fmlora_dist.cli\0run\0" in words and b"/x\0--resume" in words:
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                found += [int(folder.name)] if int(parent) == os.getpid() else []
    return found


def test_a_run_behind_a_url_goes_on_from_there_in_another_folder_and_ends_as_a_local_one(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carry, "_EVERY", 0.0)  # as if training took hours
    monkeypatch.setattr("cluster.trial._LOOK_EVERY", 0.02)
    push = Copy.push

    def push_and_kill(copy: Copy) -> None:
        push(copy)
        if "runs/x/events.jsonl" in names(url) and b'"event": "task"' in get(url, "runs/x/events.jsonl"):
            monkeypatch.undo()
            for pid in children():
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Copy, "push", push_and_kill)
    put(url, events_jsonl=b"")
    assert _unfit(trial(url)) is None
    outcome = _run(trial(url))
    assert (outcome["status"], outcome["exit_code"]) == ("failed", -9)
    left = names(url)
    assert {"runs/x/config.yaml", "runs/x/checkpoint.safetensors", "runs/x/lease-1"} <= left
    assert "runs/x/result.json" not in left and json.loads(get(url, "runs/x/lease-1"))["released"]

    assert _run(trial(url))["status"] == "done"
    there = tmp_path / "there"
    MemoryFileSystem().get(f"{url}/runs/x", str(there), recursive=True)
    starts = [event for event in events(there) if event["event"] == "start"]
    assert len(starts) == 2 and starts[1]["resumed_at"] != starts[0]["resumed_at"]
    assert_same_run(there, finished("lora"))
    assert checkpoint(there)[1]["task"] == 4

    # whoever comes later finds it complete, and starts nothing
    outcome = _run(trial(url, config={"benchmark": "nonsense"}))
    assert outcome["status"] == "done"


def test_a_run_whose_lease_is_lost_is_ended_and_counts_as_busy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "_EVERY", 0.0)
    put(url, events_jsonl=b"")

    def overtake() -> None:
        end = time.monotonic() + 60
        while not children() and time.monotonic() < end:
            time.sleep(0.02)
        MemoryFileSystem().pipe_file(f"{url}/runs/x/lease-2", b"{}")

    other = threading.Thread(target=overtake)
    other.start()
    outcome = _run(trial(url))
    other.join()
    assert outcome["status"] == "busy" and "has taken x over" in outcome["message"]
    assert children() == []


def test_a_worker_that_does_not_see_the_grids_url_refuses(url: str) -> None:
    outcome = _unfit(trial(url))
    assert outcome is not None and outcome["status"] == "unfit"
    assert f"does not see the grid's files at {url}; expected a URL that all nodes reach" in outcome["message"]
    outcome = _unfit(trial("sftp://host/x"))
    assert outcome is not None and "found no installed package that opens it" in outcome["message"]


def test_a_further_process_puts_its_log_beside_the_runs(url: str, tmp_path: Path) -> None:
    with ObjectStore(url).beside("x") as place:
        (place.folder / "log-1.txt").write_text("said")
        place.keep()
        assert get(url, "runs/x/log-1.txt") == b"said", "of a process that hangs, too"
        (place.folder / "log-1.txt").write_text("said more")
        place.finish()
    assert get(url, "runs/x/log-1.txt") == b"said more"
    with Output(tmp_path).beside("x") as place:
        assert place.folder == tmp_path / "runs" / "x"


def test_in_a_folder_nothing_is_carried(tmp_path: Path) -> None:
    with Output(tmp_path).check_out("x") as place:
        assert isinstance(place, CheckedOut) and place.folder == tmp_path / "runs" / "x"
        place.keep()
        place.finish()
    assert list(tmp_path.iterdir()) == []
    assert not Output(tmp_path).busy("x") and not RunDirectory(tmp_path / "runs" / "x").busy


def test_supervise_ends_the_processes_when_keep_says_so() -> None:
    ended = []

    class Process:
        def poll(self) -> int | None:
            return None

        def pause(self, seconds: float) -> None:
            pass

        def stop(self) -> None:
            ended.append(self)

    def keep() -> None:
        raise UserError("the store is full")

    with pytest.raises(UserError, match="the store is full"):
        supervise(trial("memory://x"), [Process(), Process()], keep)
    assert len(ended) == 2
