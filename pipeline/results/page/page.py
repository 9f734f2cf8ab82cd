"""Builds the HTML report. Its template escapes every text, so that what a model wrote can only be read."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from pipeline.results.page import charts
from pipeline.results.reports import Comparison, Job, JobStats, Result, SampleReport
from pipeline.texts import visible

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class PageData:
    """What a page is made of, jobs in the order asked for.

    comparisons: of the first job with the others that can be paired with it. samples: those to read, of each job.
    side_by_side: samples of one problem, one of each job.
    """

    jobs: tuple[Job, ...]
    stats: tuple[JobStats, ...]
    comparisons: tuple[Comparison, ...]
    samples: tuple[tuple[SampleReport, ...], ...]
    read_at: dt.datetime
    side_by_side: tuple[tuple[SampleReport, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Text by one author. trigger, cue: of the takeover that begins with it, '' where none does."""

    author: str
    text: str
    trigger: str = ""
    cue: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStep:
    """A step as the reader shows it. sentence_class: '' before the sample's steps are stored."""

    step_index: int
    sentence_class: str
    num_tokens: int
    spans: tuple[Span, ...]


def page_environment(folder: Path) -> Environment:
    """The templates of a folder. They escape every text, show what a screen would obey, and miss no value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(data: PageData) -> str:
    """The HTML text."""
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"percent": _percent, "number": number, "duration": _duration}
    return environment.get_template("page.html.jinja").render(
        data=data,
        rows=list(zip(data.jobs, data.stats, data.samples, strict=True)),
        charts=[(title, note, image(svg)) for title, note, svg in _charts(data.stats) if svg],
        colours=[charts.colour(index) for index in range(len(data.stats))],
        steps=read_steps,
        label=charts.label,
        verdict=_verdict,
        settings=_settings,
        opened=_first_to_read(data),
    )


def seen(value: object) -> object:
    """Text that was written by others, with its control characters shown; what the template made itself as it is."""
    return visible(value) if type(value) is str else value


def _first_to_read(data: PageData) -> SampleReport | None:
    """The sample that is open when the page is: the first with a takeover."""
    reports = [report for samples in data.samples for report in samples]
    return next((report for report in reports if report.result.num_takeovers), None)


def _charts(stats: Sequence[JobStats]) -> Iterator[tuple[str, str, str]]:
    yield (
        "Accuracy against length",
        "Mean tokens of the complete samples; bars are 95 % intervals.",
        charts.accuracy_against_length(stats),
    )
    yield (
        "Accuracy against a token budget",
        "At least this, had every sample been cut there: what is cut counts as wrong.",
        charts.budget_curves(stats),
    )
    yield (
        "Lengths",
        "Complete samples by output tokens, in 20 buckets of each job's own width.",
        charts.length_distributions(stats),
    )
    yield (
        "Delegation along the sample",
        "The large model's share of the tokens in each tenth of the output.",
        charts.delegation_along(stats),
    )


def image(svg: str) -> str:
    """As an image of its own, where a browser runs nothing that may stand in it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def read_steps(report: SampleReport) -> list[ReadStep]:
    """A sample's steps with the author of every piece; one step with all of it where they do not make up its text."""
    spans = [
        Span(
            author=part.author.value,
            text=part.text or "",
            trigger=part.trigger if part.takes_over else "",
            cue=part.cue,
        )
        for part in report.segments
    ]
    written = "".join(span.text for span in spans)
    if "".join(step.text for step in report.steps) != written or not report.steps:
        return [ReadStep(step_index=0, sentence_class="", num_tokens=report.result.output_tokens, spans=tuple(spans))]
    pieces = _cut(spans, [len(step.text) for step in report.steps])
    return [
        ReadStep(
            step_index=step.step_index,
            sentence_class=step.sentence_class,
            num_tokens=step.tokens_small + step.tokens_large + step.tokens_inserted,
            spans=tuple(piece),
        )
        for step, piece in zip(report.steps, pieces, strict=True)
    ]


def _cut(spans: Sequence[Span], lengths: Sequence[int]) -> list[list[Span]]:
    """The spans cut into runs of these lengths; a trigger stays with the first piece of its span."""
    runs: list[list[Span]] = []
    rest = list(reversed(spans))
    for length in lengths:
        run: list[Span] = []
        while length > 0:
            span = rest.pop()
            head, tail = span.text[:length], span.text[length:]
            length -= len(head)
            run.append(Span(author=span.author, text=head, trigger=span.trigger, cue=span.cue))
            if tail:
                rest.append(Span(author=span.author, text=tail))
        runs.append(run)
    return runs


def _settings(job: Job) -> str:
    """The job's configuration and the versions it was submitted with, as JSON with a line per value."""
    values = {"config": job.stored_config, "versions": job.versions, "unreadable": job.unreadable}
    if job.stored_config is not None:
        values = {"config": job.stored_config.model_dump(mode="json", exclude_none=True), "versions": job.versions}
    return orjson.dumps(values, option=orjson.OPT_INDENT_2).decode()


def _verdict(result: Result) -> str:
    return "unscored" if result.score is None else "right" if result.score >= 0.5 else "wrong"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
