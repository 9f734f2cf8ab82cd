"""Prints tables for people and JSON for programs."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.texts import escaped_json, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

    from pipeline.results.reports import Comparison, JobCost, JobSummary
    from pipeline.results.samples import Result, SampleReport

WIDE = 2000
"""Columns of output that is no terminal: nothing is wrapped or cut."""

AUTHOR_STYLES = {"small": "cyan", "large": "bold magenta", "inserted": "yellow"}
AUTHOR_LETTERS = {"small": "S", "large": "L", "inserted": "+"}


def console(*, stderr: bool = False) -> Console:
    """Where text goes. Data are never read as markup, and their control characters never reach a terminal."""
    from rich.console import Console
    from rich.segment import Segment

    class DataConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    file = sys.stderr if stderr else sys.stdout
    return DataConsole(file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else WIDE)


def print_json(value: Any) -> None:
    """Dataclasses, instants and enums are turned into what JSON has. No character of it commands a terminal."""
    sys.stdout.write(escaped_json(_dump(value, option=orjson.OPT_INDENT_2).decode()) + "\n")


def _dump(value: Any, option: int = 0) -> bytes:
    try:
        return orjson.dumps(value, default=_to_json, option=option)
    except TypeError:  # a number beyond 64 bits, a time with an offset: what Postgres has and orjson has not
        return json.dumps(value, default=_to_json, indent=2 if option else None, ensure_ascii=False).encode()


def _to_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """A plain table; numbers stand to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        numeric = any(isinstance(row[index], int | float | Decimal) for row in rows)
        made.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dt.datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, dict | list) or is_dataclass(value):
        return visible(_dump(value).decode())
    return visible(str(value))


def number(value: float | None, digits: int = 3) -> str:
    """Few digits: 0.823, 41.2, 1234."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """3 s, 4 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def counted(count: int, noun: str) -> str:
    """1 sample, 2 samples."""
    return f"{count} {noun if count == 1 else f'{noun}s'}"


