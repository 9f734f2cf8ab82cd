"""Draws an experiment: accuracy against tokens with the Pareto front and random's line, and tokens by owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from pipeline.experiments.results import Estimate, RowReport, TokensByOwner
from pipeline.results.page.charts import COLOURS, legend_below, svg
from pipeline.texts import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RANDOM = "#555555"
_OWNERS = {
    "kept_small": ("#56B4E9", "small, kept"),
    "discarded_small": ("#a8d8f0", "small, discarded"),
    "aside_small": ("#d6ecf7", "small, aside"),
    "kept_large": ("#D55E00", "large, kept"),
    "discarded_large": ("#eaa373", "large, discarded"),
    "aside_large": ("#f5d2bb", "large, aside"),
    "inserted": ("#CC79A7", "inserted"),
    "aside_judge": ("#009E73", "judge"),
}
assert set(_OWNERS) <= {field.name for field in fields(TokensByOwner)}


def accuracy_against(rows: Sequence[RowReport], cost: str, axis: str) -> str:
    """A point per row with both intervals, random's line from small alone on, and the front; '' where none is scored.

    cost: large_tokens or total_tokens.
    """
    found = [row for row in rows if row.accuracy is not None and getattr(row, cost) is not None]
    if not found:
        return ""
    policies = list(dict.fromkeys(row.policy for row in found if not row.is_control))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, policy in enumerate(policies):
            own = [row for row in found if row.policy == policy and not row.is_control]
            _points(axes, own, cost, COLOURS[number % len(COLOURS)], printable(policy))
        random = sorted((row for row in found if row.is_control), key=lambda row: getattr(row, cost).mean)
        if random:
            _points(axes, random, cost, _RANDOM, "random")
            line = [*(row for row in found if row.policy == "small-only"), *random]
            axes.plot(*_means(line, cost), color=_RANDOM, linewidth=1, linestyle=":")
        flag = "on_front" if cost == "large_tokens" else "on_total_front"
        front = sorted((row for row in found if getattr(row, flag)), key=lambda row: getattr(row, cost).mean)
        axes.plot(*_means(front, cost), color="#222222", linewidth=0.9, drawstyle="steps-post", label="Pareto front")
        axes.set(xlabel=axis, ylabel="accuracy, %", ylim=(0, 103))
        axes.set_xlim(left=0)
        legend_below(figure, axes)

    return svg(draw, 5.4, 4.4)


def _means(rows: Sequence[RowReport], cost: str) -> tuple[list[float], list[float]]:
    return [getattr(row, cost).mean for row in rows], [100 * row.accuracy.mean for row in rows if row.accuracy]


def _points(axes: Axes, rows: Sequence[RowReport], cost: str, colour: str, label: str) -> None:
    costs, accuracies = _means(rows, cost)
    across = [_arms(getattr(row, cost), 1) for row in rows]
    up = [_arms(row.accuracy, 100) for row in rows if row.accuracy]
    axes.errorbar(
        costs, accuracies, xerr=[list(arms) for arms in zip(*across, strict=True)],
        yerr=[list(arms) for arms in zip(*up, strict=True)], fmt="o", markersize=5, color=colour, elinewidth=0.8,
        label=label,
    )  # fmt: skip


def _arms(found: Estimate, scale: float) -> tuple[float, float]:
    """The lengths of an error bar's arms, of none where there is no interval."""
    if found.interval is None:
        return 0.0, 0.0
    low, high = found.interval.low, found.interval.high
    return scale * max(0.0, found.mean - low), scale * max(0.0, high - found.mean)


def tokens_by_owner(rows: Sequence[RowReport]) -> str:
    """A bar per row, the tokens of each author by what became of them; '' where nothing is complete."""
    found = [(row, row.owners) for row in rows if row.owners is not None]
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = [printable(row.name) for row, _ in found]
        left = [0.0] * len(found)
        for owner, (colour, label) in _OWNERS.items():
            counts = [getattr(owners, owner) for _, owners in found]
            if any(counts):
                axes.barh(range(len(found)), counts, left=left, color=colour, label=label)
            left = [start + count for start, count in zip(left, counts, strict=True)]
        axes.set_yticks(range(len(found)), names)
        axes.invert_yaxis()
        axes.set(xlabel="tokens per sample")
        legend_below(figure, axes)

    return svg(draw, 7.0, 1.4 + 0.3 * len(found))


def budget_curves(rows: Sequence[RowReport]) -> str:
    """Accuracy, at least, had every sample been cut at so many tokens; random's rows left out; '' where none is."""
    found = [row for row in rows if row.budget_curve and not row.is_control]
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, row in enumerate(found):
            budgets = [0, *(point.budget for point in row.budget_curve)]
            accuracies = [0.0, *(100 * point.accuracy for point in row.budget_curve)]
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            axes.plot(budgets, accuracies, style, color=COLOURS[number % len(COLOURS)], label=printable(row.name))
        axes.set(xlabel="token budget", ylabel="accuracy, at least, %", ylim=(0, 103))
        axes.set_xlim(left=0)
        legend_below(figure, axes)

    return svg(draw, 5.4, 4.4)
