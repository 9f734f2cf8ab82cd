"""Builds the HTML report. Its template escapes every text, so that what a model wrote can only be read."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from pipeline.results.jobs import Job
from pipeline.results.page import charts
from pipeline.results.page.reading import read_steps, verdict
from pipeline.results.page.templates import page_environment
from pipeline.results.reports import Comparison, JobStats
from pipeline.results.samples import SampleReport


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


def render_page(data: PageData) -> str:
    """The HTML text."""
    environment = page_environment(Path(__file__).parent)
    return environment.get_template("page.html.jinja").render(
        data=data,
        rows=list(zip(data.jobs, data.stats, data.samples, strict=True)),
        charts=[(title, note, image(svg)) for title, note, svg in _charts(data.stats) if svg],
        colours=[charts.colour(index) for index in range(len(data.stats))],
        steps=read_steps,
        label=charts.label,
        verdict=verdict,
        settings=job_settings,
        opened=_first_to_read(data),
    )


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


def job_settings(job: Job) -> str:
    """The job's configuration and the versions it was submitted with, as JSON with a line per value."""
    values = {"config": job.stored_config, "versions": job.versions, "unreadable": job.unreadable}
    if job.stored_config is not None:
        values = {"config": job.stored_config.model_dump(mode="json", exclude_none=True), "versions": job.versions}
    return orjson.dumps(values, option=orjson.OPT_INDENT_2).decode()
