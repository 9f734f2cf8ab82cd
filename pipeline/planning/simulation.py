"""A discrete-event simulation of the pools: admission, queues, engines, hand-overs.

Samples take the trajectories they are given. An engine is a processor that its running requests share: all of them
advance by one token per step, and a step takes longer the more they are. As in the pipeline, an admitted sample counts
until it is complete; resumed samples go first; a sample goes back to the worker that has its context cached.
"""

from __future__ import annotations

import heapq
import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import simpy

from pipeline.planning.pools import EngineRates, Piece, PipelineModel, Pool, Trajectory
from pipeline.samples import ModelRole

_Process: TypeAlias = Generator[simpy.Event, Any, None]

_EPSILON = 1e-9
"""Tokens and seconds of work below this are rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """How a pool was used, from the first admission to the last text.

    busy: share of the time in which an engine had a request. slots: share of the slots that were taken. wait_s: mean
    time for which a request that was handed over had no slot. steady_slots: slots until the last sample was
    admitted, where that was not at once.
    """

    tokens: int
    requests: int
    busy: float
    slots: float
    wait_s: float
    steady_slots: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What came out. wall_s: from the first admission to the last text, admitted_s: to the last admission. ended_s: of
    each sample, in order of ends.

    servers: share of the time in which each shared server, and the busiest worker process, was at work.
    """

    wall_s: float
    admitted_s: float
    ended_s: tuple[float, ...]
    hand_overs: int
    pools: Mapping[ModelRole, PoolUse]
    servers: Mapping[str, float]

    @property
    def tokens(self) -> int:
        return sum(pool.tokens for pool in self.pools.values())


def simulate(model: PipelineModel, trajectories: Sequence[Trajectory]) -> Simulated:
    """Let one sample take each trajectory, admitted in this order.

    Raises ValueError where a trajectory needs a role that has no worker.
    """
    missing = {piece.role for trajectory in trajectories for piece in trajectory} - {
        role for role, pool in model.pools.items() if pool.num_workers
    }
    if missing:
        raise ValueError(f"no {' or '.join(sorted(missing))} workers, and the samples need them")
    return _Pipeline(model, trajectories).run()


class _Cores:
    """Shares cores equally among those that work; each gets at most one."""

    def __init__(self, count: float | None) -> None:
        self._count = count
        self.speed = 1.0
        self.servers: list[_Server] = []

    def share(self) -> None:
        """After something began or ended: everybody's speed again."""
        if self._count is None:
            return
        num_active = sum(server.is_active for server in self.servers)
        speed = min(1.0, self._count / num_active) if num_active else 1.0
        if speed != self.speed:
            for server in self.servers:
                server.settle()
            self.speed = speed
            for server in self.servers:
                server.plan()


class _Server(ABC):
    """Something that works at the speed its cores give it, and knows when it will next be done with something."""

    def __init__(self, env: simpy.Environment, cores: _Cores) -> None:
        self._env = env
        self._cores = cores
        self._settled_at = 0.0
        self._plan_number = 0
        self.busy_s = 0.0
        cores.servers.append(self)

    @property
    @abstractmethod
    def is_active(self) -> bool: ...

    @abstractmethod
    def _work(self, seconds: float) -> None:
        """Do so many seconds of work."""

    @abstractmethod
    def _work_ahead(self) -> float:
        """Seconds of work until the next thing is done."""

    @abstractmethod
    def _complete(self) -> None:
        """Take out what is done, and let in what waited for it."""

    def settle(self) -> None:
        """Do the work of the time since the last call."""
        elapsed = self._env.now - self._settled_at
        self._settled_at = self._env.now
        if elapsed > 0 and self.is_active:
            self.busy_s += elapsed
            self._work(elapsed * self._cores.speed)

    def plan(self) -> None:
        """Set the alarm for the next completion; earlier alarms are void."""
        self._plan_number += 1
        if self.is_active:
            alarm = self._env.timeout(self._work_ahead() / self._cores.speed, self._plan_number)
            assert alarm.callbacks is not None
            alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm.value == self._plan_number:
            self.settle()
            self._complete()
            self._changed()

    def _changed(self) -> None:
        self._cores.share()
        self.plan()


