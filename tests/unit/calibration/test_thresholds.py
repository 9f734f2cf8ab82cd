"""Thresholds and separation against numbers that are counted by hand, or pair by pair."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration.thresholds import (
    Side,
    cut_at_share,
    separation,
    share_beyond,
    threshold_intervals,
)

TEN = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.mark.parametrize(
    ("share", "side", "threshold", "reached"),
    [
        (0.2, Side.ABOVE, 0.85, 0.2),
        (0.3, Side.BELOW, 0.35, 0.3),
        (0.04, Side.ABOVE, 0.95, 0.1),  # the nearest that there is
        (0.99, Side.BELOW, 0.95, 0.9),
    ],
)
def test_cut_has_the_nearest_share_beyond_it(share: float, side: Side, threshold: float, reached: float) -> None:
    cut = cut_at_share(TEN, share, side)
    assert cut is not None
    assert cut.threshold == pytest.approx(threshold, abs=0.05)
    assert cut.share == pytest.approx(reached)
    assert share_beyond(TEN, cut.threshold, side) == pytest.approx(reached)


def test_ties_stay_together() -> None:
    cut = cut_at_share([0.0, 0.0, 0.0, 1.0, 1.0, 2.0], 0.3, Side.ABOVE)
    assert cut is not None
    assert cut.threshold == 1.5
    assert cut.share == pytest.approx(1 / 6)
    assert cut_at_share([0.5] * 9, 0.3, Side.ABOVE) is None


def test_threshold_has_as_few_decimals_as_lie_between_the_values() -> None:
    assert [cut_at_share(pair, 0.5, Side.ABOVE).threshold for pair in ([0.646, 1.429], [1.42931, 1.42939])] == [  # type: ignore[union-attr]
        1.0,
        1.42935,
    ]


@given(st.lists(st.integers(-50, 50).map(lambda n: n / 8), min_size=2), st.floats(0.01, 0.99), st.sampled_from(Side))
def test_no_value_is_on_the_threshold_and_no_other_cut_is_nearer(values: list[float], share: float, side: Side) -> None:
    cut = cut_at_share(values, share, side)
    if len(set(values)) == 1:
        assert cut is None
        return
    assert cut is not None
    assert cut.threshold not in values
    assert share_beyond(values, cut.threshold, side) == pytest.approx(cut.share)
    others = [sum(v >= u if side is Side.ABOVE else v <= u for v in values) / len(values) for u in set(values)]
    assert abs(cut.share - share) <= min(abs(other - share) for other in others if other < 1) + 1e-12


def test_interval_of_a_threshold_comes_from_whole_problems() -> None:
    draw = random.Random(1)
    values = [draw.gauss(0, 1) for _ in range(400)]
    (alone,) = threshold_intervals(values, list(range(400)), [0.2], Side.ABOVE)
    assert alone.low < 0.84 < alone.high  # the normal's 80 % quantile is 0.8416
    assert 0.1 < alone.high - alone.low < 0.5
    same = [value for value in values[:20] for _ in range(20)]
    (together,) = threshold_intervals(same, [index // 20 for index in range(400)], [0.2], Side.ABOVE)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def counted(values: list[float], is_right: list[bool]) -> float:
    """The share of pairs, counted one by one."""
    pairs = [(w, r) for w, bad in zip(values, is_right, strict=True) if not bad
             for r, good in zip(values, is_right, strict=True) if good]  # fmt: skip
    return sum(1.0 if w > r else 0.5 if w == r else 0.0 for w, r in pairs) / len(pairs)


@given(st.lists(st.tuples(st.integers(0, 9).map(float), st.booleans()), min_size=2))
def test_separation_is_the_share_of_pairs_in_order(samples: list[tuple[float, bool]]) -> None:
    values, is_right = [value for value, _ in samples], [right for _, right in samples]
    found = separation(values, is_right, list(range(len(samples))), draws=20)
    if len(set(is_right)) < 2:
        assert found is None
    else:
        assert found is not None
        assert found.auc == pytest.approx(counted(values, is_right))


def test_sign_is_told_only_where_its_interval_leaves_the_middle() -> None:
    right = [True, False] * 30
    clear = separation([0.0 if good else 1.0 for good in right], right, list(range(60)))
    assert clear is not None
    assert (clear.auc, clear.bad_side) == (1.0, Side.ABOVE)
    turned = separation([1.0 if good else 0.0 for good in right], right, list(range(60)))
    assert turned is not None
    assert (turned.auc, turned.bad_side) == (0.0, Side.BELOW)
    draw = random.Random(3)
    noise = separation([draw.random() for _ in right], right, list(range(60)))
    assert noise is not None
    assert noise.interval is not None
    assert noise.bad_side is None
    assert noise.interval.low < noise.auc < noise.interval.high


def test_interval_of_the_separation_is_that_of_drawing_problems() -> None:
    """Against a bootstrap that draws problems and counts pairs one by one."""
    draw = random.Random(5)
    samples = [(number, draw.gauss(0.6 * (number % 2), 1), number % 2 == 0) for number in range(24) for _ in range(2)]
    found = separation([v for _, v, _ in samples], [r for _, _, r in samples], [n for n, _, _ in samples])
    assert found is not None
    assert found.interval is not None
    counts = []
    for _ in range(400):
        drawn = [draw.randrange(24) for _ in range(24)]
        picked = [(v, r) for problem in drawn for n, v, r in samples if n == problem]
        if len({r for _, r in picked}) == 2:
            counts.append(counted([v for v, _ in picked], [r for _, r in picked]))
    counts.sort()
    assert found.interval.low == pytest.approx(counts[10], abs=0.06)
    assert found.interval.high == pytest.approx(counts[-11], abs=0.06)
