"""A job on pools of any size, from a simulation of bounded size.

Large pools are simulated in part: one k-th of the workers of each role with one k-th of the samples, each shared
server k times as slow. A long job is simulated until its pools have long been full, and the rest of it is added at the
pace of that time. Samples take measured trajectories in turn, in a random order. A short job ends with whichever long
samples come last: it is simulated in several orders, and takes their mean.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.planning.pools import PipelineModel, Pool, Trajectory
from pipeline.planning.simulation import PoolUse, Simulated, simulate
from pipeline.samples import ModelRole

MAX_HAND_OVERS = 40_000
"""Simulated at most, unless filling the pools takes more: some seconds."""
_FILLINGS = 3
"""A job that is cut short is simulated for so many samples per place in the pipeline."""
_ORDERS = 4
"""Of a job that is simulated whole, as far as max_hand_overs goes: of 256 samples on 1 + 1 workers with 64 slots one
order takes 5 % longer than another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job takes. samples_per_s: while there are samples left to admit.

    one_in: the part of the pools that was simulated; num_simulated: samples. pools, servers: as in Simulated.
    """

    wall_s: float
    samples_per_s: float
    tokens_per_s: float
    hand_overs_per_s: float
    one_in: int
    num_simulated: int
    pools: Mapping[ModelRole, PoolUse]
    servers: Mapping[str, float]


def estimate(
    model: PipelineModel,
    trajectories: Sequence[Trajectory],
    num_samples: int,
    *,
    seed: int = 0,
    max_hand_overs: int = MAX_HAND_OVERS,
) -> Estimate:
    """Simulate a job of num_samples whose samples go as the trajectories say. Raises ValueError as simulate does."""
    per_sample = sum(map(len, trajectories)) / len(trajectories)
    budget = max(1, int(max_hand_overs / per_sample))
    one_in = _one_in(model, num_samples, budget)
    part = _slice(model, one_in)
    whole = max(1, round(num_samples / one_in))
    num_simulated = min(whole, max(budget, _FILLINGS * _room(part, trajectories)))
    num_orders = min(_ORDERS, budget // whole) if num_simulated == whole else 1
    simulated, *others = [
        simulate(part, _drawn(trajectories, num_simulated, seed + order)) for order in range(max(1, num_orders))
    ]
    wall_s = statistics.fmean(each.wall_s for each in (simulated, *others))
    pace = steady_pace(simulated, _room(part, trajectories))
    steady = one_in * pace
    return Estimate(
        wall_s=wall_s + (whole - num_simulated) / pace,
        samples_per_s=steady,
        tokens_per_s=steady * simulated.tokens / num_simulated,
        hand_overs_per_s=steady * simulated.hand_overs / num_simulated,
        one_in=one_in,
        num_simulated=num_simulated,
        pools=simulated.pools,
        servers=simulated.servers,
    )


def steady_pace(simulated: Simulated, room: int) -> float:
    """Samples ended per second between the first filling of the pipeline and the last admission; of all where there is
    no such time."""
    ends = simulated.ended_s
    first = min(room, len(ends) // 4)
    last = sum(end <= simulated.admitted_s for end in ends) - 1
    if last - first < 20:
        return len(ends) / simulated.wall_s
    return (last - first) / (ends[last] - ends[first])


def _one_in(model: PipelineModel, num_samples: int, budget: int) -> int:
    """How small a part is enough: no role may be left without a whole worker."""
    if model.cores is not None:
        return 1
    most = min(pool.num_workers for pool in model.pools.values() if pool.num_workers)
    return max(1, min(most, math.ceil(num_samples / budget)))


def _slice(model: PipelineModel, one_in: int) -> PipelineModel:
    costs = model.costs
    return replace(
        model,
        pools={role: _thinned(pool, one_in) for role, pool in model.pools.items()},
        costs=replace(costs, postgres_s=costs.postgres_s * one_in, redis_s=costs.redis_s * one_in),
    )


def _thinned(pool: Pool, one_in: int) -> Pool:
    """Whole workers, made up for by their speed where the part is none."""
    part = pool.num_workers / one_in
    whole = math.ceil(part - 0.5) if pool.num_workers else 0
    return replace(pool, num_workers=whole, rates=pool.rates.faster(part / whole)) if whole else pool


def _room(model: PipelineModel, trajectories: Sequence[Trajectory]) -> int:
    pool = model.pools[trajectories[0][0].role]
    return math.ceil(pool.num_workers * pool.slots * model.admission.admit_ahead)


def _drawn(trajectories: Sequence[Trajectory], count: int, seed: int) -> list[Trajectory]:
    """Every trajectory as often as the others, give or take one, in a random order."""
    generator = random.Random(seed)
    drawn: list[Trajectory] = []
    while len(drawn) < count:
        drawn += generator.sample(trajectories, len(trajectories))
    return drawn[:count]
