"""Jobs in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import TypeVar

from fmlora_dist.errors import UserError

__all__ = ["run_jobs"]

J = TypeVar("J")
R = TypeVar("R")


def run_jobs(function: Callable[[J], R], jobs: Iterable[J], workers: int) -> Iterator[R]:
    """Results as they are finished, in any order.

    At most ``workers + 1`` jobs are taken from `jobs` ahead of the results, so large jobs do not pile up. An error ends
    it, after the jobs that are under way. Worker processes end with this one, even if it is killed.

    Args:
        function: Of a module, so that worker processes can import it.
        jobs: Each is sent to the worker that does it.
        workers: Number of processes; 1 does all in this one.

    Raises:
        UserError: If a worker process was killed; and what the function raises.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    # Spawned, since a fork of a process with threads (fsspec's, torch's) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        pending: set[Future[R]] = set()
        for job in jobs:
            pending.add(pool.submit(function, job))
            while len(pending) > workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise UserError(
            "workers: found a worker process killed, perhaps for want of memory; run the same command again with fewer"
            " --workers, it goes on from the finished shards"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what an interrupt ends
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)  # a worker would otherwise wait for jobs for ever