def records(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """One line per value: for rows that are too wide for a terminal."""
    width = max((len(name) for name in columns), default=0)
    parts = []
    for index, row in enumerate(rows, 1):
        parts.append(f"─ row {index}")
        parts += [f"{name:{width}}  {cell(value)}" for name, value in zip(columns, row, strict=True)]
    return "\n".join(parts)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table, or one record after the other where the terminal is too narrow for it."""
    out = console()
    widths = [max([len(name), *(len(cell(row[index])) for row in rows)]) for index, name in enumerate(columns)]
    if out.is_terminal and sum(widths) + 2 * len(widths) > out.width and len(columns) > 6:
        out.print(records(columns, rows))
    else:
        out.print(table(columns, rows))
    out.print(counted(len(rows), "row"), style="dim")


_SUMMARY_COLUMNS: dict[str, Callable[[JobSummary], Any]] = {
    "job": lambda job: job.job_id,
    "policy": lambda job: job.policy,
    "state": lambda job: job.state.value,
    "complete": lambda job: f"{job.samples_finished + job.samples_graded}/{job.samples_total}",
    "failed": lambda job: job.samples_failed,
    "scored": lambda job: job.num_scored,
    "accuracy": lambda job: percent(job.accuracy),
    "95 % interval": lambda job: (
        "–" if job.accuracy_low is None else f"{percent(job.accuracy_low)} … {percent(job.accuracy_high)}"
    ),
    "tokens mean": lambda job: number(job.mean_output_tokens),
    "p90": lambda job: number(job.p90_output_tokens),
    "by large": lambda job: percent(job.share_large),
    "takeovers": lambda job: number(job.takeovers_per_sample, 2),
    "tokens/s": lambda job: number(job.tokens_per_second),
    "time": lambda job: duration(job.seconds),
}


def summary_table(jobs: Sequence[JobSummary], *, title: str | None = None) -> Table:
    """One line per job. takeovers: per sample; by large: share of the kept tokens."""
    return table(
        list(_SUMMARY_COLUMNS), [[show(job) for show in _SUMMARY_COLUMNS.values()] for job in jobs], title=title
    )


def comparison_table(rows: Sequence[Comparison]) -> Table:
    """One line per pair. p: exact sign test, or the paired t test (t) where sample counts differ."""
    columns = ["jobs", "problems", "scored", "accuracy", "difference", "95 % interval", "p", "better", "worse", "equal",
               "tokens", "ratio"]  # fmt: skip
    shown = [
        [
            f"{row.job_a} → {row.job_b}",
            row.num_problems,
            f"{row.num_scored_a} → {row.num_scored_b}",
            f"{percent(row.accuracy_a)} → {percent(row.accuracy_b)}",
            percent(row.difference),
            "–" if row.difference_low is None else f"{percent(row.difference_low)} … {percent(row.difference_high)}",
            _p_value(row),
            row.num_b_better,
            row.num_a_better,
            row.num_equal,
            f"{number(row.mean_output_tokens_a)} → {number(row.mean_output_tokens_b)}",
            row.token_ratio,
        ]
        for row in rows
    ]
    return table(columns, shown, title="paired by problem")


def _p_value(row: Comparison) -> str:
    if row.p_value is None:
        return "–"
    shown = "< 0.0001" if row.p_value < 0.0001 else f"{row.p_value:.4f}"
    return shown if row.test == "sign" else f"{shown} (t)"


def cost_table(costs: Sequence[JobCost], *, title: str = "cost") -> Table:
    """One line per job. engine s: time in which a worker had a request of the job, summed over the workers; * other
    jobs ran at the same time. The column of a judge is there where one was asked, that of money where prices are
    set."""
    columns = ["job", "engine s small", "large", "per right answer", "wall s p50", "p95", "waited s", "cut",
               "money per right"]  # fmt: skip
    rows = [
        [
            f"{cost.job_id}{'*' if cost.overlapping_jobs else ''}",
            cost.engine_seconds_small, cost.engine_seconds_large, cost.seconds_per_right,
            cost.p50_wall_seconds, cost.p95_wall_seconds, cost.mean_wait_seconds,
            percent(None if cost.share_length is None else cost.share_length + (cost.share_context or 0)),
            cost.money_per_right,
        ]
        for cost in costs
    ]  # fmt: skip
    if any(cost.engine_seconds_judge for cost in costs):
        columns.insert(3, "judge")
        for row, cost in zip(rows, costs, strict=True):
            row.insert(3, cost.engine_seconds_judge)
    if all(cost.money is None for cost in costs):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return table(columns, rows, title=title)


def print_sample(report: SampleReport, out: Console) -> None:
    """One sample step by step (segment by segment before it is complete); letter and colour show the author of each."""
    from rich.text import Text

    result = report.result
    score = "unscored" if result.score is None else f"score {result.score:g}"
    out.print(
        f"sample {result.sample_id} · job {result.job_id} · problem {result.problem} · number {result.sample_index} · "
        f"{result.state.value} · {score} · {result.output_tokens} tokens, {result.tokens_large} by large · "
        f"{result.num_takeovers} takeovers",
        style="bold",
    )
    out.print(Text((result.rendered_prompt or result.prompt or "").strip()), style="dim")
    legend = Text()
    for author, letter in AUTHOR_LETTERS.items():
        legend.append(f"{letter} {author}  ", style=AUTHOR_STYLES[author])
    out.print(legend)
    for line in _sample_lines(report):
        out.print(line)
    ending = [
        f"ended by {result.finish_reason.value}" if result.finish_reason else "",
        _answer(result.predicted_answer),
        _right(result),
        result.grade_detail or "",
    ]
    out.print(" · ".join(part for part in [*ending, result.error or ""] if part), style="bold")
    if result.unreadable:
        out.print(f"unreadable: {result.unreadable}", style="yellow")


def _answer(predicted: str | None) -> str:
    return "" if predicted is None else f"answer {predicted}"


def _right(result: Result) -> str:
    return "" if result.reference is None else f"right is {' or '.join([result.reference, *result.also_accepted])}"


def _sample_lines(report: SampleReport) -> list[Text]:
    """A line per step: number, authors and their tokens, text; the trigger where a takeover begins."""
    from rich.text import Text

    if report.steps:
        pieces = [
            (
                step.step_index,
                step.author.value,
                {"small": step.tokens_small, "large": step.tokens_large, "inserted": step.tokens_inserted},
                step.trigger,
                step.text,
            )
            for step in report.steps
        ]
    else:
        pieces = [
            (part.segment_index, part.author.value, {part.author.value: part.tokens}, part.trigger, part.text)
            for part in report.segments
        ]
    lines = []
    for index, author, tokens, trigger, written in pieces:
        shares = " ".join(f"{AUTHOR_LETTERS.get(who, '?')}{count}" for who, count in tokens.items() if count)
        line = Text(f"{index:3} {AUTHOR_LETTERS.get(author, '?')} {shares:9} ")
        line.append(f"[{trigger}] " if trigger else "", style="bold yellow")
        line.append((written or "").strip("\n").replace("\n", "⏎"), style=AUTHOR_STYLES.get(author, "red"))
        lines.append(line)
    return lines
