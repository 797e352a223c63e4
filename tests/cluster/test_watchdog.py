"""A run that hangs, in a real grid: ended, tried again as often as was said, and reported."""

import io
import os
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.journal import Journal
from cluster.launch import Options, run_grid
from cluster.plan import load_grid, plan_runs
from fmlora_dist.record import RunDirectory

pytestmark = pytest.mark.long


def test_a_run_that_hangs_is_ended_and_tried_again_as_often_as_was_said_and_then_reported(tmp_path: Path) -> None:
    file, out = tmp_path / "hanging.yaml", tmp_path / "out"
    values = {"benchmarks": [{"benchmark": "icons_mini", "tasks": [5]}], "methods": ["frozen"], "seeds": [0]}
    file.write_text(yaml.safe_dump(values))
    (run,) = plan_runs(load_grid(str(file)), out)
    record = RunDirectory(run.folder)
    record.open(run.config)
    record.close()
    os.mkfifo(record.checkpoint_file)  # whoever opens it waits for ever, as for a network disk that has gone

    text = io.StringIO()
    assert run_grid(str(file), out, Console(file=text, width=200), Options(retries=2, stall_timeout=3)) == 1
    reason = "nothing happened for 3 s (--stall-timeout), so it was ended"
    log = [event for event in Journal.read(out) if event.get("run") == run.name]
    assert [event["event"] for event in log] == ["start", "retry", "start", "retry", "start", "failed"]
    assert [event["message"] for event in log if "message" in event] == [reason] * 3
    (failure,) = [line for line in text.getvalue().splitlines() if line.startswith("failed:")]
    assert failure.startswith(f"failed: {run.name}: {reason} (log: ")
    assert not record.busy, "none of its processes is left"
