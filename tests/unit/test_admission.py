"""How many fresh samples there is room for, by what is in the pipeline and what a job needs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.admission import Lane, ModelPool, Room, Traffic

SMALL, OTHER, LARGE = ModelPool("small", "S"), ModelPool("small", "T"), ModelPool("large", "L")
ALONE, PAIR, OTHER_PAIR = Lane(SMALL, ()), Lane(SMALL, (LARGE,)), Lane(OTHER, (LARGE,))
LARGE_ALONE, OPENED = Lane(LARGE, ()), Lane(LARGE, (SMALL,))
LANES = (ALONE, PAIR, OTHER_PAIR, LARGE_ALONE, OPENED)


def room(places: dict[ModelPool, int], **lanes: tuple[Lane, dict[ModelPool, int], int]) -> Room:
    """Every cache is short of room."""
    traffic = {lane: Traffic(Counter(at), fresh) for lane, at, fresh in lanes.values()}
    return Room(places, traffic, short=frozenset(places))


def test_as_many_are_in_the_pipeline_as_the_opening_pool_has_places() -> None:
    found = room({SMALL: 12, LARGE: 90}, pair=(PAIR, {SMALL: 3, LARGE: 4}, 0), alone=(ALONE, {}, 0))
    assert found.left(ALONE) == 5
    assert found.left(PAIR) == 5


def test_without_workers_of_the_opening_model_none_is_let_in() -> None:
    """They may have ended since the jobs were read."""
    assert room({LARGE: 9}, pair=(PAIR, {}, 0)).left(PAIR) == 0


def test_a_pool_whose_cache_has_room_keeps_nobody_out() -> None:
    found = room({SMALL: 900, LARGE: 3}, pair=(PAIR, {LARGE: 300}, 0), alone=(LARGE_ALONE, {LARGE: 1}, 0))
    found.short = frozenset()
    assert found.left(PAIR) == 600
    assert found.left(LARGE_ALONE) == 2


def test_a_lane_whose_samples_are_all_with_large_has_no_more_than_that_has_places() -> None:
    for number, left in ((29, 2), (30, 0), (31, -1), (60, -30)):
        found = room({SMALL: 900, LARGE: 30}, pair=(PAIR, {LARGE: number}, 0))
        assert found.left(PAIR) == left


def test_the_seldom_large_is_needed_the_more_are_let_in() -> None:
    left_at = {0: 900, 2: 900, 10: 178, 25: 17, 50: -40, 100: -70}  # by those of a hundred that are with large
    for number, left in left_at.items():
        found = room({SMALL: 1000, LARGE: 30}, pair=(PAIR, {SMALL: 100 - number, LARGE: number}, 0))
        assert found.left(PAIR) == left


def test_before_anything_is_stored_half_of_all_are_expected_with_large() -> None:
    assert room({SMALL: 900, LARGE: 30}, pair=(PAIR, {}, 0)).left(PAIR) == 60
    assert room({SMALL: 900, LARGE: 30}, pair=(PAIR, {SMALL: 40}, 40)).left(PAIR) == 20
    assert room({SMALL: 900, LARGE: 30}, pair=(PAIR, {SMALL: 60}, 60)).left(PAIR) == 0


def test_lanes_leave_each_other_an_equal_share() -> None:
    for number, left in ((5, 50), (15, 30), (500, 30)):  # a share of two is 15
        found = room({SMALL: 900, LARGE: 30}, pair=(PAIR, {}, 0), alone=(LARGE_ALONE, {LARGE: number}, 0))
        assert found.left(PAIR) == left
    both = room(
        {SMALL: 900, OTHER: 900, LARGE: 30},
        pair=(PAIR, {}, 0), alone=(LARGE_ALONE, {LARGE: 500}, 0), other=(OTHER_PAIR, {LARGE: 4, OTHER: 90}, 0),
    )  # fmt: skip
    assert both.left(PAIR) == 2 * (30 - 10 - 4)


def test_large_alone_is_let_in_up_to_what_pairs_leave() -> None:
    found = room({SMALL: 900, LARGE: 30}, pair=(PAIR, {LARGE: 40}, 0), alone=(LARGE_ALONE, {LARGE: 6}, 6))
    assert found.left(LARGE_ALONE) == 30 - 15 - 6


def test_what_one_job_is_given_the_next_one_of_the_round_has_not() -> None:
    found = room({SMALL: 10, LARGE: 3}, pair=(PAIR, {}, 0), alone=(ALONE, {}, 0))
    found.let_in(PAIR, 4)
    assert found.left(PAIR) == 2
    assert found.left(ALONE) == 6


@given(
    st.fixed_dictionaries(dict.fromkeys((SMALL, OTHER, LARGE), st.integers(1, 40))),
    st.fixed_dictionaries({lane: st.tuples(*[st.integers(0, 30)] * (len(lane.pools) + 1)) for lane in LANES}),
)
def test_nobody_waits_for_ever(places: dict[ModelPool, int], counts: dict[Lane, tuple[int, ...]]) -> None:
    """A lane with nothing in the pipeline has room, where its opening pool is not full of others of the same."""
    for lane, (*at, fresh) in counts.items():
        traffic = {
            other: Traffic(Counter(dict(zip(other.pools, numbers, strict=False))), min(numbers[-1], numbers[0]))
            for other, numbers in counts.items()
        }
        found = Room(places, traffic | {lane: Traffic()}, short=frozenset(places))
        opened = sum(each.total for other, each in found.lanes.items() if other.opening == lane.opening)
        if opened < places[lane.opening]:
            assert found.left(lane) > 0
        assert Room(places, traffic, short=frozenset(places)).left(lane) <= places[lane.opening] - sum(at)
        assert fresh >= 0
