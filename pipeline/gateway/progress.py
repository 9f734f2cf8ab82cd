"""What the pages say of a job's progress, the same in HTML and in events."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.results.pace import left_to_write, written
from pipeline.results.page.templates import percent
from pipeline.results.reports import JobProgress, JobSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownProgress:
    """A job's progress, and what is said of it. per_second: samples that end now; None: not known."""

    progress: JobProgress
    summary: JobSummary | None
    per_second: float | None

    @property
    def done(self) -> int:
        return written(self.progress)

    @property
    def texts(self) -> dict[str, str]:
        """By field, as it stands on a page."""
        job = self.progress
        told = {
            "state": str(job.state).replace("_", " "),
            "done": f"{self.done:,} of {job.samples_total:,}",
            "pace": self._pace(),
            "left": self._left(),
            "waiting": job.waiting_for or "" if not job.is_final else "",
            "failed": f"{job.failed:,} failed" if job.failed else "",
            "takeovers": f"{job.takeovers:,}",
            "at_work": self._at_work(),
        }
        return told | self._outcome()

    def _pace(self) -> str:
        if self.per_second is None or self.progress.is_final:
            return ""
        return f"{self.per_second:.1f}/s" if self.per_second >= 1 else f"{60 * self.per_second:.1f}/min"

    def _left(self) -> str:
        """Until the last sample is written, at the present pace."""
        if self.progress.is_final:
            return ""
        left = left_to_write([self.progress])
        if left == 0:
            return f"{self.progress.finished:,} to grade"
        return f"{told_duration(left / self.per_second)} left" if self.per_second else ""

    def _at_work(self) -> str:
        job = self.progress
        parts = {
            "not begun": job.pending,
            "with small": job.drafting + job.ready,
            "with large": job.assisting + job.awaiting_large,
            "with the judge": job.judging + job.awaiting_judge,
            "to grade": job.finished,
        }
        return " · ".join(f"{number:,} {name}" for name, number in parts.items() if number)

    def _outcome(self) -> dict[str, str]:
        row = self.summary
        if row is None:
            return {}
        interval = "" if row.accuracy is None else f"{percent(row.accuracy_low)} … {percent(row.accuracy_high)}"
        return {"accuracy": percent(row.accuracy), "interval": interval, "large": percent(row.share_large)}

    def as_json(self) -> dict[str, Any]:
        """The row of job_progress, with the pace and the texts beside it."""
        row = asdict(self.progress)
        return row | {"done": self.done, "samples_per_second": self.per_second, "shown": self.texts}


def mean_pace(job: JobProgress) -> float | None:
    """Samples a second since its first claim, where nobody has watched it."""
    return written(job) / job.seconds if job.seconds and written(job) and not job.is_final else None


def told_duration(seconds: float) -> str:
    """3 s, 4 min, 2 h 07 min, 3 days."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 2880 else f"{minutes // 1440} days"
