"""Anything on any queue and any broadcast: refused, logged without its content and dropped; real workers go on."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import Engine, text

from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections, stop
from pipeline.local import LocalStack, start_local
from pipeline.settings import Settings
from tests.integration.rows import add_job, add_problem_set, add_samples
from workers.broker import queues
from workers.broker.app import make_app
from workers.broker.messages import MAX_SAMPLES, SamplesMessage
from workers.broker.publish import FOLLOW, GRADE, Publisher
from workers.grading.grader import SampleGrader

pytestmark = pytest.mark.timeout(300)

PATIENCE_S = 60.0
CONTENT = "hostile-content-5e1d"
"""In every hostile message, and in no log."""
Message = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Workers without a model: graders (prefork) and upkeep (threads), the two ways of reading a queue."""

    stack: LocalStack
    broker: redis.Redis
    app: Celery
    db_engine: Engine

    def pids(self) -> dict[str, int | None]:
        return {program.name: program.pid for program in self.stack.state.program_states()}

    def log(self, program: str) -> str:
        [path] = [state.log_path for state in self.stack.state.program_states() if state.name == program]
        return path.read_text(errors="replace")

    def refusals(self, program: str) -> int:
        return self.log(program).count("message refused")

    def answering(self) -> set[str]:
        """The workers that hear broadcasts."""
        return {name.split("@")[0] for reply in self.app.control.ping(timeout=1) for name in reply}

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, (
                f"{what} did not happen; {self.log('grade')[-1500:]} {self.log('upkeep')[-1500:]}"
            )
            time.sleep(0.05)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    state_dir = tmp_path_factory.mktemp("hostile") / "state"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPECTHINK_UPKEEP__REPUBLISH_AFTER_S", "1")
        stack = start_local(Settings(state_dir=state_dir), flower=False, die_with_parent=True)
    connections = stack.state.connections
    db_engine = open_database(connections.database_url)
    with redis.Redis.from_url(connections.redis_url.get_secret_value()) as broker:
        target = Target(stack, broker, make_app(connections.redis_url), db_engine)
        target.wait_for(lambda: target.answering() == {"grade", "upkeep"}, "an answer from both workers")
        yield target
    db_engine.dispose()
    stop(state_dir)


def genuine(target: Target, task: str) -> Message:
    """A message as our own publisher sends it, for a job that does not exist."""
    payload: Message = {"version": 1, "job_id": 7}
    payload |= {"samples": [[1, 0]]} if task == GRADE else {}
    target.app.send_task(task, kwargs={"message": payload}, queue="captured", argsrepr="", kwargsrepr="job 7")
    raw = target.broker.rpop("captured") or target.broker.rpop("captured\x06\x166")
    assert isinstance(raw, bytes)
    message: Message = json.loads(raw)
    message["properties"]["delivery_info"]["routing_key"] = {GRADE: queues.GRADE, FOLLOW: queues.UPKEEP}[task]
    return message


def with_body(message: Message, body: object) -> Message:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {**message, "body": base64.b64encode(raw).decode()}


def changed(message: Message, path: str, value: object) -> Message:
    """A copy with one field, named like headers.eta, set to another value."""
    copied = copy.deepcopy(message)
    *parts, last = path.split(".")
    place = copied
    for part in parts:
        place = place[part]
    place[last] = value
    return copied


def without(message: Message, path: str) -> Message:
    copied = changed(message, path, None)
    *parts, last = path.split(".")
    place = copied
    for part in parts:
        place = place[part]
    del place[last]
    return copied


class Opened:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}  # {CONTENT}",)


