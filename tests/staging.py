"""Runs under DeepSpeed's stages, for the launcher: ``staging.py FOLDER DATA CASES`` does them one after another.

CASES is JSON, {name: fields of the run}; ``FOLDER/NAME-RANK.json`` tells what each process saw (see ``observing``).
"""

import json
import sys
from pathlib import Path

from fmlora_dist.distributed import World
from observing import observe

if __name__ == "__main__":
    folder, data, cases = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    for name, fields in json.loads(cases).items():
        seen = observe(Path(folder) / name, Path(data), **fields)
        (Path(folder) / f"{name}-{World('cpu', 1).rank}.json").write_text(json.dumps(seen))
    World("cpu", 1).close()
