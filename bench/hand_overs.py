"""How long takeovers of a job took, read from its events: by the database's clock, whatever wrote the texts."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import NamedTuple

from bench.stack import Stack


class RoundTrip(NamedTuple):
    """Milliseconds of one takeover: a message ends with a claim, the writing with a commit."""

    message_to_large: float
    large_writes: float
    message_to_small: float

    @property
    def total(self) -> float:
        return sum(self)


def round_trips(stack: Stack, job_id: int) -> list[RoundTrip]:
    """All takeovers of a job from which a sample came back; nobody took a sample away meanwhile."""
    changes = stack.rows(f"""
        SELECT sample_id, to_state, extract(epoch FROM at)::float8 FROM events
        WHERE job_id = {job_id} AND sample_id > 0 ORDER BY sample_id, id
    """)
    trips = []
    for _, group in groupby(changes, key=lambda change: change[0]):
        sample = list(group)
        for place, (_, state, _) in enumerate(sample[:-3]):
            if state == "awaiting_large" and sample[place + 2][1] == "ready":
                moments = [1000 * at for _, _, at in sample[place : place + 4]]
                trips.append(RoundTrip(*(after - before for before, after in pairwise(moments))))
    return trips
