"""What a plan says: the short pool, workers for a deadline, the part that breaks first."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import ConfigurationError
from pipeline.planning.answers import MANY_GPUS, Plan, PlanRequest, make_plan
from pipeline.planning.fitting import Fitted
from pipeline.planning.pools import EngineRates, PartCosts, Piece, Trajectory
from pipeline.samples import ModelRole
from pipeline.settings import PlanningSettings

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
RATES = EngineRates(step_s=0.01, token_s=0.0001, request_s=0.005)
USUAL = PartCosts(**PlanningSettings().model_dump())
LIGHT = replace(USUAL, postgres_ms=0.01, redis_ms=0.01, worker_ms=0.01, worker_token_us=0.01)


def fitted(*, small_tokens: int = 60, large_tokens: int = 60, takeovers: int = 3) -> Fitted:
    draw = random.Random(1)

    def trajectory() -> Trajectory:
        counts = [
            draw.randint(1, 2 * (small_tokens, large_tokens)[index % 2]) for index in range(2 * takeovers + 1)
        ]  # fmt: skip
        return tuple(Piece(role=(SMALL, LARGE)[index % 2], tokens=count) for index, count in enumerate(counts))

    return Fitted(
        trajectories=tuple(trajectory() for _ in range(100)),
        rates={SMALL: RATES, LARGE: RATES},
        slots={SMALL: 16, LARGE: 16},
        num_workers={SMALL: 1, LARGE: 1},
        delay_s=0.02,
        in_one_process=False,
    )


def plan(measured: Fitted, small: int, large: int, *, limits: PartCosts = LIGHT, **question: Any) -> Plan:
    asked: dict[str, Any] = {"num_samples": 400, "slots": measured.slots, "speedups": {}} | question
    return make_plan(7, measured, PlanRequest(workers={SMALL: small, LARGE: large}, **asked), limits=limits)


@pytest.mark.parametrize(("small_tokens", "large_tokens", "short"), [(90, 20, "small"), (20, 90, "large")])
def test_the_pool_with_more_work_is_short(small_tokens: int, large_tokens: int, short: str) -> None:
    found = plan(fitted(small_tokens=small_tokens, large_tokens=large_tokens), 3, 3)
    assert found.short == short
    by_role = {pool.role.value: pool for pool in found.pools}
    assert by_role[short].wall_s_with_more < 0.92 * found.wall_s
    assert f"4 {short} workers instead of 3" in found.why


def test_few_samples_are_held_up_by_their_own_length() -> None:
    found = plan(fitted(), 20, 20, num_samples=20)
    assert found.short is None
    assert "own length" in found.why


def test_a_shared_part_that_is_full_is_what_is_short() -> None:
    found = plan(fitted(), 6, 6, limits=replace(LIGHT, redis_ms=40.0))
    assert found.short == "redis"
    assert found.wall_s == pytest.approx(400 * 7 * 0.04, rel=0.05)


def test_a_faster_engine_is_worth_its_speed() -> None:
    measured = fitted(small_tokens=90, large_tokens=20)
    assert plan(measured, 2, 2, speedups={SMALL: 2.0}).wall_s == pytest.approx(plan(measured, 4, 2).wall_s, rel=0.1)


def test_the_workers_for_a_deadline_meet_it_and_fewer_do_not() -> None:
    measured = fitted(small_tokens=90, large_tokens=30)
    alone = plan(measured, 1, 1)
    found = plan(measured, 1, 1, deadline_s=alone.wall_s / 5).deadline
    assert found is not None
    assert found.workers is not None
    assert found.wall_s is not None
    assert found.wall_s <= 1.02 * alone.wall_s / 5
    small, large = found.workers[SMALL], found.workers[LARGE]
    assert small > large
    fewer = plan(measured, max(1, round(small * 0.7)), max(1, round(large * 0.7)))
    assert fewer.wall_s > alone.wall_s / 5


def test_a_deadline_that_nothing_meets_says_why() -> None:
    found = plan(fitted(), 1, 1, deadline_s=1.0).deadline
    assert found is not None
    assert found.workers is None
    assert "even alone" in found.why
    slow = replace(LIGHT, postgres_ms=100.0, postgres_cores=1.0)
    found = plan(fitted(), 1, 1, deadline_s=60.0, limits=slow).deadline
    assert found is not None
    assert found.workers is None
    assert "hand-overs/s, and one Postgres does 10" in found.why


def test_a_thousand_workers_are_answered_for_within_a_minute_and_name_what_breaks() -> None:
    """A minute of one core: others may have the cores too."""
    start = time.process_time()
    found = plan(fitted(takeovers=10), 600, 400, limits=USUAL, num_samples=200_000, slots={SMALL: 128, LARGE: 128})
    assert time.process_time() - start < 60
    assert found.one_in > 1
    parts = {part.part: part for part in found.parts}
    assert set(parts) == {"Postgres", "Redis", "a worker's process"}
    assert parts["Postgres"].breaks_at_workers is not None
    assert parts["Postgres"].breaks_at_workers < MANY_GPUS
    assert "Several databases by job: at 1000 workers" in parts["Postgres"].what_then
    assert found.breaks_first == "Postgres"
    assert [part.part for part in found.parts] == ["Postgres", "Redis", "a worker's process"]


def test_a_role_that_is_needed_and_has_no_worker_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="--large-workers"):
        plan(fitted(), 2, 0)
