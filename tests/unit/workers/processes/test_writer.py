"""When a small or large worker ends because of its engine."""

from __future__ import annotations

import pytest

from pipeline.workforce import WorkerEnd
from workers.engine.base import EngineStats
from workers.processes.writer import end_reason


@pytest.mark.parametrize(
    ("is_dead", "last_token_age_s", "expected"),
    [
        (False, 0.0, None),
        (False, 120.0, None),
        (False, 120.1, WorkerEnd.ENGINE_STALLED),
        (True, 0.0, WorkerEnd.ENGINE_DIED),
        (True, 500.0, WorkerEnd.ENGINE_DIED),
    ],
)
def test_worker_ends_with_its_engine(is_dead: bool, last_token_age_s: float, expected: WorkerEnd | None) -> None:
    stats = EngineStats(
        num_generated_tokens=9,
        num_lost_tokens=0,
        num_prompt_tokens=9,
        num_cached_tokens=0,
        num_running=1,
        num_waiting=0,
        cache_usage=0.5,
        cache_tokens=100,
        last_token_age_s=last_token_age_s,
        is_dead=is_dead,
    )
    assert end_reason(stats, stall_after_s=120.0) is expected


@pytest.mark.parametrize(("silent_s", "expected"), [(419.0, None), (421.0, WorkerEnd.ENGINE_STALLED)])
def test_worker_waits_for_long_prompts_before_it_calls_its_engine_stalled(
    silent_s: float, expected: WorkerEnd | None
) -> None:
    stats = EngineStats(
        num_generated_tokens=0,
        num_lost_tokens=0,
        num_prompt_tokens=0,
        num_cached_tokens=0,
        num_running=1,
        num_waiting=0,
        cache_usage=0.5,
        cache_tokens=100,
        last_token_age_s=silent_s,
        prefill_s=100.0,
    )
    assert end_reason(stats, stall_after_s=120.0) is expected
