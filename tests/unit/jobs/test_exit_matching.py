"""Controls of exits: texts think as long on average as under the exit that they are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError
from pipeline.jobs.exit_matching import Thoughts, matched_exit, mean_length
from pipeline.policies.exits import CutExit, DeerExit, RandomExit

WHOLE: Thoughts = [[10, 20, 30], [5, 5], [40, 40, 40, 40]]
"""60, 10 and 160 tokens: 76.67 on average."""


def test_a_cut_is_where_the_mean_length_is_the_exits() -> None:
    found = matched_exit(CutExit(thinking_tokens=1), [[10, 20], [5, 5], [50]], WHOLE)  # 90 tokens in all
    assert found == CutExit(thinking_tokens=40)  # 40 + 10 + 40


def test_a_rate_is_one_by_which_the_expected_length_is_the_exits() -> None:
    found = matched_exit(RandomExit(rate=0.5), [[15], [15]], [[10, 10], [10, 10]])
    assert isinstance(found, RandomExit)
    assert found.rate == pytest.approx(0.5)  # 10 tokens, and 10 more in half of the texts


@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=12), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_lengths_match_for_any_texts(whole: list[list[int]], share: float) -> None:
    wanted = mean_length(whole) * share
    cut = matched_exit(CutExit(thinking_tokens=1), [[wanted]], whole)
    assert isinstance(cut, CutExit)
    length = mean_length([[min(sum(steps), cut.thinking_tokens)] for steps in whole])
    assert abs(length - wanted) <= 0.5 + 1e-6 or cut.thinking_tokens == 1  # a token more is a token longer at most
    first = mean_length([steps[:1] for steps in whole])
    rate = matched_exit(RandomExit(), [[wanted]], whole)
    assert isinstance(rate, RandomExit)
    expected = mean_length([[step * (1 - rate.rate) ** place for place, step in enumerate(steps)] for steps in whole])
    assert expected == pytest.approx(max(wanted, first), rel=1e-6)


@pytest.mark.parametrize(("exited", "whole"), [(WHOLE, WHOLE), ([], WHOLE), ([[1]], []), ([[100]], [[60]])], ids=str)
def test_what_an_exit_did_not_shorten_cannot_be_matched(exited: Thoughts, whole: Thoughts) -> None:
    with pytest.raises(ConfigurationError, match=r"tokens with the exit and .* without: there is nothing to match"):
        matched_exit(CutExit(thinking_tokens=1), exited, whole)


def test_only_a_control_can_be_matched() -> None:
    with pytest.raises(ConfigurationError, match="'deer' is no control; choose one of: cut, random"):
        matched_exit(DeerExit(), [[1]], WHOLE)
