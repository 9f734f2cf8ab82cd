"""How a job shows itself in a notebook: a progress bar and a table, read anew each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from html import escape
from typing import TypeAlias

from pipeline.errors import PipelineError
from pipeline.results.jobs import Job
from pipeline.results.reports import JobProgress, JobSummary

ReadJob: TypeAlias = Callable[[int], tuple[JobProgress, JobSummary]]


class ShownJob(Job):
    """A job that its client shows: equal to the same job from elsewhere, with the same fields."""

    __slots__ = ("_read",)
    _read: ReadJob

    @classmethod
    def of(cls, job: Job, read: ReadJob) -> ShownJob:
        shown = cls(**{field.name: getattr(job, field.name) for field in fields(Job)})
        object.__setattr__(shown, "_read", read)
        return shown

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in fields(Job))

    __hash__ = Job.__hash__

    def _repr_html_(self) -> str:
        """Jupyter asks for it."""
        try:
            progress, summary = self._read(self.id)
        except (PipelineError, AttributeError) as error:  # a copy of it knows no client
            return f"<pre>{escape(f'{self!r} ({error})')}</pre>"
        return job_html(self, progress, summary)


def job_html(job: Job, progress: JobProgress, summary: JobSummary) -> str:
    """Nothing in it is markup but what is written here: names come from people."""
    done, total = progress.samples_done, max(1, progress.samples_total)
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in _rows(job, progress, summary).items()
        if value
    )
    return (
        f"<div><b>job {job.id}</b> {escape(job.name)}<br>"
        f"<progress value='{done}' max='{total}' style='width:20em'></progress> "
        f"{done} of {progress.samples_total} samples, {escape(str(progress.state).replace('_', ' '))}"
        f"<table>{rows}</table></div>"
    )


def _rows(job: Job, progress: JobProgress, summary: JobSummary) -> dict[str, str]:
    return {
        "policy": job.policy,
        "small": job.small_model or "",
        "large": job.large_model or "",
        "problems": f"{job.problem_set}: {job.num_problems}, {job.num_samples} samples each",
        "waits for": progress.waiting_for or "",
        "failed": str(progress.failed or ""),
        "accuracy": _accuracy(summary),
        "tokens a sample": "" if summary.mean_output_tokens is None else f"{summary.mean_output_tokens:,.0f}",
        "written by large": "" if summary.share_large is None else f"{summary.share_large:.1%}",
        "takeovers a sample": "" if summary.takeovers_per_sample is None else f"{summary.takeovers_per_sample:.2f}",
        "time": "" if progress.seconds is None else f"{progress.seconds:,.0f} s",
        "unreadable": job.unreadable or "",
    }


def _accuracy(summary: JobSummary) -> str:
    if summary.accuracy is None:
        return ""
    told = f"{summary.accuracy:.1%}"
    if summary.accuracy_low is not None and summary.accuracy_high is not None:
        told += f" ({summary.accuracy_low:.1%} to {summary.accuracy_high:.1%})"
    return told + (f", of {summary.samples_graded} samples so far" if summary.is_partial else "")
