#!/usr/bin/env bash
# The demo's road with two of its methods: plan, Ray, runs, table; and once more, when there is nothing left to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/short.yaml" <<'YAML'
name: short
benchmarks:
  - {benchmark: icons_mini, tasks: [5]}
methods: [frozen, fmlora]
seeds: [0]
settings: {threads: 1, epochs: 1}
resources: {cpus: 1}
YAML
.venv/bin/fmlora grid "$scratch/short.yaml" --out "$scratch/results"
for name in frozen fmlora; do
    grep -q "$name" "$scratch/results/report/tables.md" || {
        echo ".ci/demo.sh: no row of '$name' in the table" >&2
        exit 1
    }
done
again=$(.venv/bin/fmlora grid "$scratch/short.yaml" --out "$scratch/results")
if [[ $again != *"2 finished, 0 to run"* ]]; then
    printf '.ci/demo.sh: finished runs were not skipped:\n%s\n' "$again" >&2
    exit 1
fi
