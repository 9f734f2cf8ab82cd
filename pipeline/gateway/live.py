"""Live progress for every page that is open: one query for all of them, as long as there is one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import orjson
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from pipeline.db import report_queries
from pipeline.db.session import transaction
from pipeline.errors import PipelineError
from pipeline.gateway.progress import ShownProgress, mean_pace
from pipeline.results.pace import Speed, written
from pipeline.results.reports import JobSummary

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
QUIET_S = 15.0
"""After so long without news a comment is sent, for proxies that end what is silent."""
SUMMARY_S = 10.0
"""Accuracy and lengths are read again so often."""
MAX_JOBS = 100
"""A page follows no more jobs than this."""
MAX_FOLLOWED = 1_000
"""All pages together follow no more; the newest ones."""
_PACE_S = 60.0
QUIET = b": nothing new\n\n"


@dataclass(eq=False)
class _Listener:
    job_ids: frozenset[int]
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Live:
    """Follows the jobs of the pages that are open."""

    def __init__(
        self, db_engine: Engine, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ):
        self._db_engine = db_engine
        self._interval_s = interval_s
        self._clock = clock
        self._listeners: set[_Listener] = set()
        self._latest: dict[int, ShownProgress] = {}
        self._speeds: dict[int, Speed] = {}
        self._summaries: dict[int, JobSummary] = {}
        self._summaries_at = float("-inf")
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """End every stream; may be called in any thread, or by a signal."""
        self._is_stopped = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener.news.set()

    async def events(self, job_ids: Sequence[int]) -> AsyncIterator[bytes]:
        """Server-sent events about some jobs; each has all that the page shows of them, so that none need be kept."""
        listener = _Listener(frozenset(job_ids[:MAX_JOBS]))
        self._listeners.add(listener)
        self._loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())
        said = b""
        try:
            while not self._is_stopped:
                try:
                    await asyncio.wait_for(listener.news.wait(), QUIET_S)
                except TimeoutError:
                    yield QUIET
                    continue
                listener.news.clear()
                jobs = [self._latest[job_id].as_json() for job_id in sorted(listener.job_ids & self._latest.keys())]
                news = orjson.dumps({"jobs": jobs})
                if news != said and not self._is_stopped:
                    said = news
                    yield b"id: %d\nevent: progress\ndata: %b\n\n" % (self._number, news)
        finally:
            self._listeners.discard(listener)

    async def _follow(self) -> None:
        """Read the jobs of all listeners together, until there is none."""
        while self._listeners and not self._is_stopped:
            wanted = frozenset().union(*(listener.job_ids for listener in self._listeners))
            try:
                await run_in_threadpool(self._read, sorted(wanted)[-MAX_FOLLOWED:])
            except PipelineError as error:
                log.warning("gateway: no progress for the pages: %s", error)
            except Exception:
                log.exception("gateway: reading progress for the pages broke")
            else:
                self._number += 1
                self._tell()
            await asyncio.sleep(self._interval_s)
        self._latest, self._speeds = {}, {}

    def _read(self, job_ids: list[int]) -> None:
        now = self._clock()
        with transaction(self._db_engine) as connection:
            found = report_queries.find_progress(connection, job_ids)
            if now - self._summaries_at >= SUMMARY_S or any(job.job_id not in self._summaries for job in found):
                self._summaries = {row.job_id: row for row in report_queries.find_summaries(connection, job_ids)}
                self._summaries_at = now
        latest = {}
        for job in found:
            speed = self._speeds.setdefault(job.job_id, Speed(window_s=_PACE_S))
            speed.add(now, written(job))
            pace = speed.per_second if speed.grown else None
            latest[job.job_id] = ShownProgress(
                progress=job, summary=self._summaries.get(job.job_id), per_second=pace or mean_pace(job)
            )
        self._latest = latest


def read_progress(connection: Connection, job_ids: Sequence[int]) -> list[ShownProgress]:
    """Of some jobs, newest first, for a page as it is first shown."""
    summaries = {row.job_id: row for row in report_queries.find_summaries(connection, job_ids)}
    return [
        ShownProgress(progress=job, summary=summaries.get(job.job_id), per_second=mean_pace(job))
        for job in reversed(report_queries.find_progress(connection, job_ids))
    ]
