"""Publishing: what waits for the same worker travels together, and nothing but ids travels."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from celery import Celery
from kombu.transport import memory

from pipeline.db.runnable import Runnable
from pipeline.samples import SampleState
from workers.broker.app import CONFIG
from workers.broker.publish import MAX_FOLLOWED, Publisher


@pytest.fixture
def app() -> Iterator[Celery]:
    """An application on kombu's in-memory broker."""
    memory.Channel.queues.clear()  # one for the whole process, whoever used it before
    app = Celery("test", broker="memory://", set_as_current=False)
    app.conf.update(CONFIG)
    yield app
    app.close()


def waiting(sample_id: int, state: SampleState = SampleState.READY, **values: object) -> Runnable:
    defaults = {"job_id": 1, "epoch": 4, "model": "m", "home_queue": None, "resumed": False, "is_suspect": False}
    return Runnable(sample_id=sample_id, state=state, **(defaults | values))  # type: ignore[arg-type]


def read(app: Celery, queue: str) -> list[dict[str, object]]:
    messages = []
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue(queue)
        while len(simple):
            message = simple.get(block=False)
            messages.append({"message": message.payload[1]["message"], **message.headers, **message.properties})
            message.ack()
        simple.close()
    return messages


def test_samples_for_the_same_worker_share_messages(app: Celery) -> None:
    Publisher(app).publish([waiting(i) for i in range(1, 20)], max_shared=16)
    messages = read(app, "small.m")
    assert [len(m["message"]["samples"]) for m in messages] == [16, 3]  # type: ignore[index]
    assert messages[0]["message"]["samples"][0] == [1, 4]  # type: ignore[index]
    assert messages[0]["task"] == "draft"
    assert messages[0]["kwargsrepr"] == "job 1 · small m · samples 1, 2, 3 +13"


def test_samples_that_go_home_travel_as_full_as_may_be(app: Celery) -> None:
    samples = [waiting(i, home_queue="small.m.own", resumed=True) for i in range(1, 31)]
    Publisher(app).publish(samples, max_shared=4)
    assert [len(m["message"]["samples"]) for m in read(app, "small.m.own")] == [28, 2]  # type: ignore[index]


def test_resumed_samples_go_home_and_go_first(app: Celery) -> None:
    Publisher(app).publish([waiting(1), waiting(2, resumed=True, home_queue="small.m.own")])
    [fresh], [resumed] = read(app, "small.m"), read(app, "small.m.own")
    assert resumed["priority"] < fresh["priority"]  # type: ignore[operator]


def test_each_state_wakes_its_own_kind_of_worker(app: Celery) -> None:
    states = [SampleState.AWAITING_LARGE, SampleState.FINISHED, SampleState.GRADED, SampleState.FAILED]
    Publisher(app).publish([waiting(i, state) for i, state in enumerate(states, 1)])
    assert [m["task"] for m in read(app, "large.m")] == ["assist"]
    assert [m["task"] for m in read(app, "grade")] == ["grade"]


def test_full_queue_gets_no_second_messages(app: Celery) -> None:
    publisher = Publisher(app)
    publisher.publish([waiting(i) for i in range(1, 4)], max_shared=1)
    publisher.publish([waiting(9)], max_depth=3)
    assert len(read(app, "small.m")) == 3
    publisher.publish([waiting(9)], max_depth=3)
    assert len(read(app, "small.m")) == 1


def test_many_jobs_share_the_room_of_a_queue_which_is_measured_once(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Mock(wraps=app.connection_for_write)
    monkeypatch.setattr(app, "connection_for_write", connect)
    jobs = [waiting(i, job_id=i, model="m" if i % 2 else "n") for i in range(1, 41)]
    Publisher(app).publish(jobs, max_depth=5)
    assert [len(read(app, queue)) for queue in ("small.m", "small.n")] == [5, 5]
    assert connect.call_count < 10, "not one for each job"


def test_jobs_that_wait_to_be_shown_do_not_pile_up(app: Celery) -> None:
    publisher = Publisher(app)
    for _ in range(2):  # upkeep asks again every 15 s
        for job_id in range(1, MAX_FOLLOWED + 1):
            publisher.publish_follow(job_id)
    assert len(read(app, "upkeep")) == MAX_FOLLOWED


def test_deleted_queue_is_empty(app: Celery) -> None:
    publisher = Publisher(app)
    publisher.publish([waiting(1, home_queue="small.m.own", resumed=True)])
    assert publisher.drop_queue("small.m.own")
    assert read(app, "small.m.own") == []


def test_broker_that_is_away_does_not_stop_the_worker() -> None:
    app = Celery("test", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(CONFIG)
    app.conf.task_publish_retry_policy = {"max_retries": 0}
    Publisher(app).publish([waiting(1)])
    app.close()


@pytest.mark.parametrize("error", [AttributeError("'NoneType' object has no attribute 'send'"), OSError(), KeyError(3)])
def test_no_error_of_sending_reaches_who_stores_segments(
    app: Celery, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "send_task", breaks)
    publisher = Publisher(app)
    publisher.publish([waiting(1)])
    assert publisher.is_silent


def test_queue_that_cannot_be_measured_keeps_the_publisher_silent() -> None:
    app = Celery("test", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(CONFIG)
    publisher = Publisher(app)
    assert not publisher.is_silent
    publisher.publish([waiting(1)], max_depth=3)
    assert publisher.is_silent, "or a leader without Redis would never give way"
    assert not publisher.reaches_broker()
    app.close()


def test_queue_that_a_broker_does_not_delete_is_told_and_not_tried_at_once_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Celery("test", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(CONFIG)
    publisher = Publisher(app)
    assert not publisher.drop_queue("small.m.own")
    monkeypatch.setattr(app, "connection_for_write", lambda: pytest.fail("it was asked again within its silence"))
    assert not publisher.drop_queue("small.m.own")
    app.close()


def test_gradings_that_a_broker_does_not_take_are_not_counted_as_sent(app: Celery) -> None:
    samples = [waiting(i, SampleState.GRADED) for i in (1, 2)]
    assert Publisher(app).publish_grading(7, samples) == 2
    away = Celery("test", broker="redis://127.0.0.1:1/0", set_as_current=False)
    away.conf.update(CONFIG)
    away.conf.task_publish_retry_policy = {"max_retries": 0}
    assert Publisher(away).publish_grading(7, samples) == 0
    away.close()


def test_suspects_are_left_to_upkeep_which_sends_them_one_by_one(app: Celery) -> None:
    suspects = [waiting(i, is_suspect=True) for i in (1, 2)]
    Publisher(app).publish(suspects)
    assert read(app, "small.m") == []
    Publisher(app).publish_alone(suspects)
    assert [message["message"]["samples"] for message in read(app, "small.m")] == [[[1, 4]], [[2, 4]]]  # type: ignore[index]
