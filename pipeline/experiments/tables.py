"""The table of an experiment, as one could put it into a paper: Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from typing import TypeAlias, assert_never

from pipeline.experiments.results import Difference, Estimate, ExperimentReport, RowReport, TokensByOwner
from pipeline.results.exports import csv_cell
from pipeline.texts import visible


class TableFormat(StrEnum):
    """How an experiment is shown."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"


COLUMNS = (
    "policy",
    "accuracy, %",
    "large tokens",
    "all tokens",
    "takeovers",
    "gain over random, points",
    "gain over cut, points",
    "large, tokens/s",
)
"""Of the table for people; tokens are computed, per sample. CSV has all there is."""
JUDGE_COLUMNS = ("judge tokens", "judge, s")
"""Behind them where a row has a judge: what it wrote, and the seconds of its engine, per sample."""


def columns(report: ExperimentReport) -> tuple[str, ...]:
    """The names of the columns of a report's table."""
    return COLUMNS + (JUDGE_COLUMNS if report.judge_model else ())


def cells(row: RowReport, report: ExperimentReport) -> list[str]:
    """A row as people read it, intervals in brackets."""
    return [*_cells(row), *(_judge_cells(row) if report.judge_model else ())]


def _judge_cells(row: RowReport) -> list[str]:
    """None for a row without a judge."""
    if row.owners is None or row.judge_seconds is None or not row.owners.aside_judge:
        return ["–", "–"]
    return [f"{row.owners.aside_judge:.1f}", f"{row.judge_seconds:.2f}{'†' if row.shares_engines else ''}"]


def _cells(row: RowReport) -> list[str]:
    name = _line(row.name)
    gain = row.gain.difference if row.gain else None
    return [
        f"  {name}" if row.is_control else f"{name} *" if row.on_front else name,
        estimate(row.accuracy, scale=100, digits=1),
        estimate(row.large_tokens, digits=1),
        estimate(row.total_tokens, digits=1),
        "–" if row.takeovers is None else f"{row.takeovers:.2f}",
        points(gain),
        points(row.gain_over_cut.difference if row.gain_over_cut else None),
        "–" if row.large_tokens_per_s is None else f"{row.large_tokens_per_s:.0f}{'†' if row.shares_engines else ''}",
    ]


def estimate(found: Estimate | None, *, scale: float = 1, digits: int) -> str:
    if found is None:
        return "–"
    told = f"{scale * found.mean:.{digits}f}"
    if found.interval is None:
        return told
    return f"{told} [{scale * found.interval.low:.{digits}f}, {scale * found.interval.high:.{digits}f}]"


def points(found: Difference | None) -> str:
    """A difference of accuracies in points, with its sign."""
    if found is None:
        return "–"
    told = f"{100 * found.mean:+.1f}"
    if found.interval is None:
        return told
    return f"{told} [{100 * found.interval.low:+.1f}, {100 * found.interval.high:+.1f}]"


def notes(report: ExperimentReport) -> list[str]:
    """What stands below the table."""
    rows = report.rows
    told = [
        f"{report.problem_set}: {report.num_problems} problems, {report.num_samples} samples each, seed {report.seed}; "
        f"small {report.small_model or '–'}, large {report.large_model or '–'}. In brackets 95 % intervals, problems "
        "drawn whole. Tokens are computed ones per sample: kept, discarded and aside.",
        "* on the Pareto front of accuracy against large tokens, random's rows aside.",
    ]
    if any(row.gain for row in rows):
        told.append(
            f"Gain: accuracy less that of random takeovers at equal large tokens, paired by problem. {_how(rows)}"
        )
    if any(row.gain_over_cut for row in rows):
        told.append(
            "Gain over cut: accuracy less that of a cut of the think phase at the same mean length, paired by problem. "
            f"{_how_cut(rows)}"
        )
    if report.judge_model:
        told.append(
            f"Judge {report.judge_model}: its tokens and its engine's seconds per sample are in no other column; what "
            "it reads is in the CSV."
        )
    if any(row.shares_engines and (row.large_tokens_per_s or row.judge_tokens_per_s) for row in rows):
        told.append("† other jobs ran at the same time: the speed is shared.")
    return [_line(note) for note in (*told, *(f"Beware: {caveat}." for caveat in report.caveats))]


def _line(text: str) -> str:
    """Text that others wrote, in one line and without what commands a terminal."""
    return " ".join(visible(text).split())


