"""Hosts on this machine: each a network, process, mount and host-name space of its own, which all end with the test.

The files are shared, as on nodes with a common file system, but for /etc/hosts, /run and Ray's usual folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import pytest

from running import REPOSITORY

__all__ = ["ENV", "Host", "hosts", "needs", "ssh_between", "wait_until", "work_folder"]

ENV = {
    "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "LC_ALL": "C.UTF-8",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # runs are to get on also where the machine has other things to do
}
"""What commands on hosts see of the environment, and nothing else."""

# Process 1 of a host: it waits for its processes' orphans.
_INIT = """
hostname "$0" && ip link set lo up && mount --make-rprivate / && mount -t tmpfs run /run && mkdir /run/sshd
mkdir -p /tmp/ray && mount -t tmpfs ray /tmp/ray && mount --bind "$1" /etc/hosts && echo ready
sleep infinity & while :; do wait; done
"""


def needs(*commands: str) -> None:
    """Skip the test without root or these commands. (.ci/run takes a skip for a failure: no_skips.py.)"""
    missing = [
        name for name in ("ip", "unshare", "nsenter", "setpriv", *commands) if not shutil.which(name, path=ENV["PATH"])
    ]
    if os.geteuid() != 0:
        pytest.skip("needs root, for hosts with networks of their own")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Raises ``AssertionError`` when the condition does not hold in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder with a short path, since Ray's sockets lie in it; gone afterwards.

    ``/tmp/ray``, where hosts mount one of their own, is left: to remove it would unmount those of other tests' hosts.
    """
    folder = Path(tempfile.mkdtemp(prefix="fh", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Host:
    """A host of its own; ``with`` ends all that runs on it."""

    def __init__(self, name: str, work: Path, names: Mapping[str, str]):
        """``names`` are the addresses of all hosts, which it knows by name."""
        self.name, self.address = name, names.get(name, "127.0.0.1")
        table = work / f"hosts-{name}"
        table.write_text(
            "".join(f"{address} {known}\n" for known, address in {"localhost": "127.0.0.1", **names}.items())
        )
        spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._outer = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *spaces, "bash", "-c", _INIT, name, table],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "ready\n", f"host {name} does not start"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.init = int(children.read_text().split()[0])

    def __enter__(self) -> "Host":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.kill(self.init, signal.SIGKILL)  # which ends every process of its space
        self._outer.wait()
        assert self._outer.stdout is not None
        self._outer.stdout.close()

    def start(self, command: Sequence[object], log: Path, **env: object) -> "subprocess.Popen[bytes]":
        """Start a command on the host; its output is appended to ``log``."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                self._enter(command),
                env=ENV | {"HOME": str(log.parent)} | {name: str(value) for name, value in env.items()},
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def run(self, command: Sequence[object], log: Path, *, timeout: float = 300, **env: object) -> str:
        """What the command says; it must end well, and in time."""
        before = log.stat().st_size if log.exists() else 0
        code = self.start(command, log, **env).wait(timeout)
        said = log.read_bytes()[before:].decode(errors="replace")
        assert code == 0, f"{command} on {self.name}: exit code {code}\n{said}"
        return said

    def processes(self, *parts: str) -> list[int]:
        """Ids, as this process sees them, of the host's processes whose command line holds all parts."""
        found = []
        space = os.readlink(f"/proc/{self.init}/ns/pid")
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.init:
                try:
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if all(part in words for part in parts) and os.readlink(folder / "ns" / "pid") == space:
                        found.append(int(folder.name))
                except OSError:
                    continue  # it has just ended
        return found

    def kill_all(self) -> None:
        """SIGKILL for every process of the host but its first: it has crashed, and is up again with nothing started."""
        keep = self.processes("sleep infinity")
        for pid in self.processes():
            if pid not in keep:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def link(self, state: str) -> None:
        """Turn its link to the other hosts 'up' or 'down'."""
        subprocess.run(self._enter(["ip", "link", "set", "eth0", state]), check=True)

    def _enter(self, command: Sequence[object]) -> list[str]:
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", "-t", str(self.init), "-n", "-u", "-m", "-p"]
        return [*enter, *map(str, command)]


@contextmanager
def hosts(work: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts, fa at 10.99.0.1 and fb at 10.99.0.2, with a link between them."""
    names = {"fa": "10.99.0.1", "fb": "10.99.0.2"}
    with ExitStack() as stack:
        both = [stack.enter_context(Host(name, work, names)) for name in names]
        one, other = (str(host.init) for host in both)
        # Both ends are made within the hosts, so that nothing is left in the machine's own network.
        make = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other]
        subprocess.run(["nsenter", "-t", one, "-n", *make], check=True)
        for host in both:
            inside = ["nsenter", "-t", str(host.init), "-n", "ip"]
            subprocess.run([*inside, "address", "add", f"{host.address}/24", "dev", "eth0"], check=True)
            subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)
        yield both[0], both[1]


def ssh_between(work: Path, servers: Sequence[Host], *, home: Path) -> Path:
    """Start sshd on hosts, with keys made for this; gives the folder of an ``ssh`` that knows them, for PATH."""
    keys = work / "ssh"
    keys.mkdir()
    home.mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    shutil.copy(keys / "user.pub", keys / "authorized")
    tools = keys / "bin"
    tools.mkdir()
    (keys / "client").write_text(
        f"IdentityFile {keys}/user\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
        f"UserKnownHostsFile {keys}/known\nLogLevel ERROR\n"
    )
    (tools / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {keys}/client "$@"\n')
    (tools / "ssh").chmod(0o755)
    variables = " ".join(f'"{name}={value}"' for name, value in (ENV | {"HOME": str(home)}).items())
    for server in servers:
        config = keys / f"sshd-{server.name}"
        config.write_text(
            f"ListenAddress {server.address}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/authorized\n"
            f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
            f"SetEnv {variables}\n"
        )
        server.start(["/usr/sbin/sshd", "-D", "-e", "-f", config], keys / f"sshd-{server.name}.log")
    return tools