class _FifoServer(_Server):
    """Work done one after the other: a server that all share, or a worker's process beside its engine."""

    def __init__(self, env: simpy.Environment, cores: _Cores) -> None:
        super().__init__(env, cores)
        self._left: deque[tuple[float, simpy.Event]] = deque()
        self._head_s = 0.0

    @property
    def is_active(self) -> bool:
        return bool(self._left)

    def do(self, seconds: float) -> simpy.Event:
        """Queue so much work; the event comes when it is done."""
        done = self._env.event()
        self.settle()
        self._left.append((seconds, done))
        if len(self._left) == 1:
            self._head_s = seconds
            self._changed()
        return done

    def _work(self, seconds: float) -> None:
        self._head_s -= seconds

    def _work_ahead(self) -> float:
        return max(0.0, self._head_s)

    def _complete(self) -> None:
        if self._head_s <= _EPSILON:
            self._left.popleft()[1].succeed()
            self._head_s = self._left[0][0] if self._left else 0.0


class _Engine(_Server):
    """One engine. A request is its end on the scale of tokens that each running request has written so far."""

    def __init__(self, env: simpy.Environment, cores: _Cores, pool: Pool) -> None:
        super().__init__(env, cores)
        self._rates: EngineRates = pool.rates
        self._slots = pool.slots
        self._written = 0.0
        self._held_up_s = 0.0
        self._running: list[tuple[float, int, simpy.Event]] = []
        self._waiting: list[tuple[int, int, Piece, float, simpy.Event]] = []
        self._numbers = itertools.count()
        self.slot_s = 0.0
        self.wait_s = 0.0

    @property
    def is_active(self) -> bool:
        return bool(self._running)

    @property
    def num_requests(self) -> int:
        return len(self._running) + len(self._waiting)

    def write(self, piece: Piece, *, is_resumed: bool) -> simpy.Event:
        """Queue a request; the event comes when its last token is written."""
        done = self._env.event()
        self.settle()
        heapq.heappush(self._waiting, (-is_resumed, next(self._numbers), piece, self._env.now, done))
        if len(self._running) < self._slots:
            self._admit()
            self._changed()
        return done

    def settle(self) -> None:
        self.slot_s += (self._env.now - self._settled_at) * len(self._running)
        super().settle()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            _, number, piece, since, done = heapq.heappop(self._waiting)
            self.wait_s += self._env.now - since
            self._held_up_s += self._rates.start_seconds(piece)
            heapq.heappush(self._running, (self._written + max(1, piece.tokens), number, done))

    def _work(self, seconds: float) -> None:
        held_up = min(self._held_up_s, seconds)
        self._held_up_s -= held_up
        self._written += (seconds - held_up) / self._rates.step_seconds(len(self._running))

    def _work_ahead(self) -> float:
        tokens = max(0.0, self._running[0][0] - self._written)
        return self._held_up_s + tokens * self._rates.step_seconds(len(self._running))

    def _complete(self) -> None:
        while self._running and self._running[0][0] <= self._written + _EPSILON * (1 + self._written):
            heapq.heappop(self._running)[2].succeed()
        self._admit()


@dataclass(slots=True)
class _Worker:
    engine: _Engine
    process: _FifoServer


@dataclass(slots=True)
class _Tally:
    tokens: int = 0
    requests: int = 0