def _how(rows: Sequence[RowReport]) -> str:
    """Where each gain is read from."""
    told = []
    for row in rows:
        if row.gain is None:
            continue
        jobs = " and ".join(map(str, row.gain.jobs))
        if len(row.gain.jobs) == 1 and row.gain.ratio != 1.0:
            told.append(f"job {row.job_id}: against job {jobs} with {row.gain.ratio:.2f} times its large tokens")
        else:
            told.append(f"job {row.job_id}: {'between jobs' if len(row.gain.jobs) > 1 else 'against job'} {jobs}")
    return f"{'; '.join(told)}."


def _how_cut(rows: Sequence[RowReport]) -> str:
    told = [
        f"job {row.job_id}: against job {gain.jobs[0]} with {gain.ratio:.2f} times all its tokens"
        for row in rows
        if (gain := row.gain_over_cut) is not None
    ]
    return f"{'; '.join(told)}."


def render(report: ExperimentReport, form: TableFormat) -> str:
    """The text of a table in a form that has one."""
    match form:
        case TableFormat.MARKDOWN:
            return _markdown(report)
        case TableFormat.LATEX:
            return _latex(report)
        case TableFormat.CSV:
            return _csv(report)
        case TableFormat.TABLE | TableFormat.JSON:
            raise ValueError(f"{form} is printed elsewhere")
        case _:
            assert_never(form)


_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`<|"})


def _markdown(report: ExperimentReport) -> str:
    def line(values: Sequence[str]) -> str:
        return f"| {' | '.join(value.translate(_MARKDOWN) for value in values)} |"

    def note(told: str) -> str:
        starred = told.startswith("*")  # it would make a list, and be gone
        return f"{chr(92) if starred else ''}{told.translate(_MARKDOWN)}  "

    names = columns(report)
    ruled = f"|{'|'.join(['---'] + ['---:'] * (len(names) - 1))}|"
    table = [line(names), ruled, *(line(cells(row, report)) for row in report.rows)]
    return "\n".join([*table, "", *map(note, notes(report))]) + "\n"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "†": r"$^\dagger$", "·": r"$\cdot$",
    }
)  # fmt: skip


def _latex(report: ExperimentReport) -> str:
    """A booktabs table."""

    def line(values: Sequence[str]) -> str:
        return f"{' & '.join(value.translate(_LATEX) for value in values)} \\\\"

    return (
        "\n".join(
            [
                r"\begin{tabular}{l" + "r" * (len(columns(report)) - 1) + "}",
                r"\toprule",
                line(columns(report)),
                r"\midrule",
                *(line(cells(row, report)) for row in report.rows),
                r"\bottomrule",
                r"\end{tabular}",
                *(f"% {note}" for note in notes(report)),
            ]
        )
        + "\n"
    )


_Value: TypeAlias = str | int | float | bool | None


def csv_values(row: RowReport) -> dict[str, _Value]:
    """A row of the CSV; shares and accuracies are fractions."""
    measured = {
        "accuracy": row.accuracy,
        "large_tokens": row.large_tokens,
        "total_tokens": row.total_tokens,
        "gain": row.gain.difference if row.gain else None,
        "gain_over_cut": row.gain_over_cut.difference if row.gain_over_cut else None,
        "against_small": row.against_small,
        "against_large": row.against_large,
    }
    ends = {f"{name}{end}": _end(found, end) for name, found in measured.items() for end in ("", "_low", "_high")}
    return {
        "name": row.name,
        "job_id": row.job_id,
        "policy": row.policy,
        "state": row.state,
        "control_of": row.control_of,
        "num_problems": row.num_problems,
        "num_scored": row.num_scored,
        **ends,
        "gain_jobs": " ".join(map(str, row.gain.jobs)) if row.gain else None,
        "gain_token_ratio": row.gain.ratio if row.gain else None,
        "cut_job": row.gain_over_cut.jobs[0] if row.gain_over_cut else None,
        "cut_token_ratio": row.gain_over_cut.ratio if row.gain_over_cut else None,
        "takeovers": row.takeovers,
        **{field.name: getattr(row.owners, field.name, None) for field in fields(TokensByOwner)},
        "on_front": row.on_front,
        "on_total_front": row.on_total_front,
        "small_tokens_per_s": row.small_tokens_per_s,
        "large_tokens_per_s": row.large_tokens_per_s,
        "judge_tokens_per_s": row.judge_tokens_per_s,
        "small_seconds": row.small_seconds,
        "large_seconds": row.large_seconds,
        "judge_seconds": row.judge_seconds,
        "shares_engines": row.shares_engines,
    }


def _end(found: Estimate | Difference | None, end: str) -> float | None:
    if found is None or not end:
        return None if found is None else found.mean
    interval = found.interval
    return None if interval is None else interval.low if end == "_low" else interval.high


def _csv(report: ExperimentReport) -> str:
    rows = [csv_values(row) for row in report.rows]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([csv_cell(value) for value in row.values()] for row in rows)
    return stream.getvalue()
