"""Slots by the room in an engine's cache."""

from __future__ import annotations

import pytest

from pipeline.samples import Piece, SegmentFinish
from workers.cache_room import CacheRoom
from workers.engine.base import EngineStats, GenerateResult


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


def result(context: int) -> GenerateResult:
    piece = Piece(token_ids=(1, 2), texts=("a", "b"))
    return GenerateResult(
        request_id="r",
        piece=piece,
        finish=SegmentFinish.EOS,
        num_generated_tokens=3,
        num_prompt_tokens=context - len(piece),
        num_cached_tokens=0,
        queue_seconds=0.0,
        first_token_seconds=0.0,
        total_seconds=0.0,
    )


def room(*contexts: int, ahead: float = 1.0) -> CacheRoom:
    cache_room = CacheRoom(max_in_flight=128, ahead=ahead)
    for context in contexts:
        cache_room.ended(result(context))
    return cache_room


def test_all_slots_before_anything_is_known_and_where_the_cache_has_no_end() -> None:
    assert room().num_slots(stats(cache_tokens=10_000)) == 128
    assert room(5_000).num_slots(stats(cache_tokens=None)) == 128


@pytest.mark.parametrize(("ahead", "expected"), [(1.0, 50), (1.5, 33)])
def test_slots_times_ahead_contexts_fit_in_the_cache(ahead: float, expected: int) -> None:
    assert room(100, 300, ahead=ahead).num_slots(stats(cache_tokens=10_000)) == expected


def test_long_texts_are_seen_before_they_end() -> None:
    running = stats(cache_tokens=10_000, num_running=10, cache_usage=0.5)
    assert room().num_slots(running) == 20
    assert room(100).num_slots(running) == 20
    assert room(1000).num_slots(running) == 10


def test_at_least_one_slot_and_at_most_those_of_the_engine() -> None:
    assert room(50_000).num_slots(stats(cache_tokens=10_000)) == 1
    assert room(10).num_slots(stats(cache_tokens=10_000)) == 128


def test_old_contexts_are_forgotten() -> None:
    assert room(*[5_000] * 300, *[100] * 256).num_slots(stats(cache_tokens=10_000)) == 100