class _Pipeline:
    """All of it, for one simulation."""

    def __init__(self, model: PipelineModel, trajectories: Sequence[Trajectory]) -> None:
        self._model = model
        self._env = simpy.Environment()
        cores = _Cores(model.cores)
        self._postgres = _FifoServer(self._env, cores)
        self._redis = _FifoServer(self._env, cores)
        self._workers = {
            role: [
                _Worker(_Engine(self._env, cores, pool), _FifoServer(self._env, cores)) for _ in range(pool.num_workers)
            ]
            for role, pool in model.pools.items()
        }  # fmt: skip
        self._pending = deque(trajectories)
        self._num_admitted = 0
        self._freed = self._env.event()
        opener = trajectories[0][0].role if trajectories else ModelRole.SMALL
        pool = model.pools[opener]
        self._room = math.ceil(pool.num_workers * pool.slots * model.admission.admit_ahead)
        self._tallies = {role: _Tally() for role in model.pools}
        self._ended: list[float] = []
        self._hand_overs = 0
        self._admitted_s = 0.0
        self._steady_slot_s: dict[ModelRole, float] = {}

    def run(self) -> Simulated:
        self._env.process(self._upkeep())
        self._env.run()
        wall_s = self._ended[-1] if self._ended else 0.0
        lines = {"postgres": [self._postgres], "redis": [self._redis]}
        lines["worker"] = [worker.process for workers in self._workers.values() for worker in workers]
        return Simulated(
            wall_s=wall_s,
            admitted_s=self._admitted_s,
            ended_s=tuple(self._ended),
            hand_overs=self._hand_overs,
            pools={role: self._use(role, wall_s) for role in self._workers},
            servers={name: max((line.busy_s for line in group), default=0.0) / max(wall_s, _EPSILON)
                     for name, group in lines.items()},
        )  # fmt: skip

    def _upkeep(self) -> _Process:
        """Admit samples in rounds, as many as there is room for; rounds in which there is none are left out."""
        tick_s = self._model.admission.tick_s
        while self._pending:
            while self._pending and self._num_admitted < self._room:
                self._num_admitted += 1
                self._env.process(self._take(self._pending.popleft()))
            if self._pending:
                self._freed = self._env.event()
                yield self._freed
                yield self._env.timeout(tick_s - self._env.now % tick_s)
        self._admitted_s = self._env.now
        self._steady_slot_s = {role: self._slot_seconds(role) for role in self._workers}

    def _take(self, trajectory: Trajectory) -> _Process:
        """One sample, from its admission to its end."""
        homes: dict[ModelRole, _Worker] = {}
        costs = self._model.costs
        for index, piece in enumerate(trajectory):
            if costs.redis_s and not piece.stays:
                yield self._redis.do(costs.redis_s)
            if costs.delay_s and not piece.stays:
                yield self._env.timeout(costs.delay_s)
            if piece.role not in homes:
                homes[piece.role] = self._least_loaded(piece.role)
            worker = homes[piece.role]
            tally = self._tallies[piece.role]
            tally.tokens += piece.tokens
            tally.requests += 1
            yield worker.engine.write(piece, is_resumed=index > 0)
            if index + 1 < len(trajectory) and trajectory[index + 1].stays:
                continue
            if costs.worker_s:
                yield worker.process.do(costs.worker_s)
            if costs.postgres_s:
                yield self._postgres.do(costs.postgres_s)
            self._hand_overs += 1
        self._num_admitted -= 1
        if not self._freed.triggered:
            self._freed.succeed()
        self._ended.append(self._env.now)

    def _least_loaded(self, role: ModelRole) -> _Worker:
        return min(self._workers[role], key=lambda worker: worker.engine.num_requests)

    def _slot_seconds(self, role: ModelRole) -> float:
        for worker in self._workers[role]:
            worker.engine.settle()
        return sum(worker.engine.slot_s for worker in self._workers[role])

    def _use(self, role: ModelRole, wall_s: float) -> PoolUse:
        pool, tally = self._model.pools[role], self._tallies[role]
        engines = [worker.engine for worker in self._workers[role]]
        engine_s = max(wall_s * pool.num_workers, _EPSILON)
        slots = sum(engine.slot_s for engine in engines) / (engine_s * pool.slots)
        steady_s = self._admitted_s * pool.num_workers * pool.slots
        return PoolUse(
            tokens=tally.tokens,
            requests=tally.requests,
            busy=sum(engine.busy_s for engine in engines) / engine_s,
            slots=slots,
            wait_s=sum(engine.wait_s for engine in engines) / max(tally.requests, 1),
            steady_slots=self._steady_slot_s[role] / steady_s if steady_s else slots,
        )
