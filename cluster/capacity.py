"""What there is to run on: this machine's cores, a cluster's nodes, and what an autoscaler may add to them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.simulate import fitting
from fmlora_dist.errors import UserError

if TYPE_CHECKING:
    from cluster.plan import PlannedRun

__all__ = ["check_requests", "cluster_nodes", "local_cores", "nodes_to_come"]

Node = dict[str, float]
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves its configuration on a cluster's head."""
_LABELS = {"CPU": "CPUs", "GPU": "GPUs", "memory": "bytes of memory"}


def local_cores() -> int:
    """Cores that this process may use: by its affinity, and by what its container grants."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores  # no control groups (version 2) here
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def cluster_nodes() -> list[Node]:
    """The nodes of the Ray cluster that this process is connected to, as they are now."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_to_come(bootstrap: Path = _BOOTSTRAP) -> list[Node]:
    """All nodes that the autoscaler of the cluster at RAY_ADDRESS may have at once; empty where there is none."""
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return []  # even on a cluster's head: a Ray of this machine alone stays alone
    try:
        config: Any = yaml.safe_load(bootstrap.expanduser().read_text(encoding="utf-8"))
        types = config["available_node_types"]
        head, most = config.get("head_node_type"), int(config.get("max_workers", 2))
        nodes = [
            dict(kind.get("resources") or {})
            for name, kind in types.items()
            for _ in range(1 if name == head else min(most, int(kind.get("max_workers", most))))
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return []
    return [{name: float(amount) for name, amount in node.items()} for node in nodes]


def check_requests(runs: "Sequence[PlannedRun]", now: Sequence[Node], to_come: Sequence[Node]) -> int:
    """How many of the runs work at once, as far as the nodes that are there now tell.

    Raises:
        UserError: a run asks for more than there is and than an autoscaler could add.
    """
    at_once: list[int] = []
    for needs in dict.fromkeys(run.resources for run in runs):
        bundle, count = needs.bundle(), needs.n_processes
        if max(fitting(now, bundle), fitting(to_come, bundle)) < count:
            nodes = max(now, to_come, key=lambda nodes: fitting(nodes, bundle))
            asked = " and ".join(f"{amount * count:g} {_LABELS[name]}" for name, amount in bundle.items())
            there = " and ".join(f"{sum(node.get(name, 0.0) for node in nodes):g} {_LABELS[name]}" for name in bundle)
            largest = " and ".join(
                f"{max((node.get(name, 0.0) for node in nodes), default=0.0):g} {_LABELS[name]}" for name in bundle
            )
            parts = f" in {count} processes" if count > 1 else ""
            raise UserError(
                f"resources: a run asks for {asked}{parts}, but there are never more than {there} "
                f"(on one node at most {largest}); ask for less, or give the cluster more"
            )
        at_once.append(max(1, fitting(now, bundle) // count))
    return min(at_once, default=1)
