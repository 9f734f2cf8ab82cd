"""Engines in virtual time: cases worked out by hand, and what must hold of any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulator import Simulated, lock_step, one_by_one, pipeline
from pipeline.planning.pools import EngineRates, Piece, Pool, Trajectory
from pipeline.samples import ModelRole

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
LAW = EngineRates(step_s=0.010, token_s=0.001, prompt_token_s=0.0001)
"""A step with one request takes 11 ms, with two 12."""
ALL: tuple[Callable[..., Simulated], ...] = (pipeline, lock_step, one_by_one)


def pools(slots: int = 1, *, small: int = 1, large: int = 1, law: EngineRates = LAW) -> dict[ModelRole, Pool]:
    counts = {SMALL: small, LARGE: large}
    return {role: Pool(num_workers=count, slots=slots, rates=law) for role, count in counts.items()}


def steps(seconds: float) -> EngineRates:
    return EngineRates(step_s=seconds, token_s=0.0)


def trajectory(*tokens: int, computed: int = 0) -> Trajectory:
    """By the small and the large model in turn."""
    return tuple(
        Piece(role=(SMALL, LARGE)[index % 2], tokens=count, computed_tokens=computed)
        for index, count in enumerate(tokens)
    )


@pytest.mark.parametrize("simulate", ALL)
def test_a_sample_alone_takes_its_steps_and_its_prompts(simulate: Callable[..., Simulated]) -> None:
    found = simulate(pools(), [trajectory(3, 2, computed=10)])
    assert found.seconds == pytest.approx(5 * 0.011 + 20 * 0.0001)


def test_two_samples_in_one_slot_go_one_after_the_other() -> None:
    found = pipeline(pools(1), [trajectory(2), trajectory(3)])
    assert found.ended_s == pytest.approx([2 * 0.011, 5 * 0.011])


def test_two_samples_in_two_slots_share_their_steps() -> None:
    found = pipeline(pools(2), [trajectory(2), trajectory(3)])
    assert found.ended_s == pytest.approx([2 * 0.012, 2 * 0.012 + 0.011])


def test_a_prompt_holds_up_all_that_are_in_its_step() -> None:
    found = pipeline(pools(2), [trajectory(2), trajectory(1, computed=30)])
    assert found.ended_s == pytest.approx([0.012 + 0.003 + 0.011, 0.012 + 0.003])


def test_the_large_engine_writes_for_one_while_the_small_one_writes_for_the_other() -> None:
    two = [trajectory(2, 2), trajectory(2, 2)]
    assert pipeline(pools(1), two, admit_ahead=2).seconds == pytest.approx(6 * 0.011)
    assert lock_step(pools(1), two).seconds == pytest.approx(8 * 0.011)
    assert one_by_one(pools(1), two).seconds == pytest.approx(8 * 0.011)


def test_lock_step_waits_for_the_last_of_a_round() -> None:
    two = [trajectory(1, 1, 4), trajectory(4, 1, 1)]
    assert lock_step(pools(2), two).seconds == pytest.approx(0.012 + 3 * 0.011 + 0.012 + 0.012 + 3 * 0.011)
    assert pipeline(pools(2), two).seconds < 8 * 0.011


def test_who_comes_in_the_middle_of_a_step_waits_for_the_next_one() -> None:
    slow_large = {
        SMALL: Pool(num_workers=1, slots=2, rates=steps(0.01)),
        LARGE: Pool(num_workers=1, slots=2, rates=steps(0.03)),
    }
    found = pipeline(slow_large, [trajectory(1, 2), trajectory(2, 1)])
    assert found.ended_s == pytest.approx([0.07, 0.07])  # the second one came at 0.02, amid the step from 0.01 to 0.04


def test_resumed_samples_go_before_fresh_ones() -> None:
    fast_large = {
        SMALL: Pool(num_workers=1, slots=1, rates=steps(0.010)),
        LARGE: Pool(num_workers=1, slots=1, rates=steps(0.005)),
    }
    found = pipeline(fast_large, [trajectory(1, 1, 1), trajectory(1), trajectory(1)], admit_ahead=3)
    assert found.ended_s == pytest.approx([0.03, 0.02, 0.04])


def test_no_more_are_admitted_than_there_is_room_for() -> None:
    """With room for one the engines never work beside each other."""
    assert pipeline(pools(1), [trajectory(2, 2)] * 3, admit_ahead=1).seconds == pytest.approx(12 * 0.011)


def test_a_sample_goes_back_to_the_engine_that_has_its_context() -> None:
    found = pipeline(pools(2, large=2), [trajectory(1, 10, 1, 10), trajectory(1, 3, 1, 3)])
    assert sorted(use.tokens for use in found.engines[LARGE]) == [6, 20]


TRAJECTORIES = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=5), min_size=1, max_size=12)


@settings(max_examples=60)
@given(TRAJECTORIES, st.integers(1, 4), st.integers(0, 30))
def test_each_writes_all_tokens_and_who_waits_less_is_not_slower_than_one_by_one(
    lengths: Sequence[Sequence[int]], slots: int, computed: int
) -> None:
    samples = [trajectory(*tokens, computed=computed) for tokens in lengths]
    wanted = {
        role: sum(piece.tokens for sample in samples for piece in sample if piece.role is role)
        for role in (SMALL, LARGE)
    }
    slowest = one_by_one(pools(slots), samples).seconds
    for simulate in ALL:
        found = simulate(pools(slots), samples)
        assert {role: found.tokens(role) for role in wanted} == wanted
        assert sum(use.computed_tokens for uses in found.engines.values() for use in uses) == computed * sum(
            map(len, samples)
        )
        longest = max(use.busy_s for uses in found.engines.values() for use in uses)
        assert longest - 1e-9 <= found.seconds <= slowest + 1e-9
