"""Live progress of some jobs: samples written, tokens per second by role, takeovers, time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.cli.render import duration, number
from pipeline.results.pace import Speed, left_to_write, written

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

    from pipeline.client import Client
    from pipeline.results.reports import JobProgress

LINE_EVERY_S = 10.0
"""Where the output is no terminal, a line is printed so often."""
NAME_WIDTH = 14
"""So that all of it fits 80 columns."""
MAX_SHOWN = 6
"""Of more jobs than this, those that are being written are shown, and the others counted."""
SURE_AFTER = 30
"""An estimate from fewer samples than this says from how many: the first to end are the short ones."""


class ProgressDisplay:
    """Shows progress while it is open: one changing display in a terminal, a line now and then elsewhere.

    ``show`` is what ``Client.wait`` calls. Tokens per second are those of all small and large workers, as of their
    heartbeats; takeovers are the jobs' own.
    """

    def __init__(self, client: Client, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._console = console
        self._clock = clock
        self._speeds = {"small": Speed(), "large": Speed()}
        self._written = Speed(window_s=60.0)
        self._next_line = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, jobs: list[JobProgress]) -> None:
        now = self._clock()
        for role, total in self._client.generated_tokens().items():
            self._speeds[role].add(now, total)
        self._written.add(now, sum(map(written, jobs)))
        if self._live is not None:
            self._live.update(self.picture(jobs))
        elif now >= self._next_line or all(job.is_final for job in jobs):
            self._next_line = now + LINE_EVERY_S
            self._console.print(self.line(jobs))

    def seconds_left(self, jobs: list[JobProgress]) -> float | None:
        """Until the last sample is written, at the present pace; None while there is none."""
        open_samples = left_to_write(jobs)
        pace = self._written.per_second
        if open_samples == 0:
            return 0.0
        return open_samples / pace if pace and pace > 0 else None

    def line(self, jobs: list[JobProgress]) -> str:
        """All of it in one line."""
        number_written, total = sum(map(written, jobs)), sum(job.samples_total for job in jobs)
        shown, others = telling(jobs)
        each = [f"job {job.job_id} {written(job)}/{job.samples_total}{_aside(job)}" for job in shown]
        told = ", ".join([*each, *([others] if others else [])])
        return f"{number_written}/{total} samples ({told}) · {self._footer(jobs)}"

    def _footer(self, jobs: list[JobProgress]) -> str:
        speeds = ", ".join(f"{role} {number(speed.per_second)}" for role, speed in self._speeds.items())
        takeovers = sum(job.takeovers for job in jobs)
        return f"tokens/s: {speeds} · {takeovers} takeovers · {self._time_left(jobs)}"

    def _time_left(self, jobs: list[JobProgress]) -> str:
        left = self.seconds_left(jobs)
        if all(job.is_final for job in jobs):
            return "done"
        if left is None:
            return "time left unknown"
        if left == 0:
            return f"{sum(job.finished for job in jobs)} to grade"
        seen = self._written.grown
        return (
            f"{duration(left)} left"
            if seen >= SURE_AFTER
            else f"roughly {duration(left)} left, from {seen:.0f} samples"
        )

    def picture(self, jobs: list[JobProgress]) -> Group:
        """All of it in a line a job, with what jobs wait for below them."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        shown, others = telling(jobs)
        for job in shown:
            grid.add_row(
                Text(f"job {job.job_id}", style="bold"),
                Text((job.name or "–")[:NAME_WIDTH], overflow="ellipsis", no_wrap=True),
                ProgressBar(total=max(job.samples_total, 1), completed=written(job), width=12),
                Text(f"{written(job)}/{job.samples_total}", justify="right"),
                Text(_state(job), style="dim", overflow="ellipsis", no_wrap=True),
            )
        waits = [
            Text(f"job {job.job_id} waits: {job.waiting_for}", style="yellow")
            for job in shown
            if job.waiting_for and not job.is_final
        ]
        return Group(grid, *([Text(others)] if others else []), *waits, Text(self._footer(jobs)))


def telling(jobs: list[JobProgress]) -> tuple[list[JobProgress], str | None]:
    """The jobs that are shown one by one, and of many jobs what the others do: those that are written come first."""
    if len(jobs) <= MAX_SHOWN:
        return jobs, None
    at_work = [job for job in jobs if not job.is_final and job.samples_total > job.pending]
    shown = (at_work or [job for job in jobs if not job.is_final])[:MAX_SHOWN]
    ids = {job.job_id for job in shown}
    others = [job for job in jobs if job.job_id not in ids]
    ended = sum(job.is_final for job in others)
    return shown, f"and {len(others)} more jobs: {ended} ended, {len(others) - ended} open"


def _state(job: JobProgress) -> str:
    """Where its samples are, in 29 columns at most; in some more where a judge is asked."""
    if job.is_final:
        return job.state.value
    judge = f", judge {num}" if (num := job.judging + job.awaiting_judge) else ""
    return f"small {job.drafting}, large {job.assisting + job.awaiting_large}{judge}, grade {job.finished}"


def _aside(job: JobProgress) -> str:
    return f" ({job.waiting_for})" if job.waiting_for and not job.is_final else ""
