"""Live progress: one reading for every page that is open, and none when none is."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson

from pipeline.gateway.live import Live
from pipeline.gateway.progress import ShownProgress
from tests.unit.gateway.test_pages import progress


class Told(Live):
    """Jobs that have one sample more at each reading."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None), interval_s=0.001)
        self.asked: list[list[int]] = []

    def _read(self, job_ids: list[int]) -> None:
        self.asked.append(job_ids)
        done = len(self.asked)
        self._latest = {
            job_id: ShownProgress(progress=progress(job_id=job_id, samples_done=done), summary=None, per_second=None)
            for job_id in job_ids
        }


def jobs_of(event: bytes) -> list[int]:
    number, name, data, *_ = event.decode().split("\n")
    assert int(number.removeprefix("id: ")) > 0
    assert name == "event: progress"
    return [job["job_id"] for job in orjson.loads(data.removeprefix("data: "))["jobs"]]


def test_all_pages_share_one_reading_and_each_is_told_of_its_own_jobs() -> None:
    async def follow() -> Told:
        live = Told()
        pages = [live.events(ids) for ids in ([1, 2], [3, 2], [7])]
        told = await asyncio.gather(*(anext(page) for page in pages))
        assert [jobs_of(event) for event in told] == [[1, 2], [2, 3], [7]]
        again = await anext(pages[0])
        assert jobs_of(again) == [1, 2]
        assert again != told[0]
        for page in pages:
            await cast("Any", page).aclose()
        assert live._task is not None
        await asyncio.wait_for(live._task, 10)
        return live

    live = asyncio.run(follow())
    assert live.asked
    assert all(asked == [1, 2, 3, 7] for asked in live.asked), "none when nobody listens, one for all before"


def test_streams_end_when_the_gateway_is_told_to_stop() -> None:
    async def follow() -> int:
        live = Told()
        seen = 0
        async for event in live.events([1]):
            seen += len(jobs_of(event))
            live.stop()
        return seen

    assert asyncio.run(asyncio.wait_for(follow(), 10)) == 1
