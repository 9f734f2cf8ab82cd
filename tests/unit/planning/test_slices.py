"""Large pools from a part of them, long jobs from their beginning: what the whole simulation says, within noise."""

from __future__ import annotations

import random

import pytest

from pipeline.planning.pools import EngineRates, HandOverCosts, Piece, PipelineModel, Pool, Trajectory
from pipeline.planning.slices import estimate
from pipeline.samples import ModelRole

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
RATES = EngineRates(step_s=0.01, token_s=0.0005, request_s=0.002)


def trajectories(count: int = 300) -> list[Trajectory]:
    draw = random.Random(5)
    return [
        tuple(
            Piece(role=(SMALL, LARGE)[index % 2], tokens=draw.randint(10, 120))
            for index in range(draw.choice([1, 3, 5]))
        )
        for _ in range(count)
    ]  # fmt: skip


def model(small: int, large: int, slots: int = 8, **costs: float) -> PipelineModel:
    pools = {
        role: Pool(num_workers=count, slots=slots, rates=RATES) for role, count in ((SMALL, small), (LARGE, large))
    }
    return PipelineModel(pools=pools, costs=HandOverCosts(**costs))


def test_a_part_of_large_pools_stands_for_the_whole() -> None:
    whole = estimate(model(24, 12), trajectories(), 3000)
    part = estimate(model(24, 12), trajectories(), 3000, max_hand_overs=1500)
    assert (whole.one_in, part.one_in) == (1, 6)
    assert part.num_simulated == 500
    assert part.wall_s == pytest.approx(whole.wall_s, rel=0.05)
    assert part.samples_per_s == pytest.approx(whole.samples_per_s, rel=0.05)


def test_shared_servers_are_as_full_in_a_part_as_in_the_whole() -> None:
    whole = estimate(model(8, 4, postgres_s=0.02), trajectories(), 1200)
    part = estimate(model(8, 4, postgres_s=0.02), trajectories(), 1200, max_hand_overs=900)
    assert part.one_in == 4
    assert whole.servers["postgres"] > 0.9
    assert part.servers["postgres"] == pytest.approx(whole.servers["postgres"], rel=0.05)
    assert part.wall_s == pytest.approx(whole.wall_s, rel=0.06)


def test_a_long_job_goes_on_as_its_beginning_did() -> None:
    whole = estimate(model(1, 1), trajectories(), 4000)
    part = estimate(model(1, 1), trajectories(), 4000, max_hand_overs=2000)
    assert part.num_simulated < 800
    assert part.wall_s == pytest.approx(whole.wall_s, rel=0.05)


def test_pools_that_no_part_divides_are_made_up_for_by_speed() -> None:
    whole = estimate(model(23, 7), trajectories(), 2000)
    part = estimate(model(23, 7), trajectories(), 2000, max_hand_overs=700)
    assert part.one_in == 7
    assert part.samples_per_s == pytest.approx(whole.samples_per_s, rel=0.07)


def test_the_same_question_gets_the_same_answer() -> None:
    assert estimate(model(2, 1), trajectories(), 300) == estimate(model(2, 1), trajectories(), 300)


def test_a_short_job_takes_the_mean_over_orders() -> None:
    ways = trajectories(40)
    enough_for_one = sum(map(len, ways)) + 1
    orders = [estimate(model(1, 1), ways, 40, seed=seed, max_hand_overs=enough_for_one).wall_s for seed in range(4)]
    assert max(orders) > 1.01 * min(orders)
    assert estimate(model(1, 1), ways, 40).wall_s == pytest.approx(sum(orders) / 4)
