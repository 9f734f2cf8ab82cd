"""Publishes wake-up messages, after the commit that made them true.

A message that cannot be sent is logged and forgotten, whatever the reason: the sample is found again by upkeep, and
the thread that sends has segments to store.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import structlog
from celery import Celery
from pydantic import ValidationError

from pipeline.db.faults import first_line
from pipeline.db.runnable import Runnable
from pipeline.samples import RUNNABLE_STATE, SampleState
from workers.broker import queues
from workers.broker.messages import MAX_SAMPLES, MAX_SHARED, JobMessage, SamplesMessage

log = structlog.get_logger()

DRAFT, ASSIST, JUDGE, GRADE, FOLLOW = "draft", "assist", "judge", "grade", "follow"
"""Task names, as Flower shows them."""

MAX_FOLLOWED = 64
"""Jobs that one upkeep worker shows at a time; as many more may wait for it."""

SILENCE_S = 5.0
"""Pause after a failed send, in which nothing is sent: a send may take this long to fail, and the thread that stores
segments waits for it."""

_TASK_OF_STATE = {
    SampleState.READY: DRAFT,
    SampleState.AWAITING_LARGE: ASSIST,
    SampleState.AWAITING_JUDGE: JUDGE,
    SampleState.FINISHED: GRADE,
}
_ROLE_OF_STATE = {state: role for role, state in RUNNABLE_STATE.items()}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class Route(NamedTuple):
    """Samples with the same route travel in the same messages."""

    task: str
    queue: str
    priority: int
    job_id: int
    who: str


class Publisher:
    """Sends the messages of one process. Thread-safe: Celery's producers come from a pool."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._silent_until = 0.0

    def publish(
        self,
        samples: Sequence[Runnable],
        *,
        max_shared: int = MAX_SHARED,
        max_depth: int | None = None,
    ) -> None:
        """Wake the workers that can go on with these samples. Leaves out suspects, and states that nobody works on.

        max_shared: most samples in one message on a queue that several workers read; a message on one worker's own
        queue is filled up. max_depth: send no more to a queue that holds this many messages.
        """
        groups: dict[Route, list[Runnable]] = defaultdict(list)
        for sample in samples:
            if sample.state in _TASK_OF_STATE and not sample.is_suspect:
                groups[_route(sample)].append(sample)
        room = self._room({route.queue for route in groups}, max_depth)
        for route, group in groups.items():
            if room[route.queue] > 0:
                most = max_shared if group[0].home_queue is None else MAX_SAMPLES
                self._send_all(route, group, most)
                room[route.queue] -= math.ceil(len(group) / most)

    def publish_alone(self, suspects: Sequence[Runnable]) -> None:
        """Wake a worker for each of these suspects, in a message of its own."""
        for sample in suspects:
            self._send(_route(sample), [sample])

    def publish_grading(self, job_id: int, samples: Sequence[Runnable]) -> int:
        """Ask the graders for complete samples of a job, graded before or not; returns how many were sent."""
        return self._send_all(_grade_route(job_id), samples, MAX_SHARED)

    def _send_all(self, route: Route, group: Sequence[Runnable], max_samples: int) -> int:
        """How many samples were sent."""
        parts = [group[start : start + max_samples] for start in range(0, len(group), max_samples)]
        return sum(len(part) for part in parts if self._send(route, part))

    def _send(self, route: Route, group: Sequence[Runnable]) -> bool:
        try:
            message = SamplesMessage(
                job_id=route.job_id,
                samples=[(sample.sample_id, sample.epoch) for sample in group],
            )
        except ValidationError as error:  # a damaged row: its job waits, all others go on
            log.error("message not made", job_id=route.job_id, reason=str(error.errors()[0]["msg"]))
            return False
        ids = _few(sample.sample_id for sample in group)
        return self._apply(
            route.task,
            message.model_dump(),
            route.queue,
            route.priority,
            f"job {route.job_id} · {route.who} · {ids}",
        )

    def publish_follow(self, job_id: int) -> None:
        """Ask upkeep to show a job's progress in Flower, unless more are waiting for it than it can show."""
        if self._takes_more(queues.UPKEEP, MAX_FOLLOWED):
            self._apply(
                FOLLOW,
                JobMessage(job_id=job_id).model_dump(),
                queues.UPKEEP,
                queues.FIRST,
                f"job {job_id}",
            )

    def _apply(
        self,
        task: str,
        message: dict[str, object],
        queue: str,
        priority: int,
        shown: str,
    ) -> bool:
        """Whether the broker took it."""
        if self.is_silent:
            return False
        try:
            self._app.send_task(
                task,
                kwargs={"message": message},
                queue=queue,
                priority=priority,
                argsrepr="",
                kwargsrepr=shown,
            )
        except Exception as error:  # a channel that was given up breaks in any way
            self._silent_until = time.monotonic() + SILENCE_S
            log.warning(
                "message not sent",
                task=task,
                queue=queue,
                shown=shown,
                reason=_reason(error),
                silent_s=SILENCE_S,
            )
            return False
        return True

    def _room(self, names: Collection[str], max_depth: int | None) -> dict[str, float]:
        """Messages that each of these queues takes; none where the broker does not answer."""
        if max_depth is None:
            return dict.fromkeys(names, math.inf)
        try:
            with self._app.connection_for_write() as connection:
                return {name: max_depth - connection.default_channel._size(name) for name in names}
        except Exception as error:
            self._silent_until = time.monotonic() + SILENCE_S
            log.warning("queues not measured", queues=len(names), reason=_reason(error), silent_s=SILENCE_S)
            return dict.fromkeys(names, 0)

    def _takes_more(self, queue: str, max_depth: int) -> bool:
        return self._room([queue], max_depth)[queue] > 0

    @property
    def is_silent(self) -> bool:
        """Whether the broker did not take the last message, so that nothing is sent for now."""
        return time.monotonic() < self._silent_until

    def reaches_broker(self) -> bool:
        """Whether the broker answers now."""
        return self._takes_more(queues.UPKEEP, sys.maxsize)

    def drop_queue(self, queue: str) -> bool:
        """Delete the queue of a worker that is gone, with whatever is in it; False where that could not be done."""
        if self.is_silent:
            return False
        try:
            with self._app.connection_for_write() as connection:
                # queue_delete does nothing for a queue that another process declared; Celery names exchange and
                # routing key after the queue
                connection.default_channel._delete(queue, queue, queue, "")
        except Exception as error:
            self._silent_until = time.monotonic() + SILENCE_S
            log.warning("queue not deleted", queue=queue, reason=_reason(error), silent_s=SILENCE_S)
            return False
        return True


def _route(sample: Runnable) -> Route:
    task = _TASK_OF_STATE[sample.state]
    role = _ROLE_OF_STATE.get(sample.state)
    if role is None or sample.model is None:
        return _grade_route(sample.job_id)
    queue = sample.home_queue or queues.model_queue(role, sample.model)
    priority = queues.FIRST if sample.resumed else queues.LATER
    return Route(task, queue, priority, sample.job_id, f"{role.value} {sample.model}")


def _grade_route(job_id: int) -> Route:
    return Route(GRADE, queues.GRADE, queues.FIRST, job_id, "grade")


def _few(ids: Iterable[int], shown: int = 3) -> str:
    listed = [str(i) for i in ids]
    more = f" +{len(listed) - shown}" if len(listed) > shown else ""
    return ("sample " if len(listed) == 1 else "samples ") + ", ".join(listed[:shown]) + more
