"""Publishing to and reading from a real Redis."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import redis
from celery.contrib.testing.worker import start_worker
from kombu.transport.redis import QoS

from pipeline.db.runnable import Runnable
from pipeline.embedded import Connections
from pipeline.samples import SampleState
from workers.broker import queues
from workers.broker.app import make_app
from workers.broker.messages import SamplesMessage
from workers.broker.publish import DRAFT, GRADE, Publisher
from workers.broker.reading import read_own_queue_first
from workers.broker.tasks import add_samples_task


def test_queue_of_a_dead_worker_is_deleted_by_another_process(connections: Connections) -> None:
    sample = Runnable(
        sample_id=1,
        job_id=1,
        epoch=0,
        state=SampleState.READY,
        model="m",
        home_queue="small.m.dead",
        resumed=True,
        is_suspect=False,
    )
    Publisher(make_app(connections.redis_url)).publish([sample])
    upkeep = Publisher(make_app(connections.redis_url))
    with redis.Redis.from_url(connections.redis_url.get_secret_value()) as client:
        assert [key for key in client.scan_iter() if b"dead" in key]
        upkeep.drop_queue("small.m.dead")
        assert [key for key in client.scan_iter() if b"dead" in key] == []


def test_worker_reads_on_after_acknowledgements_were_lost(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(connections.redis_url)
    seen: list[int] = []
    all_seen = threading.Event()

    def note(message: SamplesMessage) -> str:
        seen.append(message.job_id)
        if len(seen) == 4:
            all_seen.set()
        return "noted"

    add_samples_task(app, GRADE, note)
    remove = QoS._remove_from_indices
    lost: list[str] = []

    def lose_two(self: QoS, delivery_tag: str, pipe: Any = None) -> Any:
        if len(lost) < 2:
            lost.append(delivery_tag)
            raise redis.TimeoutError("half-open")
        return remove(self, delivery_tag, pipe)

    monkeypatch.setattr(QoS, "_remove_from_indices", lose_two)
    options = {"pool": "threads", "concurrency": 1, "queues": [queues.GRADE], "loglevel": "CRITICAL"}
    with start_worker(app, perform_ping_check=False, shutdown_timeout=30, **options):
        for number in range(1, 5):
            message = {"version": 1, "job_id": number, "samples": [[1, 0]]}
            app.send_task(GRADE, kwargs={"message": message}, queue=queues.GRADE)
        assert all_seen.wait(20), f"deaf after {seen}, {len(lost)} acknowledgements lost"
    assert (sorted(seen), len(lost)) == ([1, 2, 3, 4], 2)


def test_a_worker_that_has_enough_reads_its_own_queue_alone(connections: Connections) -> None:
    own, shared = "small.m.own", "small.m"
    may_read = threading.Event()
    seen: list[int] = []
    some_seen = threading.Condition()

    def note(message: SamplesMessage) -> str:
        with some_seen:
            seen.append(message.job_id)
            some_seen.notify_all()
        return "noted"

    def send(number: int, queue: str) -> None:
        message = {"version": 1, "job_id": number, "samples": [[1, 0]]}
        app.send_task(DRAFT, kwargs={"message": message}, queue=queue)

    def wait_for(*numbers: int) -> None:
        with some_seen:
            assert some_seen.wait_for(lambda: set(numbers) <= set(seen), 20), f"{seen}, not {numbers}"

    app = make_app(connections.redis_url)
    app.conf.broker_transport_options = app.conf.broker_transport_options | read_own_queue_first(own, may_read.is_set)
    add_samples_task(app, DRAFT, note)
    options = {"pool": "threads", "concurrency": 4, "queues": [shared, own], "loglevel": "CRITICAL"}
    with start_worker(app, perform_ping_check=False, shutdown_timeout=30, **options):
        for number in range(10):
            send(101 + number, shared)
            send(1 + number, own)
        wait_for(*range(1, 11))
        assert max(seen) < 101, "its own alone"
        may_read.set()
        wait_for(*range(101, 111))
        may_read.clear()
        send(11, own)
        wait_for(11)
    assert json.dumps(app.connection_for_read().info()), "what Flower asks for"
