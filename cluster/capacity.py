"""What there is to run on: this machine's cores, a cluster's nodes, and what an autoscaler may add to them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.simulate import fitting
from fmlora_dist.errors import UserError

if TYPE_CHECKING:
    from cluster.plan import PlannedRun

__all__ = ["Coming", "check_requests", "cluster_nodes", "nodes_to_come"]

Node = dict[str, float]
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves its configuration on a cluster's head."""
_LABELS = {"CPU": "CPUs", "GPU": "GPUs", "memory": "bytes of memory"}


def cluster_nodes() -> list[Node]:
    """The nodes of the Ray cluster that this process is connected to, as they are now."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class Coming:
    """The nodes that an autoscaler may have: a head, and a number of workers of several types."""

    head: Node = field(default_factory=dict)
    workers: list[Node] = field(default_factory=list)
    """As many of each type as there may be of it."""
    most_workers: int = 0
    """Of all types together."""

    def best(self, bundle: Mapping[str, float]) -> list[Node]:
        """Those that have room for the most bundles."""
        ranked = sorted(self.workers, key=lambda node: -fitting([node], bundle))
        return [self.head, *ranked[: self.most_workers]]


def nodes_to_come(bootstrap: Path = _BOOTSTRAP) -> Coming:
    """What the autoscaler of the cluster at RAY_ADDRESS may add; nothing where there is none."""
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return Coming()  # even on a cluster's head: a Ray of this machine alone stays alone
    try:
        config: Any = yaml.safe_load(bootstrap.expanduser().read_text(encoding="utf-8"))
        types = config["available_node_types"]
        head, most = config.get("head_node_type"), int(config.get("max_workers", 2))
        nodes = {
            name: {resource: float(amount) for resource, amount in (kind.get("resources") or {}).items()}
            for name, kind in types.items()
        }
        counts = {name: min(most, int(kind.get("max_workers", most))) for name, kind in types.items() if name != head}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return Coming()
    return Coming(nodes.get(head, {}), [nodes[name] for name, count in counts.items() for _ in range(count)], most)


def check_requests(runs: "Sequence[PlannedRun]", now: Sequence[Node], to_come: Coming) -> int:
    """How many of the runs work at once, as far as the nodes that are there now tell.

    Raises:
        UserError: a run asks for more than there is and than an autoscaler could add.
    """
    at_once: list[int] = []
    for needs in dict.fromkeys(run.resources for run in runs):
        bundle, count = needs.bundle(), needs.n_processes
        nodes = max(now, to_come.best(bundle), key=lambda nodes: fitting(nodes, bundle))
        if fitting(nodes, bundle) < count:
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
