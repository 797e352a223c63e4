"""A run in several processes: one in each bundle of its trial's one placement group.

The trial itself sits in the first bundle and starts rank 0 there. A second placement group, as a trainer nested in a
trial would ask for, may never come: the trials hold what it waits for.
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import ray
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.output import open_output
from cluster.trial import Process, Trial, _unfit, start_run, stop_all
from fmlora_dist.errors import UserError

__all__ = ["RankLostError", "Ranks", "launched"]

_KEEP_EVERY = 5.0
"""Seconds between looks at whether there is news to keep of a process."""
_SIOCGIFADDR = 0x8915
"""Linux: get the address of an interface."""


def launched(rank: int, size: int, address: str, port: int) -> dict[str, str]:
    """What a launcher tells process ``rank`` of ``size``, here.

    Each sees one device, the one that Ray gave its bundle, so each is the only one of its machine as far as it knows:
    with a local rank above 0 DeepSpeed would ask for a device that is not visible.
    """
    told = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    told |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    interface = _interface(get_node_ip_address())
    if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
        told["GLOO_SOCKET_IFNAME"] = interface  # gloo would go by the host name, which may mean 127.0.0.1
    return told


class RankLostError(Exception):
    """The Ray worker of one of a run's processes is gone, by itself or with its node."""


class Ranks(Sequence[Process]):
    """All processes of a run; ``with`` ends them."""

    def __init__(self, trial: Trial):
        group = get_current_placement_group()
        assert group is not None and group.bundle_count == trial["processes"]
        address, port, size = get_node_ip_address(), _free_port(), trial["processes"]
        needs = trial["bundle"]
        actor: Any = ray.remote(_Rank)
        self._processes: list[Process] = []
        for rank in range(1, size):
            handle = actor.options(
                num_cpus=needs.get("CPU", 0),
                num_gpus=needs.get("GPU", 0),
                memory=needs.get("memory"),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote()
            code = handle.run.remote(trial, rank, size, address, port)
            self._processes.append(_Remote(rank, handle, code))
        # Last: the others die with their handles, if anything fails here.
        self._processes.insert(0, start_run(trial, launched(0, size, address, port)))

    def __len__(self) -> int:
        return len(self._processes)

    def __getitem__(self, number: Any) -> Any:
        return self._processes[number]

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error: object) -> None:
        stop_all(self._processes)


class _Rank:
    """Ray's actor for one process."""

    def run(self, trial: Trial, rank: int, size: int, address: str, port: int) -> int:
        """The exit code of process ``rank``. Raises ``UserError`` where no run can work."""
        if outcome := _unfit(trial):
            raise UserError(outcome["message"])
        with (
            open_output(trial["out"]).beside(trial["name"]) as place,
            start_run({**trial, "folder": str(place.folder)}, launched(rank, size, address, port)) as process,
        ):
            while (code := process.poll()) is None:
                place.keep()
                process.pause(_KEEP_EVERY)
            place.finish()
            return code


class _Remote:
    """A process in another bundle."""

    def __init__(self, rank: int, actor: Any, code: Any):
        self._rank, self._actor, self._code = rank, actor, code

    def poll(self) -> int | None:
        """Its exit code, or None while it works.

        Raises:
            UserError: its host is no place for runs.
            RankLostError: its worker is gone.
        """
        ready, _ = ray.wait([self._code], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(self._code))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise RankLostError(f"process {self._rank} failed to start: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise RankLostError(f"the Ray worker of process {self._rank} was lost") from error

    def pause(self, seconds: float) -> None:
        ray.wait([self._code], timeout=seconds)

    def stop(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._actor)  # its process dies with it


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _interface(address: str) -> str:
    """Name of the network interface with that IPv4 address; '' if there is none, or no way to ask for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
