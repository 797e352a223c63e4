"""Runs under DeepSpeed's stages, for the launcher: ``staging.py FOLDER DATA CASES`` does them one after another.

CASES is JSON, {name: list of fields of the run}: after the first, each goes on in the run's directory where the one
before has stopped. ``FOLDER/NAME-RANK.json`` lists what each process saw (see ``observing``).
"""

import json
import sys
from pathlib import Path

from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from fmlora_dist.distributed import World
from observing import forget, observe

if __name__ == "__main__":
    folder, data, cases = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    world = World("cpu", 1)
    set_accelerator(
        CUDA_Accelerator()
    )  # what DeepSpeed takes on a machine with GPUs when it reads its config too early
    world.connect()
    for name, parts in json.loads(cases).items():
        seen = []
        for fields in parts:
            forget()
            seen.append(observe(Path(folder) / name, Path(data), **fields))
        (Path(folder) / f"{name}-{world.rank}.json").write_text(json.dumps(seen))
    world.close()
