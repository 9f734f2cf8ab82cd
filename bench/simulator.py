"""Engines in virtual time, step by step: what they would do where a hand-over costs nothing.

``pipeline``: as the real one, with admission that waits for nothing. ``lock_step`` and ``one_by_one``: as the loops of
bench/loops.py. All take the same trajectories and the same law of a step's time; only who waits for whom differs.

Beside the simulation behind ``specthink plan``, where requests share an engine like a processor: here a request that
comes in the middle of a step waits for the next one, and gets its tokens at the ends of steps.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.planning.pools import EngineRates, Piece, Pool, Trajectory
from pipeline.samples import ModelRole


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUse:
    """What one engine did. busy_s: in steps. tokens: generated, all."""

    busy_s: float
    steps: int
    tokens: int
    computed_tokens: int

    @property
    def mean_running(self) -> float:
        """Requests in a step."""
        return self.tokens / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """ended_s: of each sample, from the first admission on. engines: by role, one per worker."""

    ended_s: Sequence[float]
    engines: Mapping[ModelRole, Sequence[EngineUse]]

    @property
    def seconds(self) -> float:
        return max(self.ended_s)

    @property
    def samples_per_second(self) -> float:
        return len(self.ended_s) / self.seconds

    def tokens(self, role: ModelRole) -> int:
        return sum(engine.tokens for engine in self.engines[role])


@dataclass(slots=True, eq=False)
class _Sample:
    """One on its way. homes: the engine of each role that has its context."""

    trajectory: Trajectory
    index: int = 0
    ended_s: float = 0.0
    homes: dict[ModelRole, _Engine] = field(default_factory=dict)

    @property
    def piece(self) -> Piece:
        return self.trajectory[self.index]

    @property
    def is_complete(self) -> bool:
        return self.index == len(self.trajectory)

    def advance(self, now: float) -> None:
        """Its piece is written."""
        self.index += 1
        self.ended_s = now


class _Engine:
    """One engine. ends: of running requests the number of the step that brings their last token."""

    def __init__(self, rates: EngineRates, slots: int) -> None:
        self._rates = rates
        self._slots = slots
        self._ends: list[tuple[int, int, _Sample]] = []
        self._waiting: list[tuple[bool, int, _Sample]] = []
        self._numbers = itertools.count()
        self._steps = self._tokens = self._computed = 0
        self._busy_s = 0.0
        self.is_stepping = False

    def __len__(self) -> int:
        return len(self._ends) + len(self._waiting)

    def put(self, sample: _Sample) -> None:
        """Resumed samples go first."""
        heapq.heappush(self._waiting, (sample.index == 0, next(self._numbers), sample))

    def begin_step(self) -> float | None:
        """Seconds that the next step takes; None: there is nothing to do."""
        new = 0
        while self._waiting and len(self._ends) < self._slots:
            _, number, sample = heapq.heappop(self._waiting)
            new += sample.piece.computed_tokens
            heapq.heappush(self._ends, (self._steps + max(1, sample.piece.tokens), number, sample))
        self.is_stepping = bool(self._ends)
        if not self._ends:
            return None
        step_s = self._rates.step_seconds(len(self._ends)) + new * self._rates.prompt_token_s
        self._busy_s += step_s
        self._tokens += len(self._ends)
        self._computed += new
        return step_s

    def end_step(self) -> list[_Sample]:
        """The samples whose piece is written."""
        self._steps += 1
        self.is_stepping = False
        ended = []
        while self._ends and self._ends[0][0] <= self._steps:
            ended.append(heapq.heappop(self._ends)[2])
        return ended

    @property
    def use(self) -> EngineUse:
        return EngineUse(
            busy_s=self._busy_s, steps=self._steps, tokens=self._tokens, computed_tokens=self._computed
        )  # fmt: skip


def pipeline(
    pools: Mapping[ModelRole, Pool], trajectories: Sequence[Trajectory], *, admit_ahead: float = 1.5
) -> Simulated:
    """Let one sample take each trajectory, in this order. admit_ahead: samples in it per slot of who opens them."""
    engines = {role: [_Engine(pool.rates, pool.slots) for _ in range(pool.num_workers)] for role, pool in pools.items()}
    opens = pools[trajectories[0][0].role]
    room = max(1, int(opens.num_workers * opens.slots * admit_ahead))
    samples = [_Sample(trajectory) for trajectory in trajectories]
    fresh = iter(samples)
    for sample in itertools.islice(fresh, room):
        _hand_over(engines, sample)
    every = [engine for group in engines.values() for engine in group]
    steps: list[tuple[float, int, _Engine]] = []
    now = 0.0
    numbers = itertools.count()
    while True:
        for engine in every:
            if not engine.is_stepping and (step_s := engine.begin_step()) is not None:
                heapq.heappush(steps, (now + step_s, next(numbers), engine))
        if not steps:
            break
        now = steps[0][0]
        while steps and steps[0][0] == now:
            for sample in heapq.heappop(steps)[2].end_step():
                sample.advance(now)
                goes_on = next(fresh, None) if sample.is_complete else sample
                if goes_on is not None:
                    _hand_over(engines, goes_on)
    return _found(samples, engines)


def lock_step(pools: Mapping[ModelRole, Pool], trajectories: Sequence[Trajectory]) -> Simulated:
    """All samples advance together: one role writes for all whose turn it is, then, once the last is done, the other.
    One engine of each role."""
    engines = {role: [_Engine(pool.rates, pool.slots)] for role, pool in pools.items()}
    left = samples = [_Sample(trajectory) for trajectory in trajectories]
    now = 0.0
    while left:
        for role, [engine] in engines.items():
            for sample in left:
                if sample.piece.role is role:
                    engine.put(sample)
            while (step_s := engine.begin_step()) is not None:
                now += step_s
                for sample in engine.end_step():
                    sample.advance(now)
            left = [sample for sample in left if not sample.is_complete]
    return _found(samples, engines)


def one_by_one(pools: Mapping[ModelRole, Pool], trajectories: Sequence[Trajectory]) -> Simulated:
    """One sample at a time, which has an engine of each role to itself."""
    engines = {role: [_Engine(pool.rates, 1)] for role, pool in pools.items()}
    samples = [_Sample(trajectory) for trajectory in trajectories]
    now = 0.0
    for sample in samples:
        while not sample.is_complete:
            [engine] = engines[sample.piece.role]
            engine.put(sample)
            while (step_s := engine.begin_step()) is not None:
                now += step_s
                if engine.end_step():
                    sample.advance(now)
    return _found(samples, engines)


def _hand_over(engines: Mapping[ModelRole, Sequence[_Engine]], sample: _Sample) -> None:
    """To the engine that has its context, else to the one that has least to do."""
    role = sample.piece.role
    if role not in sample.homes:
        sample.homes[role] = min(engines[role], key=len)
    sample.homes[role].put(sample)


def _found(samples: Sequence[_Sample], engines: Mapping[ModelRole, Sequence[_Engine]]) -> Simulated:
    return Simulated(
        ended_s=[sample.ended_s for sample in samples],
        engines={role: [engine.use for engine in group] for role, group in engines.items()},
    )
