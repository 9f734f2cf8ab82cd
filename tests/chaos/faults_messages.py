"""Faults of messages: delivered ten times, in another order, much later.

The workers send to a relay instead of the queues; it delivers as the fault asks. See tests.chaos.worker.relay_file.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import redis

from tests.chaos.faults import EITHER_GRADER, Fault, Strike
from tests.chaos.harness import SETTINGS, Broken, Harness
from tests.chaos.worker import RELAY_PREFIX, relay_file
from tests.chaos.workload import ChaosJob

LEASE_S = float(SETTINGS["SPECTHINK_LEASE__TTL_S"])
PAUSE_S = 0.01
"""Between two looks of the relay."""


class Relay(ABC):
    """Takes every message that is sent and delivers it when ``when`` says. Its thread runs until ``close``."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self._client = redis.Redis.from_url(url)
        self._rng = rng
        self._stop = threading.Event()
        self._waiting: list[tuple[float, float, bytes, bytes]] = []  # a heap: due, a lot, queue, message
        self.num_taken = 0
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    @abstractmethod
    def when(self, rng: random.Random) -> Sequence[float]:
        """For one message: in how many seconds it is delivered, each time."""

    def start(self) -> None:
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """Deliver what is left, each when it is due, and end."""
        self._stop.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise Broken("the relay did not end")
        self._client.close()

    def _run(self) -> None:
        while not (self._stop.is_set() and not self._waiting):
            self._take()
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, name, message = heapq.heappop(self._waiting)
                self._client.lpush(name, message)
            time.sleep(PAUSE_S)

    def _take(self) -> None:
        for name in self._client.scan_iter(match=f"{RELAY_PREFIX}*", count=1000, _type="list"):
            with self._client.pipeline(transaction=True) as pipe:
                pipe.lrange(name, 0, -1)
                pipe.delete(name)
                messages: list[Any] = pipe.execute()[0]
            for message in messages:
                self.num_taken += 1
                for delay_s in self.when(self._rng):
                    due = time.monotonic() + delay_s
                    item = (due, self._rng.random(), name.removeprefix(RELAY_PREFIX.encode()), message)
                    heapq.heappush(self._waiting, item)


class TenTimes(Relay):
    def when(self, rng: random.Random) -> Sequence[float]:
        return [0.0, 0.0, *(rng.uniform(0.0, 1.0) for _ in range(8))]


class Reordered(Relay):
    def when(self, rng: random.Random) -> Sequence[float]:
        return [rng.uniform(0.0, 0.4)]


class Late(Relay):
    """Every third message comes after two leases; so that the job ends in reasonable time, the others do not."""

    def when(self, rng: random.Random) -> Sequence[float]:
        return [rng.uniform(2.0, 2.4) * LEASE_S if rng.random() < 1 / 3 else 0.0]


class Relayed(Fault):
    """All messages of a job, from its first to its last, go through a relay."""

    component = "messages"
    graders = EITHER_GRADER

    def __init__(self, name: str, kind: type[Relay]) -> None:
        self.name = name
        self._kind = kind
        self._relay: Relay | None = None
        self.lasts_s = 12.0

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        self._relay = self._kind(harness.connections.redis_url.get_secret_value(), rng)
        relay_file(harness.orders).touch()
        self._relay.start()

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        return Strike(is_blow=False)

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        relay_file(harness.orders).unlink(missing_ok=True)
        if self._relay is not None:
            self._relay.close(timeout_s=3 * LEASE_S + 5)

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        taken = self._relay.num_taken if self._relay else 0
        return [] if taken >= 20 else [f"only {taken} messages went through the relay"]


FAULTS: list[Fault] = [
    Relayed("each delivered 10 times", TenTimes),
    Relayed("reordered", Reordered),
    Relayed("a third delayed past 2 leases", Late),
]
