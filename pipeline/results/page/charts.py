"""Draws the report's charts as SVG, with text as outlines, so that they look the same everywhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.results.reports import JobStats
from pipeline.texts import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_MARKERS = "osD^vPX"
_RIGHT, _WRONG, _UNSCORED = "#2a7f62", "#d9a5a0", "#c8c8c8"
_INK, _GRID = "#333333", "#e4e4e4"
_STYLE = {
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "text.parse_math": False,  # names of models and jobs are text, "$" included
    "svg.fonttype": "path",
    "svg.hashsalt": "specthink",  # the same numbers give the same file
}


def label(stats: JobStats) -> str:
    """How the page names a job."""
    return printable(f"{stats.summary.job_id} · {stats.summary.policy}")


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def accuracy_against_length(jobs: Sequence[JobStats]) -> str:
    """A point per job with the 95 % interval of its accuracy; '' where none is scored."""
    found = [(i, job) for i, job in enumerate(jobs) if job.summary.accuracy is not None]
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, job in found:
            row = job.summary
            low, high = (100 * (bound or 0) for bound in (row.accuracy_low, row.accuracy_high))
            accuracy = 100 * (row.accuracy or 0)
            below, above = (max(0.0, end) for end in (accuracy - low, high - accuracy))  # rounding may cross it
            axes.errorbar(
                [row.mean_output_tokens or 0], [accuracy], yerr=[[below], [above]], fmt=_MARKERS[index % len(_MARKERS)],
                color=colour(index), capsize=3, markersize=7, label=label(job),
            )  # fmt: skip
        axes.set(xlabel="mean output tokens", ylabel="accuracy, %", ylim=(0, 103))
        axes.set_xlim(0, 1.1 * max(job.summary.mean_output_tokens or 1 for _, job in found))
        legend_below(figure, axes)

    return svg(draw, 5.4, 4.2)


def budget_curves(jobs: Sequence[JobStats]) -> str:
    """Accuracy, at least, had every sample been cut at so many tokens; '' where none is scored."""
    found = [(i, job) for i, job in enumerate(jobs) if job.budget_curve]
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, job in found:
            budgets = [0, *(point.budget for point in job.budget_curve)]
            accuracies = [0.0, *(100 * point.accuracy for point in job.budget_curve)]
            axes.plot(budgets, accuracies, color=colour(index), linewidth=1.8, label=label(job))
        axes.set(xlabel="token budget", ylabel="accuracy, at least, %", ylim=(0, 103))
        axes.set_xlim(left=0)
        legend_below(figure, axes)

    return svg(draw, 5.4, 4.2)


def length_distributions(jobs: Sequence[JobStats]) -> str:
    """Histograms of the output tokens, one row per job, right and wrong samples apart; '' where none is complete."""
    found = [job for job in jobs if job.length_histogram]
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, job in zip(rows, found, strict=True):
            starts = [bucket.from_tokens for bucket in job.length_histogram]
            widths = [bucket.to_tokens - bucket.from_tokens for bucket in job.length_histogram]
            base = [0] * len(starts)
            for name, shade in (("right", _RIGHT), ("wrong", _WRONG), ("unscored", _UNSCORED)):
                counts = [getattr(bucket, f"num_{name}") for bucket in job.length_histogram]
                if any(counts):
                    axes.bar(starts, counts, widths, bottom=base, align="edge", color=shade, edgecolor="white",
                             linewidth=0.5, label=name)  # fmt: skip
                base = [low + count for low, count in zip(base, counts, strict=True)]
            axes.set_title(label(job), loc="left", fontsize=9.5)
            axes.set_ylabel("samples")
            axes.set_ylim(0, 1.1 * max(base))
        rows[-1].set_xlabel("output tokens")
        rows[-1].set_xlim(left=0)
        handles = {
            name: handle for axes in rows for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)

    return svg(draw, 5.4, 1.1 + 1.45 * len(found))


def delegation_along(jobs: Sequence[JobStats]) -> str:
    """The large model's share of each tenth of the text, where both models wrote; '' where that is nowhere."""
    found = [(i, job) for i, job in enumerate(jobs) if 0 < (job.summary.share_large or 0) < 1]
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, job in found:
            places = [10 * row.tenth - 5 for row in job.delegation_progress]
            shares = [100 * row.share_large for row in job.delegation_progress]
            axes.plot(places, shares, color=colour(index), marker=_MARKERS[index % len(_MARKERS)], markersize=5,
                      linewidth=1.8, label=label(job))  # fmt: skip
        axes.set(xlabel="progress through the sample's output, %", ylabel="tokens by the large model, %")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        legend_below(figure, axes)

    return svg(draw, 5.4, 4.2)


def legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(labels) > 1 else 1)


def svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """width, height: inches."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are known as text only here
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
