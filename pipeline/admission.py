"""Admission: how many fresh samples the workers have room for. The statements are in ``pipeline.db.admission``."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class ModelPool(NamedTuple):
    """The live workers of a model in a role."""

    role: str
    model: str


@dataclass(slots=True)
class Room:
    """How many samples may be let in.

    places: of each pool, how many samples its workers take: so many per slot. there: admitted samples, by the pool that
    opens their jobs and the one that they are with. sharers: of each pool, the opening pools of the jobs that need it.

    Two rules bind a job. Of its opening pool no more samples are in the pipeline than that has places: a sample that is
    with another model counts, since its context is cached. And none is let in while a pool that the job needs has as
    many samples with it as places, those of other opening pools counted up to an equal share each: its workers are busy
    all the time then, and contexts that their cache does not hold are computed again at each return. So a job of the
    large model alone, which always fills its workers, keeps no pair's job out, nor is it kept out.
    """

    places: dict[ModelPool, int]
    there: Counter[tuple[ModelPool, ModelPool]] = field(default_factory=Counter)
    sharers: dict[ModelPool, set[ModelPool]] = field(default_factory=lambda: defaultdict(set))
    expected: Counter[tuple[ModelPool, ModelPool]] = field(default_factory=Counter)

    def left(self, opening: ModelPool, needed: Sequence[ModelPool]) -> int:
        """Samples of a job that may be let in. needed: the pools that its policy has, those alone that have workers."""
        opened = sum(number for (first, _), number in self.there.items() if first == opening)
        return min(self.places[opening] - opened, *(self._left_at(pool, opening) for pool in needed))

    def let_in(self, opening: ModelPool, needed: Sequence[ModelPool], number: int) -> None:
        """Samples of a job were let in: they are with its opening pool, and the rest of this round expects them with
        the others that it needs."""
        self.there[opening, opening] += number
        for pool in needed:
            if pool != opening:
                self.expected[opening, pool] += number

    def _left_at(self, pool: ModelPool, opening: ModelPool) -> int:
        share = self.places[pool] / max(1, len(self.sharers[pool]))
        of_others = sum(
            min(number, share) for (first, at), number in self.there.items() if at == pool and first != opening
        )
        own = self.there[opening, pool] + self.expected[opening, pool]
        return math.ceil(self.places[pool] - of_others) - own
