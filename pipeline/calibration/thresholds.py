"""Thresholds for a wanted share of places, and how well a statistic tells right samples from wrong ones.

Places of one problem stay together in every draw of the bootstrap. The same input gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, groupby

from pipeline.results.intervals import DRAWS, Interval

_MOST_DIGITS = 9


class Side(StrEnum):
    """On which side of its threshold a statistic calls for the large model."""

    ABOVE = "above"
    BELOW = "below"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A threshold, and the share of places on its side. No place has the threshold itself: ≥ and > mean the same."""

    threshold: float
    share: float


def cut_at_share(values: Sequence[float], share: float, side: Side) -> Cut | None:
    """The threshold with the share of values on its side that is nearest to a wanted one; None where all are equal."""
    sign = 1 if side is Side.ABOVE else -1
    counts = [(value, len(list(same))) for value, same in groupby(sorted((sign * v for v in values), reverse=True))]
    reached = [total / len(values) for total in accumulate(count for _, count in counts)]
    if len(counts) < 2:
        return None
    place = min(range(len(counts) - 1), key=lambda index: abs(reached[index] - share))
    between = _short_between(counts[place + 1][0], counts[place][0])
    return Cut(threshold=sign * between + 0.0, share=reached[place])


def _short_between(low: float, high: float) -> float:
    """A number strictly between two, with as few decimals as that allows."""
    middle = (low + high) / 2
    rounded = (round(middle, digits) for digits in range(_MOST_DIGITS))
    return next((value for value in rounded if low < value < high), middle)


def share_beyond(values: Sequence[float], threshold: float, side: Side) -> float:
    """The share of values on a side of a threshold."""
    return sum(value > threshold if side is Side.ABOVE else value < threshold for value in values) / len(values)


def threshold_intervals(
    values: Sequence[float], problems: Sequence[int], shares: Sequence[float], side: Side, *, draws: int = DRAWS
) -> list[Interval]:
    """The 95 % intervals of the thresholds for some shares, whole problems drawn with replacement.

    problems: of each value the number of its problem, from 0.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    signed = np.asarray(values) * (1 if side is Side.ABOVE else -1)
    order = np.argsort(-signed, kind="stable")
    of_problem, num_problems = np.asarray(problems)[order], max(problems) + 1
    found = np.empty((draws, len(shares)))
    for draw in range(draws):
        times = np.bincount(generator.integers(0, num_problems, num_problems), minlength=num_problems)
        reached = np.cumsum(times[of_problem])
        if not reached[-1]:
            found[draw] = np.nan
            continue
        places = np.searchsorted(reached, np.asarray(shares) * reached[-1])
        found[draw] = np.asarray(values)[order][np.minimum(places, len(order) - 1)]
    bounds = np.nanquantile(found, (0.025, 0.975), axis=0)
    return [Interval(float(low), float(high)) for low, high in bounds.T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """How often a wrong sample has a higher value than a right one; a tie counts half.

    Above 0.5 high values are bad, below low ones. interval: None where no draw has both kinds of samples.
    """

    auc: float
    interval: Interval | None

    @property
    def bad_side(self) -> Side | None:
        """Where the wrong samples are; None where the interval holds 0.5, or is not known."""
        if self.interval is None or self.interval.low <= 0.5 <= self.interval.high:
            return None
        return Side.ABOVE if self.auc > 0.5 else Side.BELOW


def separation(
    values: Sequence[float], is_right: Sequence[bool], problems: Sequence[int], *, draws: int = DRAWS
) -> Separation | None:
    """How a value per sample separates wrong samples from right ones; None where all are right or all wrong.

    problems: of each sample the number of its problem, from 0.
    """
    import numpy as np

    right = np.asarray(is_right, dtype=bool)
    if right.all() or not right.any():
        return None
    number, value = np.asarray(problems), np.asarray(values, dtype=float)
    num_problems = int(number.max()) + 1
    above = np.sign(value[~right][:, None] - value[right][None, :]) / 2 + 0.5
    of_wrong, of_right = (np.eye(num_problems)[number[which]] for which in (~right, right))
    wins = of_wrong.T @ above @ of_right  # by problem of the wrong and problem of the right one
    num_wrong, num_right = of_wrong.sum(axis=0), of_right.sum(axis=0)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        times = np.bincount(generator.integers(0, num_problems, num_problems), minlength=num_problems)
        pairs = (times @ num_wrong) * (times @ num_right)
        if pairs:
            drawn.append(times @ wins @ times / pairs)
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (np.nan, np.nan)
    interval = Interval(float(low), float(high)) if drawn else None
    return Separation(auc=float(above.mean()), interval=interval)
