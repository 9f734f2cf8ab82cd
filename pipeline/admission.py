"""Admission: how many fresh samples the workers have room for. The statements are in ``pipeline.db.admission``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class ModelPool(NamedTuple):
    """The live workers of a model in a role."""

    role: str
    model: str


class Lane(NamedTuple):
    """Jobs that the same pool opens and that need the same other pools. later: those of them that have workers."""

    opening: ModelPool
    later: tuple[ModelPool, ...]

    @property
    def pools(self) -> tuple[ModelPool, ...]:
        return (self.opening, *self.later)


@dataclass(slots=True)
class Traffic:
    """The admitted samples of a lane. at: by the pool that they are with, waiting or written. fresh: of all, those of
    which nothing is stored yet: where they go next nobody knows."""

    at: Counter[ModelPool] = field(default_factory=Counter)
    fresh: int = 0

    @property
    def total(self) -> int:
        return self.at.total()


@dataclass(slots=True)
class Room:
    """How many samples may be let in.

    places: of each live pool, how many samples its workers take: so many per slot. lanes: what is in the pipeline, and
    the lanes that want more. short: the pools whose cache holds fewer contexts than their workers could write.

    Of an opening pool no more samples are in the pipeline than that has places: a sample that is with another model
    counts, since its context is cached. Of another pool that a lane needs, and that is short, no more samples are
    expected there than that has places: its workers are busy all the time then, and contexts that their cache does not
    hold would be computed again at each return. As many are expected as of those seen so far are there. Where lanes
    meet at a short pool, each leaves the others an equal share: large alone, which always fills its workers, keeps no
    pair out.
    """

    places: Mapping[ModelPool, int]
    lanes: Mapping[Lane, Traffic]
    short: frozenset[ModelPool] = frozenset()
    _opened: Counter[ModelPool] = field(init=False, default_factory=Counter)

    def __post_init__(self) -> None:
        for lane, traffic in self.lanes.items():
            self._opened[lane.opening] += traffic.total

    def left(self, lane: Lane) -> int:
        """Samples of a job of this lane that may be let in; it is among the lanes."""
        left = [self.places.get(lane.opening, 0) - self._opened[lane.opening]]
        if lane.opening in self.short:
            left.append(self._allowed(lane, lane.opening) - self.lanes[lane].at[lane.opening])
        left += [self._left_later(lane, pool) for pool in lane.later if pool in self.short]
        return min(left)

    def let_in(self, lane: Lane, number: int) -> None:
        """So many samples of a lane were let in."""
        self.lanes[lane].at[lane.opening] += number
        self.lanes[lane].fresh += number
        self._opened[lane.opening] += number

    def _left_later(self, lane: Lane, pool: ModelPool) -> int:
        traffic = self.lanes[lane]
        seen = traffic.total - traffic.fresh
        share_there = (traffic.at[pool] + 1) / (seen + 2)  # the rule of succession: half of them before any is seen
        return math.floor(self._allowed(lane, pool) / share_there) - traffic.total

    def _allowed(self, lane: Lane, pool: ModelPool) -> int:
        """Places of a pool that others leave to a lane."""
        others = [traffic for other, traffic in self.lanes.items() if other != lane and pool in other.pools]
        share = self.places[pool] / (len(others) + 1)
        return math.ceil(self.places[pool] - sum(min(traffic.at[pool], share) for traffic in others))
