"""On what something was measured."""

import os
import platform
from importlib.metadata import version
from typing import Any

from fmlora_dist.distributed import World

__all__ = ["machine"]


def machine(world: World, *packages: str) -> dict[str, Any]:
    """Device, cores, processor, and the versions of Python, torch and these packages."""
    return {
        "device": str(world.device),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
    }
