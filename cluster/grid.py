"""What ``ray submit cluster/grid.yaml cluster/grid.py -- NAME --out URL`` runs on the cluster's head.

Ray copies this one file there, so all it does is to call the installed package: it is ``fmlora grid``, on the cluster
that the head belongs to. (``fmlora grid`` by itself starts a Ray of this machine alone, unless RAY_ADDRESS says where.)
"""

import os
import sys
from collections.abc import Sequence

from fmlora_dist.cli import main as fmlora


def main(argv: Sequence[str] | None = None) -> int:
    """Run a grid as ``fmlora grid`` does; gives its exit code."""
    return fmlora(["grid", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    sys.exit(main())
