"""From what was measured of a job to the model of its pools: rates by the number of running requests, delays."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import JobError
from pipeline.planning.measured import MeasuredJob, MeasuredRequest
from pipeline.planning.pools import EngineRates, PartCosts, Trajectory
from pipeline.samples import ModelRole

MIN_REQUESTS = 50
"""Fewer requests of a role say too little about its engine."""

_ROUNDS = 4

_Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How engines shared cores while a job was measured. servers: cores that Postgres, Redis and the others used."""

    cores: float
    servers: float

    def speed(self, num_engines: int) -> float:
        """What each of so many engines at work got of a core."""
        return min(1.0, self.cores / max(num_engines + self.servers, 1))


def sharing_of(measured: MeasuredJob, cores: float, limits: PartCosts) -> Sharing:
    """With the servers' part from what a hand-over costs them."""
    if not measured.requests:
        return Sharing(cores=cores, servers=0.0)
    starts = [request.ended_at - request.engine_s for request in measured.requests]
    seconds = max(request.ended_at for request in measured.requests) - min(starts)
    per_s = len(measured.requests) / max(seconds, 1e-9)
    return Sharing(cores=cores, servers=per_s * (limits.postgres_ms + limits.redis_ms) / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a job says about pipelines like the one that it ran on.

    slots, num_workers: of each role. delay_s: from the end of a piece to the next claim, the median. in_one_process:
    whether engines share a process with their hand-overs, whose cost is then a part of the rates.
    """

    trajectories: tuple[Trajectory, ...]
    rates: Mapping[ModelRole, EngineRates]
    slots: Mapping[ModelRole, int]
    num_workers: Mapping[ModelRole, int]
    delay_s: float
    in_one_process: bool

    @property
    def roles(self) -> list[ModelRole]:
        """Those that the samples need."""
        return [role for role in ModelRole if role in self.rates]


def fit(measured: MeasuredJob, sharing: Sharing | None = None) -> Fitted:
    """sharing: None where every worker had a device of its own. Raises JobError where too little is complete."""
    held_s = _median(request.held_s for request in measured.requests)
    requests = [
        replace(request, ended_at=request.ended_at - (held_s if request.held_s is None else request.held_s))
        for request in measured.requests
    ]
    speeds = _Speeds(requests, sharing)
    by_role: dict[ModelRole, list[MeasuredRequest]] = defaultdict(list)
    for request in requests:
        by_role[measured.workers[request.worker_id].role].append(request)
    needed = {piece.role for trajectory in measured.trajectories for piece in trajectory}
    for role in needed:
        if len(by_role[role]) < MIN_REQUESTS:
            raise JobError(
                measured.job_id,
                f"it has {len(by_role[role])} texts by the {role} model, and {MIN_REQUESTS} are needed to tell how "
                "fast that writes; take a job with more samples",
            )
    if not needed:
        raise JobError(measured.job_id, "it has no complete sample yet; a plan is made from those")
    workers = measured.workers.values()
    return Fitted(
        trajectories=measured.trajectories,
        rates={role: fit_rates(by_role[role], speeds) for role in needed},
        slots={role: max(worker.max_in_flight for worker in workers if worker.role is role) for role in needed},
        num_workers={role: sum(worker.role is role for worker in workers) for role in needed},
        delay_s=held_s + _median(request.wait_s for request in requests),
        in_one_process=all(worker.in_one_process for worker in workers),
    )


def _median(seconds: Iterable[float | None]) -> float:
    """Of those that are known; 0 where none is."""
    return statistics.median([each for each in seconds if each is not None] or [0.0])


def fit_rates(requests: Sequence[MeasuredRequest], speeds: _Speeds) -> EngineRates:
    """The rates that explain best how long the requests of one role took, none of them negative.

    A request of T tokens, with N running on average over its steps (itself counted), in whose time K requests with P
    computed prompt tokens began, takes T × step_s + T × N × token_s + K × request_s + P × prompt_token_s. Least squares
    over all requests, each weighted by the inverse of its time. Which of its time is steps depends on the rates: they
    are found again with those found before.
    """
    by_worker: dict[int, list[MeasuredRequest]] = defaultdict(list)
    for request in requests:
        by_worker[request.worker_id].append(request)
    workers = [_Timings(found, speeds) for found in by_worker.values()]
    took = np.concatenate([worker.took for worker in workers])
    weights = 1 / np.sqrt(np.maximum(took, 1e-6))
    rates = EngineRates(step_s=1.0, token_s=0.0)
    for _ in range(_ROUNDS):
        terms = np.concatenate([worker.terms(rates) for worker in workers])
        factors = _nonnegative_least_squares(terms * weights[:, None], took * weights).tolist()
        if factors[0] + factors[1] <= 0:  # nothing but noise: all of the time goes to the tokens
            factors = [0.0, float(took.sum() / terms[:, 1].sum()), 0.0, 0.0]
        rates = EngineRates(step_s=factors[0], token_s=factors[1], request_s=factors[2], prompt_token_s=factors[3])
    return rates


class _Timings:
    """The requests of one worker. took: seconds of work until each of them was done."""

    def __init__(self, requests: Sequence[MeasuredRequest], speeds: _Speeds) -> None:
        self._tokens = np.array([request.tokens for request in requests], dtype=float)
        self._computed = np.array([request.computed_tokens for request in requests], dtype=float)
        self._ends = np.array([request.ended_at for request in requests])
        self._starts = self._ends - np.array([request.engine_s for request in requests])
        self._order = np.argsort(self._starts)
        self._times = np.sort(np.concatenate([self._starts, self._ends]))
        begun = np.searchsorted(self._starts[self._order], self._times, side="right")
        self._running = begun - np.searchsorted(np.sort(self._ends), self._times, side="right")
        self._work = np.diff(speeds.work_until(self._times))
        self.took = speeds.work_until(self._ends) - speeds.work_until(self._starts)

    def terms(self, rates: EngineRates) -> _Floats:
        """What each of the rates is multiplied by, (num_requests, 4). rates: say how long a step took."""
        running = np.maximum(self._running[:-1], 1)  # between two requests no work counts
        steps = self._stepping(rates) / (rates.step_s + running * rates.token_s)
        all_steps, beside = self._in_its_time(steps), self._in_its_time(steps * running)
        first, last = (
            np.searchsorted(self._starts[self._order], edge, side="left") for edge in (self._starts, self._ends)
        )
        computed = np.concatenate([[0.0], np.cumsum(self._computed[self._order])])
        return np.stack(
            [
                self._tokens,
                self._tokens * beside / np.maximum(all_steps, 1e-12),
                (last - first).astype(float),
                computed[last] - computed[first],
            ],
            axis=1,
        )

    def _stepping(self, rates: EngineRates) -> _Floats:
        """Of the work between any two changes: what went to steps, and not to beginning with requests.

        What is left to be begun with at each change follows Lindley's recursion, left' = max(0, left + new - work).
        """
        begun = np.searchsorted(self._times, self._starts, side="left")
        new = np.bincount(
            begun, weights=rates.request_s + self._computed * rates.prompt_token_s, minlength=len(self._times)
        )[:-1]
        walk = np.concatenate([[0.0], np.cumsum(new - self._work)])
        left = walk - np.minimum.accumulate(walk)
        stepping: _Floats = self._work - (left[:-1] + new - left[1:])
        return np.maximum(stepping, 0.0)

    def _in_its_time(self, amounts: _Floats) -> _Floats:
        """The sum over each request's time of what was done between any two changes."""
        sums = np.concatenate([[0.0], np.cumsum(amounts)])
        found: _Floats = np.interp(self._ends, self._times, sums) - np.interp(self._starts, self._times, sums)
        return found


class _Speeds:
    """Seconds of work that an engine at work has done until any time: of a core of its own, or of its part of some."""

    def __init__(self, requests: Sequence[MeasuredRequest], sharing: Sharing | None) -> None:
        self._sharing = sharing
        if sharing is None:
            return
        changes: list[tuple[float, int, int]] = []
        for request in requests:
            changes += [
                (request.ended_at - request.engine_s, 1, request.worker_id),
                (request.ended_at, -1, request.worker_id),
            ]
        running: dict[int, int] = defaultdict(int)
        times, speeds = [], []
        for at, change, worker_id in sorted(changes):
            running[worker_id] += change
            times.append(at)
            speeds.append(sharing.speed(sum(count > 0 for count in running.values())))
        self._times = np.array(times)
        self._work = np.concatenate([[0.0], np.cumsum(np.array(speeds[:-1]) * np.diff(self._times))])

    def work_until(self, times: _Floats) -> _Floats:
        """Between the first start and the last end of a request."""
        if self._sharing is None:
            return times
        done: _Floats = np.interp(times, self._times, self._work)
        return done


def _nonnegative_least_squares(terms: _Floats, wanted: _Floats) -> _Floats:
    """The best of the solutions that use some of the terms and have no negative factor; there are few terms."""
    num_terms = terms.shape[1]
    best, best_error = np.zeros(num_terms), float("inf")
    for size in range(1, num_terms + 1):
        for used in map(list, itertools.combinations(range(num_terms), size)):
            factors, *_ = np.linalg.lstsq(terms[:, used], wanted, rcond=None)
            error = float(np.square(terms[:, used] @ factors - wanted).sum())
            if (factors >= 0).all() and error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(num_terms), error
                best[used] = factors
    return best
