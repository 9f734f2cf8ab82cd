"""What ``specthink plan`` answers: how long, which pool is short, how many for a deadline, what breaks first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.errors import ConfigurationError
from pipeline.planning.fitting import Fitted
from pipeline.planning.pools import Admission, HandOverCosts, PartCosts, PipelineModel, Pool
from pipeline.planning.slices import MAX_HAND_OVERS, Estimate, estimate
from pipeline.samples import ModelRole

MANY_GPUS = 1000
"""The size at which a plan says which part breaks first."""
_SEARCH_HAND_OVERS = 10_000
"""While a number of workers is looked for; the answer is then simulated in full."""
_SEARCH_STEPS = 12
_WORTH = 0.02
"""A pool is short where a tenth more of it saves a larger part of the time than this."""
_NEARLY_FULL = 0.9
"""Of its slots: such a pool is grown with the fullest one."""
_FULL = 0.85
"""A shared server that is at work for a larger part of the time holds the pools up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan is made for. workers: of each role. speedups: how much faster an engine is than the measured one."""

    num_samples: int
    workers: Mapping[ModelRole, int]
    slots: Mapping[ModelRole, int]
    speedups: Mapping[ModelRole, float]
    deadline_s: float | None = None
    shared_cores: float | None = None
    """None where every worker has a device of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """One pool in the plan. busy: share of the time in which an engine had a request. slots: share of the slots that
    were taken while samples were left to admit. wait_s: mean time for which a handed over sample had no slot.
    wall_s_with_more: of the job, with more_workers."""

    role: ModelRole
    num_workers: int
    tokens_per_s: float
    busy: float
    slots: float
    wait_s: float
    more_workers: int
    wall_s_with_more: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLoad:
    """A part that does not grow with the pools. load: demand of capacity, both per second, in this plan's pipeline.

    breaks_at_workers: how many workers in this plan's proportion ask for all of its capacity; None: any number will do.
    origin: of the capacity.
    """

    part: str
    unit: str
    demand: float
    capacity: float
    breaks_at_workers: int | None
    what_then: str
    origin: str

    @property
    def load(self) -> float:
        return self.demand / self.capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePlan:
    """The fewest workers found that meet a deadline; None for both: why says why there are none."""

    deadline_s: float
    workers: Mapping[ModelRole, int] | None
    wall_s: float | None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answers. one_in, num_simulated: how much of it was simulated (see pipeline.planning.slices).

    short: what holds the job up: a role, "postgres", "redis", "worker", or None where no one part does. why: in words.
    parts: the first to be full comes first.
    """

    job_id: int
    num_samples: int
    wall_s: float
    samples_per_s: float
    tokens_per_s: float
    hand_overs_per_s: float
    pools: tuple[PoolPlan, ...]
    short: str | None
    why: str
    deadline: DeadlinePlan | None
    parts: tuple[PartLoad, ...]
    breaks_first: str
    one_in: int
    num_simulated: int


def make_plan(
    job_id: int,
    fitted: Fitted,
    request: PlanRequest,
    *,
    limits: PartCosts,
    admission: Admission | None = None,
) -> Plan:
    """Simulate a job like the one that was measured. limits: of the parts that do not grow with the pools.

    Raises ConfigurationError where a role that the samples need has no worker.
    """
    for role in fitted.roles:
        if request.workers.get(role, 0) < 1:
            raise ConfigurationError(f"the samples of job {job_id} need {role} workers; give --{role}-workers N")
    planner = _Planner(fitted, request, limits, admission or Admission())
    workers = {role: request.workers[role] for role in fitted.roles}
    found = planner.estimate(workers)
    pools = tuple(planner.pool(role, workers, found) for role in workers)
    short, why = _shortage(found, pools)
    parts = planner.parts(workers)
    deadline = planner.meet(request.deadline_s) if request.deadline_s else None
    return Plan(
        job_id=job_id,
        num_samples=request.num_samples,
        wall_s=found.wall_s,
        samples_per_s=found.samples_per_s,
        tokens_per_s=found.tokens_per_s,
        hand_overs_per_s=found.hand_overs_per_s,
        pools=pools,
        short=short,
        why=why,
        deadline=deadline,
        parts=parts,
        breaks_first=parts[0].part,
        one_in=found.one_in,
        num_simulated=found.num_simulated,
    )


class _Planner:
    """Simulates one request with different numbers of workers."""

    def __init__(self, fitted: Fitted, request: PlanRequest, limits: PartCosts, admission: Admission) -> None:
        self._fitted = fitted
        self._request = request
        self._limits = limits
        self._admission = admission
        # Shared cores are counted by the simulation, and one hand-over uses one of them.
        postgres_cores = limits.postgres_cores if request.shared_cores is None else 1.0
        self._postgres_s = limits.postgres_ms / 1000 / postgres_cores
        self._costs = HandOverCosts(
            delay_s=fitted.delay_s,
            worker_s=0.0 if fitted.in_one_process else limits.worker_ms / 1000,
            postgres_s=self._postgres_s,
            redis_s=limits.redis_ms / 1000,
        )

    def estimate(
        self, workers: Mapping[ModelRole, int], *, quickly: bool = False, costs: HandOverCosts | None = None
    ) -> Estimate:
        pools = {
            role: Pool(
                num_workers=count,
                slots=self._request.slots[role],
                rates=self._fitted.rates[role].faster(self._request.speedups.get(role, 1.0)),
            )
            for role, count in workers.items()
        }
        model = PipelineModel(
            pools=pools,
            costs=costs or self._costs,
            cores=self._request.shared_cores,
            admission=self._admission,
        )
        most = _SEARCH_HAND_OVERS if quickly else MAX_HAND_OVERS
        return estimate(model, self._fitted.trajectories, self._request.num_samples, max_hand_overs=most)

    def pool(self, role: ModelRole, workers: Mapping[ModelRole, int], found: Estimate) -> PoolPlan:
        more = workers[role] + max(1, round(workers[role] / 10))
        use = found.pools[role]
        share = use.tokens / max(1, sum(pool.tokens for pool in found.pools.values()))
        return PoolPlan(
            role=role,
            num_workers=workers[role],
            tokens_per_s=found.tokens_per_s * share,
            busy=use.busy,
            slots=use.steady_slots,
            wait_s=use.wait_s,
            more_workers=more,
            wall_s_with_more=self.estimate({**workers, role: more}).wall_s,
        )

    def parts(self, workers: Mapping[ModelRole, int]) -> tuple[PartLoad, ...]:
        """What the pools would ask of each if none held them up; the one that is full with the fewest workers first."""
        free = self.estimate(workers, quickly=True, costs=replace(self._costs, postgres_s=0, redis_s=0, worker_s=0))
        num_workers = sum(workers.values())
        per_worker = max(
            free.hand_overs_per_s * use.requests / sum(pool.requests for pool in free.pools.values()) / workers[role]
            for role, use in free.pools.items()
        )
        tokens = max(
            free.tokens_per_s * use.tokens / sum(pool.tokens for pool in free.pools.values()) / workers[role]
            for role, use in free.pools.items()
        )
        shared = [
            self._shared_part("Postgres", free.hand_overs_per_s, 1 / max(self._postgres_s, 1e-9), num_workers),
            self._shared_part("Redis", free.hand_overs_per_s, 1000 / max(self._limits.redis_ms, 1e-9), num_workers),
        ]
        used = per_worker * self._limits.worker_ms / 1000 + tokens * self._limits.worker_token_us / 1e6
        process = PartLoad(
            part="a worker's process",
            unit="of its core",
            demand=used,
            capacity=1.0,
            breaks_at_workers=1 if used >= 1 else None,
            what_then="Fewer slots per worker, and more workers",
            origin=_origins(self._limits, "worker_ms", "worker_token_us"),
        )
        return tuple(sorted((*shared, process), key=lambda part: part.breaks_at_workers or math.inf))

    def _shared_part(self, part: str, demand: float, capacity: float, num_workers: int) -> PartLoad:
        """A server that all workers share."""
        breaks_at = max(1, math.floor(num_workers * capacity / max(demand, 1e-9)))
        return PartLoad(
            part=part,
            unit="hand-overs/s",
            demand=demand,
            capacity=capacity,
            breaks_at_workers=breaks_at,
            what_then=_WHAT_THEN[part].format(gpus=MANY_GPUS, n=max(2, math.ceil(MANY_GPUS / breaks_at))),
            origin=_origins(self._limits, *_NUMBERS[part]),
        )

    def meet(self, deadline_s: float) -> DeadlinePlan:
        """Grow the pools in turn from what the bare work takes, until a simulation is done in time; then thin them."""
        best = self._longest_alone_s()
        if best > deadline_s:
            return DeadlinePlan(deadline_s=deadline_s, workers=None, wall_s=None,
                                why=f"the longest sample takes {best:.0f} s even alone on its engines")  # fmt: skip
        slowest_s, server = max((self._postgres_s, "Postgres"), (self._costs.redis_s, "Redis"))
        most = 1 / max(slowest_s, 1e-9)
        needed = self._request.num_samples * self._hand_overs_per_sample() / deadline_s
        if needed > most:
            return DeadlinePlan(deadline_s=deadline_s, workers=None, wall_s=None,
                                why=f"it takes {needed:.0f} hand-overs/s, and one {server} does {most:.0f}: split the "
                                    f"work over {math.ceil(needed / most / _FULL)} pipelines")  # fmt: skip
        counts = {role: max(1, math.ceil(self._work_s(role) / deadline_s)) for role in self._fitted.roles}
        for _ in range(_SEARCH_STEPS):
            tried = self.estimate(counts, quickly=True)
            if tried.wall_s <= deadline_s:
                break
            counts = _grown(counts, tried, deadline_s)
        counts = self._thinned(counts, deadline_s)
        wall_s = self.estimate(counts).wall_s
        if wall_s > deadline_s * 1.02:
            return DeadlinePlan(deadline_s=deadline_s, workers=None, wall_s=None,
                                why=f"{_told(counts)} would still take {wall_s:.0f} s: most of it is the last samples' "
                                    "own length")  # fmt: skip
        return DeadlinePlan(deadline_s=deadline_s, workers=counts, wall_s=wall_s)

    def _thinned(self, counts: dict[ModelRole, int], deadline_s: float) -> dict[ModelRole, int]:
        """Take a tenth of each pool away for as long as the deadline is met."""
        for role in counts:
            while counts[role] > 1:
                fewer = {**counts, role: counts[role] - max(1, counts[role] // 10)}
                if self.estimate(fewer, quickly=True).wall_s > deadline_s:
                    break
                counts = fewer
        return counts

    def _work_s(self, role: ModelRole) -> float:
        """Engine seconds that the job needs of a role, all slots taken all the time."""
        rates = self._fitted.rates[role].faster(self._request.speedups.get(role, 1.0))
        slots = self._request.slots[role]
        pieces = [piece for trajectory in self._fitted.trajectories for piece in trajectory if piece.role is role]
        seconds = sum(piece.tokens for piece in pieces) * rates.step_seconds(slots) / slots
        seconds += sum(map(rates.start_seconds, pieces))
        return seconds * self._request.num_samples / len(self._fitted.trajectories)

    def _longest_alone_s(self) -> float:
        rates = {
            role: found.faster(self._request.speedups.get(role, 1.0)) for role, found in self._fitted.rates.items()
        }
        return max(
            sum(
                piece.tokens * rates[piece.role].step_seconds(1) + rates[piece.role].start_seconds(piece)
                for piece in trajectory
            )
            + len(trajectory) * self._fitted.delay_s
            for trajectory in self._fitted.trajectories
        )

    def _hand_overs_per_sample(self) -> float:
        return sum(map(len, self._fitted.trajectories)) / len(self._fitted.trajectories)


def _grown(counts: Mapping[ModelRole, int], tried: Estimate, deadline_s: float) -> dict[ModelRole, int]:
    """More of whichever pool is fuller, by as much as time lacks."""
    fullest = max(use.steady_slots for use in tried.pools.values())
    times = min(2.0, tried.wall_s / deadline_s)
    return {
        role: max(count + 1, math.ceil(count * times))
        if tried.pools[role].steady_slots >= min(fullest, _NEARLY_FULL)
        else count
        for role, count in counts.items()
    }


def _shortage(found: Estimate, pools: tuple[PoolPlan, ...]) -> tuple[str | None, str]:
    """What holds the job up, and how that shows."""
    server, load = max(found.servers.items(), key=lambda item: item[1])
    if load > _FULL:
        return server, f"{server} is at work {load:.0%} of the time: more workers would not help"
    gains = {pool.role: 1 - pool.wall_s_with_more / found.wall_s for pool in pools}
    best = max(pools, key=lambda pool: gains[pool.role])
    if gains[best.role] < _WORTH:
        return None, "a tenth more of any pool saves next to nothing: the time goes to the samples' own length"
    return best.role.value, (
        f"{best.more_workers} {best.role} workers instead of {best.num_workers} would save {gains[best.role]:.0%} of "
        "the time" + "".join(
            f", as many more {pool.role} ones {max(0.0, gains[pool.role]):.0%}" for pool in pools if pool is not best
        )
    )  # fmt: skip


_WHAT_THEN = {
    "Postgres": "Several databases by job: at {gpus} workers {n} pipelines, each with a Postgres and its part of the "
    "workers; no hand-over leaves its pipeline",
    "Redis": "Several brokers: at {gpus} workers {n} of them, one for each pipeline or each part of the queues",
}
_NUMBERS = {"Postgres": ("postgres_ms", "postgres_cores"), "Redis": ("redis_ms",)}


def _origins(limits: PartCosts, *names: str) -> str:
    """Which numbers of the limits these are, and where they come from."""
    return " · ".join(f"planning.{name}: {limits.origins.get(name, 'given')}" for name in names)


def _told(counts: Mapping[ModelRole, int]) -> str:
    return " and ".join(f"{count} {role}" for role, count in counts.items()) + " workers"
