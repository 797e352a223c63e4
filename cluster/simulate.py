"""How long a grid takes on a cluster that need not be there: its runs placed in order as soon as they fit."""

import heapq
from collections.abc import Mapping, Sequence

__all__ = ["fitting", "makespan"]

Bundle = Mapping[str, float]
"""What one process needs, or what a node has: resource -> amount."""
_ROUNDING = 1e-6


def fitting(nodes: Sequence[Bundle], bundle: Bundle) -> int:
    """How many such bundles the nodes hold at once, each on one node."""
    return sum(_on_node(node, bundle) for node in nodes)


def makespan(runs: Sequence[tuple[float, Bundle, int]], nodes: Sequence[Bundle]) -> float:
    """Seconds until all runs are done.

    In their order, each run starts as soon as all its bundles fit; one that fits goes past one that does not, as Ray
    does it. The longest first is within 4/3 of the best order where all runs are alike in size (Graham, Bounds on
    Multiprocessing Timing Anomalies, 1969).

    Args:
        runs: (seconds, bundle of each process, number of processes) of each run.
        nodes: What each node has.

    Raises:
        ValueError: a run fits never.
    """
    free = [dict(node) for node in nodes]
    for _, bundle, count in runs:
        if fitting(nodes, bundle) < count:
            raise ValueError(f"{count} x {dict(bundle)} does not fit the nodes")
    waiting = list(range(len(runs)))
    ends: list[tuple[float, int, list[int]]] = []  # (when, run, node of each of its bundles)
    now = 0.0
    while waiting or ends:
        refused: list[tuple[Bundle, int]] = []  # what fits now does so only once another run ends
        for number in list(waiting):
            seconds, bundle, count = runs[number]
            if (bundle, count) in refused:
                continue
            places = _place(free, bundle, count)
            if places is None:
                refused.append((bundle, count))
                continue
            waiting.remove(number)
            heapq.heappush(ends, (now + seconds, number, places))
        now, number, places = heapq.heappop(ends)
        for place in places:
            for name, amount in runs[number][1].items():
                free[place][name] += amount
    return now


def _place(free: list[dict[str, float]], bundle: Bundle, count: int) -> list[int] | None:
    """Take room for ``count`` bundles, first fit; gives the node of each. Without room None, and nothing is taken."""
    places: list[int] = []
    for number, node in enumerate(free):
        places += [number] * min(count - len(places), _on_node(node, bundle))
    if len(places) < count:
        return None
    for place in places:
        for name, amount in bundle.items():
            free[place][name] -= amount
    return places


def _on_node(node: Bundle, bundle: Bundle) -> int:
    return min((int(node.get(name, 0.0) / amount + _ROUNDING) for name, amount in bundle.items()), default=0)
