"""How many cores this process may use."""

import os
from pathlib import Path

__all__ = ["local_cores"]


def local_cores() -> int:
    """Cores that this process may use: by its affinity, and by what its container grants."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores  # no control groups (version 2) here
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
