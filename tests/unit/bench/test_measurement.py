"""What benches count with: percentiles of a few values, and options that must be a multiple of something."""

from __future__ import annotations

import argparse

import pytest

from bench.measurement import multiple_of, percentile


@pytest.mark.parametrize(
    ("percent", "wanted"),
    [(1, 10.0), (25, 10.0), (26, 20.0), (50, 20.0), (75, 30.0), (95, 40.0), (99, 40.0), (100, 40.0)],
)
def test_a_percentile_is_one_of_the_values_and_never_beyond_them(percent: int, wanted: float) -> None:
    assert percentile([30.0, 10.0, 40.0, 20.0], percent) == wanted


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_a_percentile_of_a_hundred_values_is_the_one_at_its_place() -> None:
    assert [percentile(list(range(1, 101)), percent) for percent in (50, 95, 99)] == [50, 95, 99]


def test_multiples_are_taken_and_all_else_is_refused_with_what_is_wanted() -> None:
    assert [multiple_of(4)(given) for given in ("4", "400")] == [4, 400]
    for given in ("0", "2", "10", "-4"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not 4 or a multiple of it"):
            multiple_of(4)(given)
