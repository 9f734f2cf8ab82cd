"""The simulation against what can be worked out: deterministic pipelines, a closed queueing network, bounds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.pools import Admission, EngineRates, HandOverCosts, Piece, PipelineModel, Pool, Trajectory
from pipeline.planning.simulation import simulate
from pipeline.planning.slices import steady_pace
from pipeline.samples import ModelRole

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
RATES = EngineRates(step_s=0.01, token_s=0.001, request_s=0.02, prompt_token_s=0.0001)
LINEAR = EngineRates(step_s=0.01, token_s=0.0)


def pool(num_workers: int = 1, slots: int = 1, rates: EngineRates = RATES) -> Pool:
    return Pool(num_workers=num_workers, slots=slots, rates=rates)


def trajectory(*tokens: int) -> Trajectory:
    """By the small and the large model in turn."""
    return tuple(Piece(role=(SMALL, LARGE)[index % 2], tokens=count) for index, count in enumerate(tokens))


def test_one_sample_takes_its_tokens_by_the_rate() -> None:
    alone = (Piece(role=SMALL, tokens=300, computed_tokens=50),)
    found = simulate(PipelineModel(pools={SMALL: pool()}), [alone])
    assert found.wall_s == pytest.approx(0.02 + 50 * 0.0001 + 300 * 0.011)
    assert found.pools[SMALL].busy == pytest.approx(1)


def test_samples_beside_each_other_share_the_steps() -> None:
    found = simulate(PipelineModel(pools={SMALL: pool(slots=8)}), [trajectory(100)] * 8)
    assert found.wall_s == pytest.approx(8 * 0.02 + 100 * RATES.step_seconds(8))
    assert found.ended_s == pytest.approx([found.wall_s] * 8)


def test_shorter_samples_leave_the_rest_a_faster_engine() -> None:
    rates = EngineRates(step_s=0.0, token_s=0.01)
    found = simulate(PipelineModel(pools={SMALL: pool(slots=2, rates=rates)}), [trajectory(100), trajectory(300)])
    assert found.ended_s == pytest.approx([100 * 0.02, 100 * 0.02 + 200 * 0.01])


def test_samples_beyond_the_slots_wait() -> None:
    found = simulate(
        PipelineModel(pools={SMALL: pool(slots=2, rates=LINEAR)}, admission=Admission(admit_ahead=2)),
        [trajectory(100)] * 4,
    )
    assert found.ended_s == pytest.approx([1.0, 1.0, 2.0, 2.0])
    assert found.pools[SMALL].wait_s == pytest.approx(0.5)


def test_hand_over_costs_are_paid_at_each_piece() -> None:
    costs = HandOverCosts(delay_s=0.5, worker_s=0.1, postgres_s=0.2, redis_s=0.3)
    model = PipelineModel(pools={SMALL: pool(rates=LINEAR), LARGE: pool(rates=LINEAR)}, costs=costs)
    found = simulate(model, [trajectory(100, 200, 100)])
    assert found.wall_s == pytest.approx(4.0 + 3 * 1.1)
    assert found.hand_overs == 3


def test_nothing_is_handed_over_within_a_claim() -> None:
    """Small drafts a step, a judge looks at it, and small goes on twice: two claims of small's, one of the judge's."""
    costs = HandOverCosts(delay_s=0.5, worker_s=0.1, postgres_s=0.2, redis_s=0.3)
    judge = ModelRole.JUDGE
    pools = {role: pool(rates=LINEAR) for role in (SMALL, judge)}
    pieces = (
        Piece(role=SMALL, tokens=100), Piece(role=judge, tokens=1), Piece(role=SMALL, tokens=50),
        Piece(role=SMALL, tokens=50, stays=True),
    )  # fmt: skip
    found = simulate(PipelineModel(pools=pools, costs=costs), [pieces])
    assert found.wall_s == pytest.approx(2.01 + 3 * 1.1)
    assert found.hand_overs == 3
    assert (found.pools[judge].tokens, found.pools[SMALL].requests) == (1, 3)


@pytest.mark.parametrize(("small_tokens", "large_tokens"), [(100, 300), (300, 100)])
def test_pace_is_that_of_the_slower_stage(small_tokens: int, large_tokens: int) -> None:
    model = PipelineModel(
        pools={SMALL: pool(rates=LINEAR), LARGE: pool(rates=LINEAR)}, admission=Admission(admit_ahead=4, tick_s=0.01)
    )
    found = simulate(model, [trajectory(small_tokens, large_tokens)] * 200)
    assert steady_pace(found, room=4) == pytest.approx(1 / 3, rel=0.02)
    slower = SMALL if small_tokens > large_tokens else LARGE
    assert found.pools[slower].busy > 0.98
    assert found.pools[SMALL if slower is LARGE else LARGE].busy == pytest.approx(1 / 3, rel=0.03)


def test_a_shared_server_that_is_too_slow_sets_the_pace() -> None:
    costs = HandOverCosts(postgres_s=0.5)
    model = PipelineModel(pools={SMALL: pool(2, 8, LINEAR), LARGE: pool(2, 8, LINEAR)}, costs=costs)
    found = simulate(model, [trajectory(10, 10)] * 100)
    assert found.wall_s == pytest.approx(200 * 0.5, rel=0.01)
    assert found.servers["postgres"] > 0.99


@pytest.mark.parametrize("population", [1, 3, 6])
def test_closed_network_of_two_exponential_stations_has_its_known_throughput(population: int) -> None:
    """Gordon and Newell: with n samples in a circle of two like stations each is busy n / (n + 1) of the time."""
    draw = random.Random(population)
    trajectories = [trajectory(*(round(draw.expovariate(1 / 1000)) + 1 for _ in range(2))) for _ in range(6000)]
    model = PipelineModel(
        pools={SMALL: pool(rates=LINEAR), LARGE: pool(rates=LINEAR)},
        admission=Admission(admit_ahead=population, tick_s=0.05),
    )  # fmt: skip
    found = simulate(model, trajectories)
    expected = population / (population + 1)
    assert found.pools[SMALL].busy == pytest.approx(expected, rel=0.04)
    assert found.pools[LARGE].busy == pytest.approx(expected, rel=0.04)


def test_resumed_samples_go_before_fresh_ones() -> None:
    model = PipelineModel(
        pools={SMALL: pool(rates=LINEAR), LARGE: pool(rates=LINEAR)}, admission=Admission(admit_ahead=10)
    )
    found = simulate(model, [trajectory(10, 5, 10), *[trajectory(20)] * 4])
    # While the large model writes the first sample, one fresh one is begun; then the first goes on.
    assert found.ended_s == pytest.approx([0.3, 0.4, 0.6, 0.8, 1.0])


def test_a_sample_goes_back_to_the_worker_that_knows_it() -> None:
    model = PipelineModel(pools={SMALL: pool(2, rates=LINEAR), LARGE: pool(2, rates=LINEAR)})
    found = simulate(model, [trajectory(10, 10, 10, 10), trajectory(10, 10, 10, 10)])
    assert found.wall_s == pytest.approx(0.4)
    assert found.pools[LARGE].busy == pytest.approx(0.5)


def test_engines_that_share_a_core_take_twice_as_long() -> None:
    def wall_s(cores: float | None, num_workers: int = 2) -> float:
        pools = {SMALL: pool(num_workers, 1, LINEAR)}
        return simulate(PipelineModel(pools=pools, cores=cores), [trajectory(100)] * num_workers).wall_s

    assert wall_s(None) == pytest.approx(1.0)
    assert wall_s(2) == pytest.approx(1.0)
    assert wall_s(1) == pytest.approx(2.0)
    assert wall_s(2, num_workers=3) == pytest.approx(1.5)


def test_an_engine_that_is_left_alone_gets_its_core_back() -> None:
    model = PipelineModel(pools={SMALL: pool(2, 1, LINEAR)}, cores=1)
    found = simulate(model, [trajectory(100), trajectory(300)])
    assert found.ended_s == pytest.approx([2.0, 4.0])


def test_servers_take_their_part_of_shared_cores() -> None:
    costs = HandOverCosts(postgres_s=1.0)
    model = PipelineModel(pools={SMALL: pool(1, 2, LINEAR)}, costs=costs, cores=1)
    found = simulate(model, [trajectory(100), trajectory(200)])
    # At 1 s the first is written; its commit and the second's writing take a second of work each, at half speed.
    assert found.ended_s == pytest.approx([3.0, 4.0])


def test_a_role_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="no large workers"):
        simulate(PipelineModel(pools={SMALL: pool(), LARGE: pool(0)}), [trajectory(10, 10)])


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate(PipelineModel(pools={SMALL: pool()}), []).wall_s == 0


courses_drawn = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=40).map(
    lambda drawn: [trajectory(*tokens) for tokens in drawn]
)


def longest_alone(trajectories: Sequence[Trajectory], rates: EngineRates = RATES) -> float:
    return max(
        sum(piece.tokens * rates.step_seconds(1) + rates.start_seconds(piece) for piece in trajectory)
        for trajectory in trajectories
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(trajectories=courses_drawn, workers=st.integers(1, 3), slots=st.integers(1, 6))
def test_all_work_is_done_once_and_no_faster_than_it_can_be(
    trajectories: list[Trajectory], workers: int, slots: int
) -> None:
    model = PipelineModel(
        pools={SMALL: pool(workers, slots), LARGE: pool(workers, slots)}, admission=Admission(tick_s=0.01)
    )
    found = simulate(model, trajectories)
    pieces = [piece for trajectory in trajectories for piece in trajectory]
    assert len(found.ended_s) == len(trajectories)
    assert list(found.ended_s) == sorted(found.ended_s)
    assert found.hand_overs == len(pieces)
    for role in (SMALL, LARGE):
        own = [piece for piece in pieces if piece.role is role]
        assert found.pools[role].tokens == sum(piece.tokens for piece in own)
        fastest = sum(map(RATES.start_seconds, own))
        fastest += sum(piece.tokens for piece in own) * RATES.step_seconds(slots) / slots
        assert found.pools[role].busy * found.wall_s * workers >= fastest * (1 - 1e-6)
        assert found.pools[role].busy <= 1 + 1e-9
    assert found.wall_s >= longest_alone(trajectories) * (1 - 1e-6)


@settings(max_examples=60, deadline=None)
@given(trajectories=courses_drawn, workers=st.integers(1, 3), role=st.sampled_from([SMALL, LARGE]))
def test_more_workers_are_not_slower(trajectories: list[Trajectory], workers: int, role: ModelRole) -> None:
    """But for what any order of unequal work can cost: less than the longest sample."""
    pools = {SMALL: pool(workers, 4), LARGE: pool(workers, 4)}
    more = {**pools, role: pool(workers + 1, 4)}
    slower = simulate(PipelineModel(pools=pools, admission=Admission(tick_s=0.01)), trajectories).wall_s
    faster = simulate(PipelineModel(pools=more, admission=Admission(tick_s=0.01)), trajectories).wall_s
    assert faster <= slower * 1.05 + longest_alone(trajectories)