def hostile_messages(good: Message, tell_tale: Path) -> dict[str, bytes]:
    """By what is wrong with each."""
    args, kwargs, embed = json.loads(base64.b64decode(good["body"]))
    inner = kwargs["message"]
    signature: Message = {"task": "draft", "args": [CONTENT], "kwargs": {}, "options": {}, "subtask_type": None}
    yaml = f"!!python/object/apply:os.system ['touch {tell_tale}']".encode()
    wrong: dict[str, Message] = {
        "pickle": with_body(
            {**good, "content-type": "application/x-python-serialize", "content-encoding": "binary"},
            pickle.dumps(Opened(tell_tale)),
        ),
        "yaml": with_body({**good, "content-type": "application/x-yaml"}, yaml),
        "pickle that says JSON": with_body(good, pickle.dumps(Opened(tell_tale))),
        "compressed": changed(good, "headers.compression", "application/x-gzip"),
        "body that is no base64": {**good, "body": f"%%{CONTENT}%%"},
        "body that is no UTF-8": with_body(good, b"\xff\xfe" + CONTENT.encode()),
        "body that is no JSON": with_body(good, CONTENT.encode()),
        "body nested deeply": with_body(good, b"[" * 8000),
        "body of another shape": with_body(good, {"args": [CONTENT]}),
        "positional arguments": with_body(good, [[CONTENT], kwargs, embed]),
        "another argument": with_body(good, [args, {**kwargs, CONTENT: 1}, embed]),
        "no argument": with_body(good, [args, {}, embed]),
        "callback": with_body(good, [args, kwargs, {**embed, "callbacks": [signature]}]),
        "errback": with_body(good, [args, kwargs, {**embed, "errbacks": [signature]}]),
        "chain": with_body(good, [args, kwargs, {**embed, "chain": [signature]}]),
        "protocol 1": with_body({**good, "headers": {}}, {"task": good["headers"]["task"], "id": CONTENT, **inner}),
        "unknown task": changed(good, "headers.task", CONTENT),
        "task of other workers": changed(good, "headers.task", "draft"),
        "task of Celery's own": changed(good, "headers.task", "celery.backend_cleanup"),
        "task without a name": without(good, "headers.task"),
        "task without an id": without(good, "headers.id"),
        "unknown header": changed(good, "headers.hostile", CONTENT),
        "marked object": changed(good, "headers.stamps", {"__type__": "uuid", "__value__": CONTENT}),
        "in a year": changed(good, "headers.eta", "2099-01-01T00:00:00+00:00"),
        "bad time": changed(good, "headers.eta", CONTENT),
        "long gone": changed(good, "headers.expires", "2001-01-01T00:00:00+00:00"),
        "time limit": changed(good, "headers.timelimit", [1e-9, 1e-9]),
        "retry": changed(good, "headers.retries", 10**6),
        "headers of another type": {**good, "headers": CONTENT},
        "no headers": without(good, "headers"),
        "no properties": without(good, "properties"),
        "no delivery tag": without(good, "properties.delivery_tag"),
        "priority of another type": changed(good, "properties.priority", CONTENT),
        "unknown field": {**good, "hostile": CONTENT},
    }
    payloads: dict[str, object] = {
        "unknown payload field": {**inner, "answer": CONTENT},
        "job of another type": {**inner, "job_id": f"7; DROP TABLE jobs; {CONTENT}"},
        "job that is true": {**inner, "job_id": True},
        "job beyond an integer": {**inner, "job_id": 2**80},
        "job zero": {**inner, "job_id": 0},
        "another version": {**inner, "version": 2},
        "payload of another type": [CONTENT],
        "too many samples": {**inner, "samples": [[n, 0] for n in range(1, MAX_SAMPLES + 2)]},
        "samples of another type": {**inner, "samples": {CONTENT: 0}},
        "no samples": {**inner, "samples": []},
    }
    wrong |= {name: with_body(good, [args, {"message": payload}, embed]) for name, payload in payloads.items()}
    return {
        **{name: json.dumps(message).encode() for name, message in wrong.items()},
        "garbage": CONTENT.encode(),
        "nothing": b"",
        "bytes": bytes(range(256)) + CONTENT.encode(),
        "null": b"null",
        "list": json.dumps([CONTENT]).encode(),
        "number": b"1e999",
        "nested deeply": b"[" * 15_000,
        "nested objects": b'{"a":' * 2_500,
        "large": json.dumps({**good, "hostile": CONTENT * 40_000}).encode(),
        "cut short": json.dumps(good).encode()[:-40],
    }


@pytest.mark.parametrize(("queue", "task"), [(queues.GRADE, GRADE), (queues.UPKEEP, FOLLOW)])
def test_hostile_messages_are_dropped_and_the_worker_goes_on(
    target: Target, queue: str, task: str, tmp_path: Path
) -> None:
    tell_tale = tmp_path / "opened"
    messages = hostile_messages(genuine(target, task), tell_tale)
    pids, before = target.pids(), target.refusals(queue)
    for raw in messages.values():
        target.broker.lpush(queue, raw)
    target.broker.lpush(f"{queue}\x06\x166", *messages.values())
    target.wait_for(
        lambda: target.refusals(queue) == before + 2 * len(messages),
        f"refusal of {2 * len(messages)} messages by {queue} (not of {target.refusals(queue) - before})",
    )
    assert target.broker.llen(queue) == 0
    assert not tell_tale.exists()
    grade_something(target)
    assert target.pids() == pids
    for program in ("grade", "upkeep", "supervisord"):
        log = target.log(program) if program != "supervisord" else ""
        assert CONTENT not in log
        assert "Traceback" not in log


