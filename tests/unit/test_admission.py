"""How many fresh samples there is room for, by what is in the pipeline and what a job needs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.admission import ModelPool, Room

SMALL, OTHER, LARGE = ModelPool("small", "S"), ModelPool("small", "T"), ModelPool("large", "L")
POOLS = (SMALL, OTHER, LARGE)


def room(places: dict[ModelPool, int], there: dict[tuple[ModelPool, ModelPool], int] | None = None) -> Room:
    """Pairs of both small models with the large one, and jobs of it alone."""
    return Room(places, Counter(there or {}), {SMALL: {SMALL}, OTHER: {OTHER}, LARGE: {SMALL, OTHER, LARGE}})


def test_as_many_are_in_the_pipeline_as_the_opening_pool_has_places() -> None:
    found = room({SMALL: 12, LARGE: 9}, {(SMALL, SMALL): 3, (SMALL, LARGE): 4, (LARGE, LARGE): 9})
    assert found.left(SMALL, [SMALL]) == 5


def test_none_is_let_in_while_the_large_model_is_full() -> None:
    for number, left in ((0, 9), (5, 4), (9, 0), (30, -21)):
        assert room({SMALL: 100, LARGE: 9}, {(SMALL, LARGE): number}).left(SMALL, [SMALL, LARGE]) == left


def test_others_count_up_to_their_share() -> None:
    for number, left in ((1, 8), (3, 6), (4, 6), (500, 6)):  # a share of three is 3
        assert room({SMALL: 100, LARGE: 9}, {(LARGE, LARGE): number}).left(SMALL, [SMALL, LARGE]) == left
    both = {(LARGE, LARGE): 500, (OTHER, LARGE): 2}
    assert room({SMALL: 100, LARGE: 9}, both).left(SMALL, [SMALL, LARGE]) == 4


def test_what_one_job_is_given_the_next_one_of_the_round_has_not() -> None:
    found = room({SMALL: 10, LARGE: 4})
    found.let_in(SMALL, [SMALL, LARGE], 3)
    assert found.left(SMALL, [SMALL, LARGE]) == 1
    assert found.left(SMALL, [SMALL]) == 7
    assert found.left(LARGE, [LARGE]) == 4  # none of them is there yet


@given(
    st.fixed_dictionaries({pool: st.integers(1, 40) for pool in POOLS}),
    st.dictionaries(st.tuples(st.sampled_from(POOLS), st.sampled_from(POOLS)), st.integers(0, 60)),
)
def test_nobody_is_kept_out_of_an_equal_share(
    places: dict[ModelPool, int], there: dict[tuple[ModelPool, ModelPool], int]
) -> None:
    found = Room(places, Counter(there), {pool: set(POOLS) for pool in POOLS})
    for opening in POOLS:
        needed = list(dict.fromkeys([opening, LARGE]))
        opened = sum(number for (first, _), number in there.items() if first == opening)
        if opened < places[opening] and all(there.get((opening, pool), 0) < places[pool] / 3 for pool in needed):
            assert found.left(opening, needed) > 0
        assert found.left(opening, needed) <= places[opening] - opened
