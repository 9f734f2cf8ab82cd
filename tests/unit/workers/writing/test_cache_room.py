"""Slots by the room in an engine's cache."""

from __future__ import annotations

import pytest

from pipeline.samples import Piece, SegmentFinish
from workers.engine.base import EngineStats, GenerateResult
from workers.writing.cache_room import CacheRoom


def stats(*, cache_tokens: int | None, num_running: int = 0, cache_usage: float = 0.0) -> EngineStats:
    return EngineStats(
        num_generated_tokens=0,
        num_lost_tokens=0,
        num_prompt_tokens=0,
        num_cached_tokens=0,
        num_running=num_running,
        num_waiting=0,
        cache_usage=cache_usage,
        cache_tokens=cache_tokens,
        last_token_age_s=0.0,
    )


def result(given: int, wrote: int) -> GenerateResult:
    return GenerateResult(
        request_id="r",
        piece=Piece(token_ids=(), texts=()),
        finish=SegmentFinish.EOS,
        num_generated_tokens=wrote,
        num_prompt_tokens=given,
        num_cached_tokens=0,
        queue_seconds=0.0,
        first_token_seconds=0.0,
        total_seconds=0.0,
    )


def room(*requests: tuple[int, int], ahead: float = 1.0) -> CacheRoom:
    cache_room = CacheRoom(max_in_flight=128, ahead=ahead)
    for given, wrote in requests:
        cache_room.ended(result(given, wrote))
    return cache_room


def test_all_slots_before_anything_is_known_and_where_the_cache_has_no_end() -> None:
    assert room().num_slots(stats(cache_tokens=10_000)) == 128
    assert room((0, 0)).num_slots(stats(cache_tokens=10_000)) == 128
    assert room((5_000, 100)).num_slots(stats(cache_tokens=None)) == 128


@pytest.mark.parametrize(("ahead", "expected"), [(1.0, 45), (1.5, 30)])
def test_slots_times_ahead_contexts_fit_in_nine_tenths_of_the_cache(ahead: float, expected: int) -> None:
    assert room((100, 200), ahead=ahead).num_slots(stats(cache_tokens=10_000)) == expected


def test_requests_count_by_how_long_they_were_in_the_cache() -> None:
    assert room((100, 10), (1_000, 0)).num_slots(stats(cache_tokens=10_000)) == 85
    assert room((0, 1_000), (100, 1)).num_slots(stats(cache_tokens=10_000)) == 18


def test_long_texts_are_seen_before_they_end() -> None:
    running = stats(cache_tokens=10_000, num_running=10, cache_usage=0.5)
    assert room().num_slots(running) == 18
    assert room((90, 20)).num_slots(running) == 18
    assert room((900, 200)).num_slots(running) == 9


def test_at_least_one_slot_and_at_most_those_of_the_engine() -> None:
    assert room((50_000, 10)).num_slots(stats(cache_tokens=10_000)) == 1
    assert room((10, 10)).num_slots(stats(cache_tokens=10_000)) == 128


def test_old_requests_are_forgotten() -> None:
    requests = [*[(5_000, 10)] * 300, *[(50, 100)] * 256]
    assert room(*requests).num_slots(stats(cache_tokens=10_000)) == 90
