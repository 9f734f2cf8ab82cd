"""Which contexts an engine's cache holds, by arithmetic."""

from __future__ import annotations

import pytest

from workers.engine.contexts import Contexts


def contexts(cache_tokens: int | None) -> Contexts:
    return Contexts(cache_tokens=cache_tokens)


def visit(cache: Contexts, context: int, num_tokens: int = 100) -> bool:
    """One request from its beginning to its end, which writes nothing; whether its context was cached."""
    is_cached = cache.come(context)
    cache.enter(f"r{context}", context, num_tokens)
    cache.leave(f"r{context}", context, num_tokens, 0)
    return is_cached


def test_what_was_left_is_cached_until_its_room_is_needed() -> None:
    cache = contexts(300)
    assert [visit(cache, context) for context in (1, 2, 3)] == [False] * 3
    assert [visit(cache, context) for context in (1, 2, 3)] == [True] * 3
    assert not visit(cache, 4), "it takes the place of 1, which was left longest ago"
    assert [visit(cache, context) for context in (4, 3, 2)] == [True] * 3
    assert not visit(cache, 1)


def test_who_comes_back_is_the_last_to_be_forgotten() -> None:
    cache = contexts(300)
    for context in (1, 2, 3, 1, 4):
        visit(cache, context)
    assert visit(cache, 1)
    assert not visit(cache, 2)


def test_a_context_counts_as_long_as_it_has_become() -> None:
    cache = contexts(300)
    visit(cache, 1)
    visit(cache, 2)
    visit(cache, 2, 250)
    assert visit(cache, 2, 250)
    assert not visit(cache, 1)


def test_what_the_engine_works_on_takes_room_from_what_it_has_cached() -> None:
    cache = contexts(300)
    for context in (1, 2):
        visit(cache, context)
    cache.enter("r3", 3, 100)
    assert cache.come(1)
    cache.enter("r4", 4, 1)
    assert not cache.come(1)
    assert cache.come(2)


def test_a_context_that_is_worked_on_again_takes_no_room_twice() -> None:
    cache = contexts(300)
    for context in (1, 2, 3):
        visit(cache, context)
    cache.enter("r3", 3, 100)
    assert cache.come(1)
    cache.enter("once more", 3, 0)
    cache.leave("r3", 3, 100, 0)
    cache.leave("once more", 3, 100, 0)
    assert [cache.come(context) for context in (1, 2, 3)] == [True] * 3


def test_a_cache_of_unknown_size_is_taken_for_a_large_one_and_is_not_remembered_for_ever() -> None:
    cache = contexts(None)
    for context in range(5000):
        assert cache.has_room(10**9)
        visit(cache, context, 10**9)
    assert [context for context in range(5000) if cache.come(context)] == list(range(5000 - 4096, 5000))


def test_all_of_the_cache_is_for_what_is_new_where_nothing_comes_back() -> None:
    cache = contexts(1000)
    for context in range(100):
        visit(cache, context)
    assert cache.has_room(1000)
    cache.enter("r", 100, 600)
    assert cache.has_room(400)
    assert not cache.has_room(401)


@pytest.mark.parametrize(("num_contexts", "kept"), [(2, 200), (4, 400), (5, 500), (9, 500), (50, 500)])
def test_what_comes_back_keeps_its_place_but_for_half_of_the_cache(num_contexts: int, kept: int) -> None:
    cache = contexts(1000)
    for _ in range(100):
        for context in range(num_contexts):
            visit(cache, context)
    expected = pytest.approx(1000 - kept, abs=0.05 * kept)  # the first visits were no returns
    assert max(tokens for tokens in range(1001) if cache.has_room(tokens)) == expected


def test_half_of_what_was_left_comes_back() -> None:
    cache = contexts(1000)
    for context in range(300):
        visit(cache, context, 50)
        visit(cache, context, 50)
    cache.enter("r", None, 0)
    assert max(tokens for tokens in range(1001) if cache.has_room(tokens)) == pytest.approx(500, abs=5)


def test_requests_count_with_what_they_are_expected_to_write() -> None:
    cache = contexts(1000)
    for context in range(3):
        cache.enter("r", context, 100)
        cache.leave("r", context, 140, 40)
    assert cache.has_room(960)
    assert not cache.has_room(961)
    cache.enter("r", 3, 100)
    assert cache.has_room(820)
    assert not cache.has_room(821)


def test_a_request_without_a_context_leaves_nothing() -> None:
    cache = contexts(1000)
    cache.enter("r", None, 100)
    assert (cache.num_inside, cache.is_inside("r")) == (1, True)
    cache.leave("r", None, 100, 0)
    assert (cache.num_inside, cache.is_inside("r"), cache.come(None)) == (0, False, False)
