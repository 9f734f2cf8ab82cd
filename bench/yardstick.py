"""How fast this machine was meanwhile: on a virtual one, neighbours take caches and memory, which no counter shows.

Measured here: the same work took from 0.27 to 0.42 s of CPU within three minutes.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

EVERY_S = 0.5
TURNS, OBJECTS = 50_000, 200_000


@contextmanager
def yardstick() -> Iterator[list[float]]:
    """Do a fixed piece of work twice a second; the list has, at the end, the mean of its CPU times in seconds.

    It takes some 15 ms: arithmetic, and a way through objects all over the memory.
    """
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(there,), daemon=True)
    process.start()
    there.close()  # else nobody would notice its end
    here.recv()
    found: list[float] = []
    try:
        yield found
    finally:
        here.send(None)
        found.append(here.recv())
        process.join()


def _measure(connection: Connection) -> None:
    objects = [number + 0.5 for number in range(OBJECTS)]
    random.Random(1).shuffle(objects)
    connection.send(None)
    taken = [_work(objects)]
    while not connection.poll(EVERY_S):
        taken.append(_work(objects))
    connection.send(statistics.fmean(taken))


def _work(objects: list[float]) -> float:
    start = time.process_time()
    sum(objects)
    total = 0
    for number in range(TURNS):
        total += number * number % 7
    return time.process_time() - start
