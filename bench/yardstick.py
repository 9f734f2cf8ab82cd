"""How fast this machine is just now: a virtual one's neighbours take caches and memory, which no counter shows."""

from __future__ import annotations

import multiprocessing
import os
import random
import time

ROUNDS = 4


def seconds_of_work() -> float:
    """Seconds of CPU that a fixed piece of work takes on each core while all others do it too, the mean over cores.

    Half of it is arithmetic, half goes through a million objects all over the memory.
    """
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(_work, range(cores), chunksize=1)  # not counted
        return sum(pool.map(_work, [ROUNDS] * cores, chunksize=1)) / cores


def _work(rounds: int) -> float:
    objects = [number + 0.5 for number in range(1_000_000)]
    random.Random(1).shuffle(objects)
    start = time.process_time()
    for _ in range(rounds):
        sum(objects)
        total = 0
        for number in range(400_000):
            total += number * number % 7
    return time.process_time() - start
