"""The tests' own hosts: apart from each other, and gone afterwards."""

import os
import subprocess
from pathlib import Path

import pytest

from hosts import hosts, needs, work_folder


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def _links() -> str:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout


@pytest.mark.long
def test_hosts_reach_each_other_and_leave_nothing_behind_when_a_test_fails() -> None:
    needs()
    before = (_links(), _mounts())
    with pytest.raises(ZeroDivisionError), work_folder() as work, hosts(work) as (one, other):
        log = work / "log"
        assert one.run(["hostname"], log).strip() == "fa" and other.run(["hostname"], log).strip() == "fb"
        listen = "import socket; s = socket.create_server(('fb', 9000)); print(s.accept()[1][0], flush=True)"
        server = other.start(["python", "-c", listen], work / "server")
        ask = "import socket, time\nfor _ in range(99):\n try: socket.create_connection(('fb', 9000)); break\n"
        one.run(["python", "-c", f"{ask} except OSError: time.sleep(0.1)\n"], log)
        assert server.wait(60) == 0 and (work / "server").read_text().strip() == one.address
        one.start(["sh", "-c", "setsid sleep 1000 & sleep 1000"], log)
        for _ in range(100):
            if len(one.processes("sleep 1000")) >= 2:
                break
            one.run(["sleep", "0.05"], log)
        pids = one.processes("sleep 1000")
        assert len(pids) >= 2 and other.processes("sleep 1000") == []
        raise ZeroDivisionError
    assert not work.exists() and (_links(), _mounts()) == before
    assert not any(os.path.exists(f"/proc/{pid}") for pid in [*pids, one.init, other.init])
