"""Processes of a run in other bundles, on a real Ray of this machine."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from rich.console import Console

from cluster.bundles import RankLostError, _Rank, _Remote
from cluster.servant import ray_cluster, scratch_folder
from cluster.trial import RunProcess, Trial, supervise
from fmlora_dist import __version__
from fmlora_dist.errors import UserError


def _ended(process: _Remote) -> int:
    while (code := process.poll()) is None:
        time.sleep(0.1)
    return code


class _Slow:
    """A worker whose process ends well, a little later than that of rank 0."""

    def run(self) -> int:
        time.sleep(2)
        return 0


class _Busy:
    """A worker whose call ends with it alone."""

    def run(self) -> None:
        threading.Event().wait()


@pytest.mark.long
def test_a_process_is_waited_for_refuses_another_package_and_dies_with_its_worker(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    trial = Trial(
        name="x",
        config={},
        out=str(tmp_path),
        folder=str(tmp_path / "runs" / "x"),
        cwd=str(tmp_path),
        version="0.0.1",
        processes=2,
        bundle={"CPU": 1.0},
        stall_timeout=0.0,
    )
    with scratch_folder() as scratch, ray_cluster(scratch, Console(quiet=True)):
        actor = ray.remote(_Rank).remote()
        process = _Remote(1, actor, actor.run.remote(trial, 1, 2, "127.0.0.1", 1))
        with pytest.raises(UserError, match=f"has fmlora-dist {__version__}, but the grid was started by 0.0.1"):
            _ended(process)
        assert not (tmp_path / "runs" / "x").exists()
        quick = RunProcess(subprocess.Popen([sys.executable, "-c", ""], start_new_session=True))
        slow = ray.remote(_Slow).remote()
        assert supervise(trial, [quick, _Remote(1, slow, slow.run.remote())])["status"] == "done"
        busy = ray.remote(_Busy).remote()
        lost = _Remote(1, busy, busy.run.remote())
        lost.stop()  # Ray kills in its own time: a call that could end by itself might end first
        with pytest.raises(RankLostError, match="process 1 was lost"):
            _ended(lost)