def grade_something(target: Target) -> None:
    """A sample that upkeep publishes and a grader grades, of a job that upkeep closes and is asked to show."""
    with transaction(target.db_engine) as connection:
        job = add_job(connection, add_problem_set(connection))
        add_samples(connection, job, [{"problem": 3, "state": "finished"}])
        connection.execute(text("UPDATE samples SET published_at = now() - interval '1 h', finished_at = now()"))

    def state() -> tuple[str, bool]:
        with transaction(target.db_engine) as connection:
            query = text("SELECT state, followed_at IS NOT NULL FROM jobs WHERE id = :job")
            row = connection.execute(query, {"job": job}).one()
        return row[0], row[1]

    target.wait_for(lambda: state()[0] == "completed", "grading of a sample")
    Publisher(target.app).publish_follow(job)
    target.wait_for(lambda: state()[1], "showing of a job")


def test_message_of_100_mb_is_not_even_stored(target: Target) -> None:
    payload = b"x" * 100_000_000
    with pytest.raises(redis.ConnectionError):
        target.broker.lpush(queues.GRADE, payload)
    with pytest.raises((OperationalError, redis.ConnectionError)):
        target.app.send_task(GRADE, kwargs={"message": "x" * 2_000_000}, queue=queues.GRADE, retry=False)
    assert target.broker.llen(queues.GRADE) == 0
    grade_something(target)


def test_workers_take_no_orders(target: Target) -> None:
    pids = target.pids()
    before = {program: target.refusals(program) for program in ("grade", "upkeep")}
    control = target.app.control
    control.broadcast("shutdown")
    control.broadcast("pool_restart", arguments={"reload": True, "modules": [CONTENT]})
    control.broadcast("pool_grow", arguments={"n": 50})
    control.broadcast("add_consumer", arguments={"queue": CONTENT})
    control.broadcast("cancel_consumer", arguments={"queue": queues.GRADE})
    control.broadcast("rate_limit", arguments={"task_name": GRADE, "rate_limit": "1/d"})
    control.broadcast("time_limit", arguments={"task_name": GRADE, "hard": 1e-9})
    control.broadcast("revoke", arguments={"task_id": CONTENT, "terminate": True})
    control.broadcast("disable_events")
    control.broadcast("no_such_order", arguments={"content": CONTENT})
    control.broadcast("ping", arguments={"content": CONTENT})
    control.broadcast("ping", pattern="(a+)+$", matcher="pcre")
    raw = [CONTENT.encode(), b"[" * 90_000, b"{}", b"\xff", json.dumps({"headers": {}, "properties": 1}).encode()]
    for message in raw:
        target.broker.publish("/0.celery.pidbox", message)
    for program in before:
        expected = before[program] + 12 + len(raw)
        target.wait_for(lambda p=program, n=expected: target.refusals(p) == n, f"refusal by {program}")  # type: ignore[misc]
    target.wait_for(lambda: target.answering() == {"grade", "upkeep"}, "an answer from both workers")
    assert target.pids() == pids
    assert not [program for program in before if CONTENT in target.log(program)]
    grade_something(target)


def test_unacknowledged_messages_that_somebody_changed_are_dropped(target: Target) -> None:
    tags: dict[Any, Any] = {
        f"tag-{n}": raw for n, raw in enumerate((b"[" * 90_000, CONTENT.encode(), b"{}", b"[1, 2, 3]"))
    }
    target.broker.hset("unacked", mapping=tags)
    target.broker.zadd("unacked_index", dict.fromkeys(tags, 1.0))
    pids = target.pids()
    deadline = time.monotonic() + 30
    with target.app.connection_for_read() as connection:
        while target.broker.hlen("unacked") and time.monotonic() < deadline:  # a worker may be at it, with its lock
            connection.default_channel.qos.restore_visible(interval=1)
            time.sleep(0.1)
    assert target.broker.hlen("unacked") == 0
    assert target.pids() == pids
    grade_something(target)


def test_sample_of_another_job_is_not_graded(connections: Connections, db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        problems = add_problem_set(connection)
        mine, other = add_job(connection, problems), add_job(connection, problems)
        [sample] = add_samples(connection, other, [{"state": "finished"}])
    message = SamplesMessage(job_id=mine, samples=[(sample, 0)])
    assert SampleGrader(db_engine, time_limit_s=20).grade(message) == "0 of 1 graded"
    assert (
        SampleGrader(db_engine, time_limit_s=20).grade(message.model_copy(update={"job_id": other})) == "1 of 1 graded"
    )


def test_our_own_messages_are_far_below_the_bound(target: Target) -> None:
    Publisher(target.app).publish_follow(2**62)
    largest = SamplesMessage(job_id=2**62, samples=[(2**62 + n, 2**31 - 1) for n in range(MAX_SAMPLES)])
    target.app.send_task(GRADE, kwargs={"message": largest.model_dump()}, queue="captured", kwargsrepr="x" * 500)
    raw = target.broker.rpop("captured") or target.broker.rpop("captured\x06\x166")
    assert isinstance(raw, bytes)
    assert len(raw) < 4_000
