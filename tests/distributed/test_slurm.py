"""``sbatch cluster/slurm.sbatch`` on a Slurm of two nodes, of which a job takes one or both; from Debian's packages."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from cluster.journal import Journal
from hosts import Host, hosts, needs, wait_until, work_folder
from running import REPOSITORY, result

pytestmark = pytest.mark.long

SOCKET = "/run/munge.socket"  # each host has a /run of its own


class Slurm:
    """A controller on the first host, and a node on each."""

    def __init__(self, work: Path, nodes: Sequence[Host]):
        self.work, self.host = work, nodes[0]
        (work / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={self.host.name}({self.host.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={SOCKET},cred_expire=10
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
FirstJobId={os.getpid()}
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=5
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
"""
            + "".join(f"NodeName={node.name} NodeAddr={node.address} CPUs=1 RealMemory=1000\n" for node in nodes)
            + f"PartitionName=all Nodes={','.join(node.name for node in nodes)} Default=YES MaxTime=INFINITE State=UP\n"
        )
        # Jobs have scratch folders by their numbers in /tmp, where another Slurm of these tests may have its own.
        # (A job that is put back waits until its old credential has expired: two minutes, unless it is said otherwise.)
        self.env = {"SLURM_CONF": work / "slurm.conf"}
        (work / "state").mkdir()
        key = work / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        words = [
            f"--key-file={key}",
            f"--socket={SOCKET}",
            "--pid-file=/run/munged.pid",
            "--seed-file=/run/munged.seed",
        ]
        logs = [work / f"{node.name}.log" for node in nodes]
        for node, log in zip(nodes, logs, strict=True):
            # By force, for the key lies in a folder of this test, and not in /etc/munge.
            node.start(["munged", "--foreground", "--force", *words, f"--log-file={log}.munged"], log)
            wait_until(Path(f"/proc/{node.init}/root{SOCKET}").exists, 120, "munged")
        self.host.start(["slurmctld", "-D", "-c"], work / "controller.log", **self.env)
        for node, log in zip(nodes, logs, strict=True):
            (work / f"spool-{node.name}").mkdir()
            node.start(["slurmd", "-D"], log, **self.env)
        try:
            wait_until(lambda: self._sinfo().split() == ["idle", "idle"], 300, "idle nodes")
        except AssertionError:
            print(*(log.read_text() for log in [work / "controller.log", *logs]))
            raise

    def _sinfo(self) -> str:
        answer = self.work / "sinfo.log"
        answer.unlink(missing_ok=True)
        self.host.start(["sinfo", "--noheader", "--Node", "--format=%T"], answer, **self.env).wait(120)
        return answer.read_text()

    def submit(self, *words: object) -> str:
        """The number of the job."""
        options = ["--parsable", "--output", self.work / "job-%j.log", "--time=00:30:00", "--cpus-per-task=1"]
        return self.host.run(["sbatch", *options, *words], self.work / "sbatch.log", **self.env).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of it."""
        shown = self.host.run(["scontrol", "show", "job", number], self.work / "scontrol.log", **self.env)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def over(self, number: str) -> bool:
        return self.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

    def said(self, number: str) -> str:
        return (self.work / f"job-{number}.log").read_text()

    def wait(self, number: str, seconds: float) -> str:
        """What the job has said, once it is over."""
        try:
            wait_until(lambda: self.over(number), seconds, "the end of the job")
        except AssertionError:
            print(self.job(number), self.said(number))
            raise
        return self.said(number)


def _write_grid(file: Path) -> None:
    values = {
        "benchmarks": [{"benchmark": "icons_mini", "tasks": [5]}],
        "methods": ["lora", "frozen"],
        "seeds": [0],
        "settings": {"threads": 1, "epochs": 1},
        "resources": {"cpus": 1},
    }
    file.write_text(yaml.safe_dump(values))


def test_a_job_runs_the_grid_and_goes_on_when_it_is_requeued() -> None:
    needs("slurmctld", "slurmd", "sbatch", "munged")
    with work_folder() as work, hosts(work) as nodes:
        slurm, host = Slurm(work, nodes), nodes[0]
        _write_grid(work / "short.yaml")
        out = work / "out"
        number = slurm.submit(REPOSITORY / "cluster" / "slurm.sbatch", work / "short.yaml", "--out", out)

        def halfway() -> bool:
            return any(line["event"] == "start" for line in Journal.read(out)) and bool(
                host.processes("fmlora_dist.cli run")
            )

        wait_until(lambda: halfway() or slurm.over(number), 600, "a run in the job")
        assert not slurm.over(number), slurm.said(number)
        # What the time limit's warning does: the grid is stopped, and the job is put back into the queue.
        host.run(["scancel", "--batch", "--signal=TERM", number], work / "scancel.log", **slurm.env)
        wait_until(lambda: slurm.job(number)["JobState"] == "PENDING", 300, "a requeue")
        assert slurm.job(number)["Restarts"] == "1"
        said = slurm.wait(number, 900)
        job = slurm.job(number)
        assert job["JobState"] == "COMPLETED" and job["ExitCode"] == "0:0", said
        assert "stopped, " in said and "written:" in said and "tried again" not in said
        runs = sorted((out / "runs").iterdir())
        assert len(runs) == 2 and all(result(run)["status"] == "complete" for run in runs)
        done = [line["run"] for line in Journal.read(out) if line["event"] == "done"]
        assert sorted(done) == [run.name for run in runs], "each ended once"
        wait_until(lambda: not host.processes("gcs_server"), 120, "the end of the job's Ray")
        assert not list(Path("/tmp").glob(f"fmlora-{number}*")), "its scratch folder is gone"

        # Started again, on both nodes: the first has one core, so both work on the grid of two runs at once.
        again = work / "again"
        words = ["--nodes=2", REPOSITORY / "cluster" / "slurm.sbatch", work / "short.yaml", "--out"]
        number = slurm.submit(*words, again)
        said = slurm.wait(number, 900)
        assert slurm.job(number)["JobState"] == "COMPLETED" and "tried again" not in said, said
        done = [line for line in Journal.read(again) if line["event"] == "done"]
        assert {line["host"] for line in done} == {node.name for node in nodes}
        for run in runs:
            assert result(again / "runs" / run.name)["accuracy_matrix"] == result(run)["accuracy_matrix"]
        wait_until(lambda: not any(node.processes("raylet") for node in nodes), 120, "the end of the job's Ray")
