"""Long sequences under DeepSpeed, for the launcher: what a process holds after each task.

``forty_tasks.py FOLDER DATA CASES``; CASES is JSON, {name: fields of the run}. ``FOLDER/NAME-RANK.json`` is a list of
{memory, threads, files, hooks, engines}, one a task; memory in MiB, once the allocator has given back what is free.
"""

import ctypes
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from fmlora_dist.config import parse_config
from fmlora_dist.data import TaskView
from fmlora_dist.distributed import World
from fmlora_dist.record import RunDirectory
from fmlora_dist.run import Run
from observing import count_engines, count_hooks, forget
from tiny_benchmark import tiny_arguments


class Watched(Run):
    """A run that notes what its process holds after each task."""

    def _task(self, view: TaskView, optimizer: dict[str, Tensor]) -> None:
        super()._task(view, optimizer)
        self.data.store.close()  # it keeps a bounded number of shards open, which is no leak
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.held: list[dict[str, Any]] = [
            *getattr(self, "held", []),
            {
                "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "threads": threading.active_count() + len(os.listdir("/proc/self/task")),
                "files": len(os.listdir("/proc/self/fd")),
                "hooks": count_hooks(self.method),
                "engines": count_engines(),
            },
        ]


if __name__ == "__main__":
    folder, data, cases = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    world = World("cpu", 1)
    world.connect()
    for name, fields in json.loads(cases).items():
        forget()
        config, _ = parse_config(tiny_arguments(Path(data), **fields), prog="fmlora run")
        run, record = Watched(config, world), RunDirectory(Path(folder) / name)
        if world.main:
            record.open(config)
        run.go(record)
        record.close()
        (Path(folder) / f"{name}-{world.rank}.json").write_text(json.dumps(run.held))
        del run, record
    world.close()
