#!/usr/bin/env bash
# Real images walk the whole road: Fashion-MNIST from Debian's package, prepared, verified, and learned in five tasks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source=/usr/share/datasets/fashion-mnist
if [[ ! -d $source ]]; then
    { apt-get update && apt-get install --yes --no-install-recommends dataset-fashion-mnist; } || {
        echo ".ci/fashion_mnist.sh: install Debian's package dataset-fashion-mnist as root first" >&2
        exit 1
    }
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/fmlora prepare fashion_mnist --source "$source" --out "$scratch/shards"
.venv/bin/fmlora verify "$scratch/shards"
.venv/bin/fmlora run --benchmark fashion_mnist --data-root "$scratch/shards" --tasks 5 --method frozen --epochs 1 \
    --out "$scratch/run"
.venv/bin/python - "$scratch" <<'PYTHON'
import json
import sys
from collections import Counter
from pathlib import Path

scratch = Path(sys.argv[1])
index = json.loads((scratch / "shards" / "index.json").read_text())
stored = Counter(index["samples"]["split"])
if stored != {0: 60_000, 1: 10_000}:
    sys.exit(f".ci/fashion_mnist.sh: found {dict(stored)} images by split, expected 60,000 and 10,000")
result = json.loads((scratch / "run" / "result.json").read_text())
# Only the head learns, and only from the present task, so little of the first tasks is left in the end.
found = {
    "first task": (result["accuracy_matrix"][0][0], 50.0),
    "AAA": (result["metrics"]["aaa"], sum(100 / classes for classes in (2, 4, 6, 8, 10)) / 5),
    "Acc": (result["metrics"]["acc"], 10.0),
}
for name, (accuracy, chance) in found.items():
    print(f".ci/fashion_mnist.sh: {name} {accuracy:.2f}, chance {chance:.2f}")
    if accuracy < 1.5 * chance:
        sys.exit(f".ci/fashion_mnist.sh: {name} is not far above chance")
PYTHON
