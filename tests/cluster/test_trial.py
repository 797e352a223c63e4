"""One trial: how its processes' ends are told apart, and that none outlives it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.trial import RunProcess, Trial, _sent, _tried, _unfit, start_run, supervise
from fmlora_dist import __version__
from fmlora_dist.config import make_config


def trial(folder: Path, **changes: object) -> Trial:
    values = {
        "name": "x",
        "config": {},
        "out": str(folder),
        "folder": str(folder),
        "cwd": str(folder),
        "version": __version__,
    }
    values |= {"processes": 1, "bundle": {"CPU": 1.0}, "stall_timeout": 0.0}
    return {**values, **changes}  # type: ignore[typeddict-item, return-value]


def python(code: str) -> RunProcess:
    return RunProcess(subprocess.Popen([sys.executable, "-c", code], start_new_session=True))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("ends", "status", "code"),
    [
        ("pass", "done", 0),
        ("raise SystemExit(1)", "failed", 1),
        ("raise SystemExit(2)", "refused", 2),
        ("raise SystemExit(75)", "busy", 75),
        ("import os; os.kill(os.getpid(), 9)", "failed", -9),
    ],
)
def test_the_way_a_process_ends_says_whether_another_try_would_help(
    tmp_path: Path, ends: str, status: str, code: int
) -> None:
    outcome = supervise(trial(tmp_path), [python(ends)])
    assert (outcome["status"], outcome["exit_code"]) == (status, code)


def test_a_run_that_writes_no_event_for_too_long_is_ended(tmp_path: Path) -> None:
    hanging = python("import time; time.sleep(600)")
    outcome = supervise(trial(tmp_path, stall_timeout=1.0), [hanging])
    assert outcome["status"] == "stalled" and "nothing happened for 1 s (--stall-timeout)" in outcome["message"]
    assert not alive(hanging.process.pid)


def test_a_slow_run_that_writes_events_goes_on(tmp_path: Path) -> None:
    steps = "import time\nfor n in range(12):\n    open('events.jsonl', 'a').write('x\\n'); time.sleep(0.3)"
    process = python(f"import os; os.chdir({str(tmp_path)!r})\n{steps}")
    while not (tmp_path / "events.jsonl").exists():
        time.sleep(0.05)
    assert supervise(trial(tmp_path, stall_timeout=2.5), [process])["status"] == "done"


def test_one_failed_process_ends_the_others_of_its_run(tmp_path: Path) -> None:
    waiting, failing = python("import time; time.sleep(600)"), python("raise SystemExit(3)")
    outcome = supervise(trial(tmp_path), [waiting, failing])
    assert (outcome["status"], outcome["exit_code"]) == ("failed", 3)
    assert not alive(waiting.process.pid)


def test_the_process_that_began_it_tells_why_a_run_failed(tmp_path: Path) -> None:
    """One makes a mistake; another, which loses it, may be seen to end first."""
    lost, mistaken = python("raise SystemExit(1)"), python("import time; time.sleep(0.5); raise SystemExit(2)")
    lost.process.wait()
    outcome = supervise(trial(tmp_path), [lost, mistaken])
    assert (outcome["status"], outcome["exit_code"]) == ("refused", 2)
    assert outcome["message"] == "its process 1 failed (exit code 2); log-1.txt says why"


def test_where_no_process_tells_more_the_others_are_not_waited_for_long(tmp_path: Path) -> None:
    lost, waiting = python("raise SystemExit(1)"), python("import time; time.sleep(600)")
    outcome = supervise(trial(tmp_path), [lost, waiting])
    assert (outcome["status"], outcome["exit_code"]) == ("failed", 1)
    assert not alive(waiting.process.pid)


def test_a_config_arrives_as_it_was_sent() -> None:
    options = {"init_values": 1e-5, "global_pool": "1e-05"}
    config = make_config({"backbone": {"options": options}, "data_root": "/\N{GRINNING FACE}"})
    arrived = make_config(yaml.safe_load(_sent(config.plain())))
    assert arrived.plain() == config.plain() and arrived.key() == config.key()


def test_a_mistake_of_the_code_is_not_tried_again_and_leaves_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    broken = trial(tmp_path)
    del broken["stall_timeout"]  # type: ignore[misc]
    outcome = _tried(broken)
    assert (outcome["status"], outcome["message"]) == ("refused", "its trial failed: KeyError: 'stall_timeout'")
    assert "Traceback" in (tmp_path / "runs" / "x" / "log.txt").read_text()


def test_a_run_waits_for_all_of_its_processes(tmp_path: Path) -> None:
    quick, slow = python("pass"), python(f"import time; time.sleep(1); open({str(tmp_path / 'end')!r}, 'w')")
    assert supervise(trial(tmp_path), [quick, slow])["status"] == "done"
    assert (tmp_path / "end").exists()


def test_a_config_that_no_run_accepts_is_refused_by_the_run_itself(tmp_path: Path) -> None:
    with start_run(trial(tmp_path / "run", cwd=str(Path.cwd()), config={"benchmark": "nonsense"})) as process:
        assert supervise(trial(tmp_path), [process])["status"] == "refused"
    assert "unknown benchmark 'nonsense'" in (tmp_path / "run" / "log.txt").read_text()


def test_a_worker_with_another_version_of_the_package_refuses_with_both(tmp_path: Path) -> None:
    outcome = _unfit(trial(tmp_path, version="0.0.1"))
    assert outcome is not None and outcome["status"] == "unfit"
    assert f"has fmlora-dist {__version__}, but the grid was started by 0.0.1" in outcome["message"]
    (tmp_path / "runs").mkdir()
    assert _unfit(trial(tmp_path)) is None


def test_what_a_trial_imports_leaves_torch_to_its_run() -> None:
    code = "import sys, cluster.place, cluster.output; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_that_does_not_see_the_output_folder_refuses(tmp_path: Path) -> None:
    outcome = _unfit(trial(tmp_path / "elsewhere"))
    assert outcome is not None and outcome["status"] == "unfit"
    assert (
        f"does not see {tmp_path / 'elsewhere' / 'runs'}; expected a folder that all nodes share" in outcome["message"]
    )
