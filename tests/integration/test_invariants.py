"""The invariants of a job: found whole after real writers and graders did their work, whatever happened to them, and
found broken wherever one thing is changed by hand."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import Connection, text
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import InternalError

from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.db.invariants import check_job, snapshot
from pipeline.db.job_control import cancel_job, cancel_samples, retry_cut, select_cut
from pipeline.db.session import open_database, transaction
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.db.upkeep_statements import admit_samples, close_jobs, overdue_samples
from pipeline.db.worker_leases import Registration, end_worker, put_engine, register_worker
from pipeline.embedded import Connections
from pipeline.errors import NotFound
from pipeline.jobs.config import JobConfig, JobState, ModelSpec, SamplingSpec
from pipeline.policies import PolicySpec, parse_policy
from pipeline.policies.exits import AnyExitSpec
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.speculative_thinking.improved import SpeculativeThinkingSpec
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.results.promises import INVARIANTS, MAX_SHOWN, Invariant, Violation
from pipeline.samples import ModelRole, SampleState
from pipeline.workforce import WorkerEnd, WorkerKind
from tests.conftest import TEMPLATE, with_database
from tests.integration.lapses import settle_lapsed
from tests.integration.rows import count_ended
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.engine.base import GenerateRequest
from workers.engine.scripted import Script, ScriptedEngine
from workers.grading.grader import SampleGrader
from workers.writing.store import Identity
from workers.writing.writer import Writer

CHAT = ChatModel.load(Path(__file__).parents[2] / "examples" / "models" / "demo-small")
STEPS = "".join(f"Step {number} is done.\n\nSecond thoughts about it.\n\nThird time.\n\n" for number in range(4))
SOLUTION = CHAT.encode_text(f"{STEPS}</think>\n\nThe answer is \\boxed{{2}}.")
EAGER = SpeculativeThinkingSpec(
    cues=CueLists(verify=("third",), negative=("second",), positive=("result",)), n1=7, n2=15, n3=15, n3_max=20,
    threshold=2, threshold_max=4, handback="tokens",
)  # fmt: skip
PROBLEMS = tuple(
    Problem(external_id=f"p{number}", prompt=f"What is 1+{number}?", answer=f"{number + 1}", hidden={"source": "sums"})
    for number in range(3)
)


def go_on(request: GenerateRequest) -> Iterable[int]:
    """The same solution whoever writes it, from where it is."""
    for problem in PROBLEMS:
        prompt_ids = CHAT.prompt_ids(render_user_message("math", problem))
        if list(request.prompt_ids[: len(prompt_ids)]) == prompt_ids:
            return SOLUTION[len(request.prompt_ids) - len(prompt_ids) :]
    raise KeyError("not one of the problems")


@dataclass
class Member:
    """A writer as its worker process would have it, without a heartbeat."""

    writer: Writer
    engine: ScriptedEngine
    worker_id: int

    def say_goodbye(self, db_engine: DbEngine) -> None:
        self.writer.close()
        with transaction(db_engine) as connection:
            end_worker(connection, self.worker_id, self.writer.counters().closed(), reason=WorkerEnd.STOPPED)
        self.engine.close()


def hire(
    db_engine: DbEngine, role: ModelRole, *, step_s: float = 0.0, script: Script = go_on, store_every_s: float = 0.0
) -> Member:
    with transaction(db_engine) as connection:
        engine_id = put_engine(
            connection, kind="scripted", version="1", model=role.value, model_fingerprint=CHAT.fingerprint,
            vocabulary_sha256=CHAT.vocabulary_sha256, settings={},
        )  # fmt: skip
        worker_id = register_worker(
            connection,
            Registration(
                kind=WorkerKind(role.value), model=role.value, engine_id=engine_id, host="here", pid=1,
                queue=f"{role.value}.own", max_in_flight=64, ttl=dt.timedelta(minutes=5),
            ),
        )  # fmt: skip
    engine = ScriptedEngine(script, CHAT.decode_stream, step_s=step_s, max_model_len=2048, max_in_flight=64)
    writer = Writer(
        role=role,
        engine=engine,
        chat=CHAT,
        db_engine=db_engine,
        publisher=Publisher(Celery("test", broker="memory://", set_as_current=False)),
        identity=Identity(worker_id=worker_id, engine_id=engine_id),
        on_failure=lambda reason: None,
        store_every_s=store_every_s,
    )
    return Member(writer, engine, worker_id)


def submit(
    db_engine: DbEngine,
    *,
    policy: PolicySpec = EAGER,
    max_tokens: int = 400,
    first_role: ModelRole = ModelRole.SMALL,
    exit: AnyExitSpec | None = None,
) -> int:
    problem_set = ProblemSet(name="sums", content_sha256=content_sha256(PROBLEMS), problems=PROBLEMS)
    config = JobConfig(
        small=ModelSpec(name="small"), large=ModelSpec(name="large"), judge=ModelSpec(name="judge"), policy=policy,
        exit=exit, num_samples=2, sampling=SamplingSpec(max_tokens=max_tokens),
    )  # fmt: skip
    with transaction(db_engine) as connection:
        return insert_job(
            connection, name="job", policy=policy.name, problem_set_id=put_problem_set(connection, problem_set),
            num_problems=len(PROBLEMS), config=config, first_role=first_role, versions={},
        )  # fmt: skip


def waiting(db_engine: DbEngine) -> dict[SampleState, list[SamplesMessage]]:
    """A message for every sample that waits for somebody."""
    with transaction(db_engine) as connection:
        admit_samples(connection, ahead=1.0)
        samples = overdue_samples(connection, age=dt.timedelta(0))
    messages: dict[SampleState, list[SamplesMessage]] = {}
    for sample in samples:
        message = SamplesMessage(job_id=sample.job_id, samples=[(sample.sample_id, sample.epoch)])
        messages.setdefault(sample.state, []).append(message)
    return messages


def work(db_engine: DbEngine, small: Member, large: Member) -> None:
    """Hand out whatever waits until nothing does, then end the jobs."""
    while messages := waiting(db_engine):
        for state, member in ((SampleState.READY, small), (SampleState.AWAITING_LARGE, large)):
            for message in messages.get(state, []):
                member.writer.write(message)
        for message in messages.get(SampleState.FINISHED, []):
            SampleGrader(db_engine, time_limit_s=20).grade(message)
    with transaction(db_engine) as connection:
        close_jobs(connection)
        count_ended(connection)


def die_while_writing(db_engine: DbEngine, small: Member) -> None:
    """A worker that has begun on all that waits is taken for dead; what it still writes comes too late."""
    messages = waiting(db_engine)[SampleState.READY]
    threads = [threading.Thread(target=small.writer.write, args=(message,)) for message in messages]
    for thread in threads:
        thread.start()
    while len(small.writer.in_flight()) < len(messages):
        assert any(thread.is_alive() for thread in threads)
    with transaction(db_engine) as connection:
        lapsed = text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s' WHERE id = :worker")
        connection.execute(lapsed, {"worker": small.worker_id})
        settled = settle_lapsed(connection)
        assert settled is not None
        assert settled.rescued == len(messages)
    for thread in threads:
        thread.join(timeout=60)
    small.writer.close()
    small.engine.close()


def draw_again(db_engine: DbEngine, job: int) -> None:
    """Give those that their budget has cut a larger one."""
    with transaction(db_engine) as connection:
        cut = select_cut(connection, job, max_tokens=400)
        assert retry_cut(connection, job, cut, max_tokens=400) > 0


def fill(db_engine: DbEngine) -> dict[str, int]:
    """Jobs that real workers wrote, by what happened to them; the first one is the one that tests break."""
    small, large = hire(db_engine, ModelRole.SMALL), hire(db_engine, ModelRole.LARGE)
    jobs = {
        "done": submit(db_engine),
        "cut": submit(db_engine, max_tokens=30),
        "redrawn": submit(db_engine, max_tokens=30),
    }
    work(db_engine, small, large)
    draw_again(db_engine, jobs["redrawn"])
    work(db_engine, small, large)
    small.say_goodbye(db_engine)

    jobs["rescued"] = submit(db_engine, policy=parse_policy("small-only"))
    die_while_writing(db_engine, hire(db_engine, ModelRole.SMALL, step_s=0.02))
    small = hire(db_engine, ModelRole.SMALL)
    work(db_engine, small, large)

    jobs["waiting"] = submit(db_engine)
    for message in waiting(db_engine)[SampleState.READY]:
        small.writer.write(message)
    jobs["cancelled"] = submit(db_engine)
    for message in waiting(db_engine)[SampleState.READY]:
        small.writer.write(message)
    with transaction(db_engine) as connection:
        cancel_job(connection, jobs["cancelled"])
        assert cancel_samples(connection, jobs["cancelled"]) > 0
    for member in (small, large):
        member.say_goodbye(db_engine)
    jobs["pending"] = submit(db_engine)
    with transaction(db_engine) as connection:
        settle_lapsed(connection)
    return jobs


@dataclass(frozen=True)
class Filled:
    db_engine: DbEngine
    jobs: dict[str, int]
    environment: dict[str, str]
    """Of a command that is to find this database."""


@pytest.fixture(scope="module")
def filled(servers: Connections) -> Iterator[Filled]:
    name = "invariants"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    url = with_database(servers.database_url, name)
    db_engine = open_database(url)
    environment = {
        "SPECTHINK_DATABASE_URL": url.get_secret_value(),
        "SPECTHINK_REDIS_URL": servers.redis_url.get_secret_value(),
    }
    yield Filled(db_engine, fill(db_engine), environment)
    db_engine.dispose()
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


@contextmanager
def broken(filled: Filled, *statements: str) -> Iterator[Connection]:
    """The database with something changed behind its triggers' back, for as long as it is looked at."""
    with filled.db_engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            done = connection.execute(text(statement), {"job": filled.jobs["done"]} if ":job" in statement else {})
            assert done.rowcount != 0, f"changed nothing: {statement}"
        yield connection
        connection.rollback()


def found_in(filled: Filled, *statements: str, job: str = "done") -> list[Violation]:
    with broken(filled, *statements) as connection:
        return check_job(connection, filled.jobs[job])


def test_every_invariant_has_its_sentence() -> None:
    assert list(INVARIANTS) == list(Invariant)


def test_jobs_of_real_workers_keep_every_invariant(filled: Filled) -> None:
    with snapshot(filled.db_engine) as connection:
        found = {name: check_job(connection, job) for name, job in filled.jobs.items()}
        states = {row.id: row.state for row in connection.execute(text("SELECT id, state FROM jobs"))}
        withdrawn = connection.execute(text("SELECT sum(tokens_withdrawn) FROM workers")).scalar_one()
        authors = connection.execute(text("SELECT DISTINCT author FROM segments")).scalars().all()
    assert found == {name: [] for name in filled.jobs}
    assert {name: states[job] for name, job in filled.jobs.items()} == {
        "done": JobState.COMPLETED,
        "cut": JobState.COMPLETED,
        "redrawn": JobState.COMPLETED,
        "rescued": JobState.COMPLETED,
        "waiting": JobState.RUNNING,
        "cancelled": JobState.CANCELLED,
        "pending": JobState.RUNNING,
    }
    assert {"small", "large"} <= set(authors)
    assert withdrawn > 0


SOME = "(SELECT min(id) FROM samples WHERE job_id = :job)"
SOLE = "(SELECT min(problem_id) FROM samples WHERE job_id = :job)"
MINE = "sample_id IN (SELECT id FROM samples WHERE job_id = :job)"
WRITERS = f"(SELECT worker_id FROM segments WHERE sample_id = {SOME})"
LAST = f"(SELECT max(id) FROM events WHERE sample_id = {SOME})"
CLAIM = f"(SELECT max(id) FROM events WHERE sample_id = {SOME} AND to_state = 'drafting')"
GIVE_ANSWERS = """
    UPDATE problems p SET shown = p.shown || jsonb_build_object('{column}', {value})
    FROM reference_answers r, jobs j WHERE r.problem_id = p.id AND p.problem_set_id = j.problem_set_id AND j.id = :job
"""
ANSWER = r"UPDATE reference_answers SET answer = '\frac{1234}{5678}' WHERE problem_id = " + SOLE
WORKED = "one and one more of the same kind make two of them"
HIDE = f"""
    UPDATE hidden_columns SET columns = columns || jsonb_build_object('{{column}}', '{WORKED}')
    WHERE problem_id = {SOLE}
"""
HOLD = """
    UPDATE samples SET state = 'drafting', epoch = epoch + 1, holder_id = {holder}, ended_at = NULL WHERE id = {sample}
"""

BREAKS: list[tuple[Invariant, str, list[str]]] = [
    (Invariant.ROWS, "has 1 samples, numbered 1 to 1, instead of 0 to 1", [f"DELETE FROM samples WHERE id = {SOME}"]),
    (
        Invariant.ROWS,
        "has 2 samples, numbered 0 to 0",
        [
            "ALTER TABLE samples DROP CONSTRAINT uq_samples_job_id_problem_id_sample_index",
            f"UPDATE samples SET sample_index = 0 WHERE job_id = :job AND problem_id = {SOLE}",
        ],
    ),
    (Invariant.ROWS, "which its job does not ask", ["UPDATE jobs SET num_problems = num_problems - 1 WHERE id = :job"]),
    (Invariant.ROWS, "its set has 3 of them", ["UPDATE jobs SET num_problems = num_problems + 1 WHERE id = :job"]),
    (
        Invariant.ROWS,
        "is completed with 1 open, 5 graded",
        [f"UPDATE samples SET state = 'finished', ended_at = NULL WHERE id = {SOME}"],
    ),
    (
        Invariant.ROWS,
        "is cancelled with 1 open",
        [
            f"UPDATE samples SET state = 'finished', ended_at = NULL WHERE id = {SOME}",
            "UPDATE jobs SET state = 'cancelled', finished_at = now() - interval '10 minutes' WHERE id = :job",
        ],
    ),
    (
        Invariant.ROWS,
        "is completed with 0 open, 5 graded, 1 failed",
        [f"UPDATE samples SET state = 'failed', error = 'broken' WHERE id = {SOME}"],
    ),
    (
        Invariant.ROWS,
        "no grading of it has ended",
        [f"UPDATE grades SET status = 'running', graded_at = NULL WHERE sample_id = {SOME}"],
    ),
    (
        Invariant.SEGMENTS,
        "and has",
        [f"DELETE FROM segments WHERE sample_id = {SOME} AND segment_index = 1"],
    ),
    (Invariant.SEGMENTS, "and has", [f"DELETE FROM segments WHERE sample_id = {SOME}"]),
    (Invariant.SEGMENTS, "ids", [f"UPDATE samples SET tokens_large = tokens_large + 1 WHERE id = {SOME}"]),
    (
        Invariant.SEGMENTS,
        "lengths of",
        [f"UPDATE segments SET text = text || 'x' WHERE sample_id = {SOME} AND segment_index = 0"],
    ),
    (
        Invariant.SEGMENTS,
        "lengths of",
        [f"UPDATE segments SET token_ids = token_ids[2:] WHERE sample_id = {SOME} AND segment_index = 0"],
    ),
    (Invariant.SEGMENTS, "its steps joined", [f"UPDATE steps SET text = upper(text) WHERE sample_id = {SOME}"]),
    (Invariant.SEGMENTS, "steps, numbered", [f"DELETE FROM steps WHERE sample_id = {SOME} AND step_index = 1"]),
    (Invariant.SEGMENTS, "its steps joined", [f"DELETE FROM steps WHERE sample_id = {SOME}"]),
    (
        Invariant.SEGMENTS,
        "its steps have",
        [f"UPDATE steps SET tokens_small = tokens_small + 1 WHERE sample_id = {SOME} AND step_index = 0"],
    ),
    (
        Invariant.CLAIMS,
        "which nobody claimed",
        [f"UPDATE segments SET epoch = epoch + 100 WHERE sample_id = {SOME} AND segment_index = 0"],
    ),
    (
        Invariant.CLAIMS,
        "claimed",
        [
            f"UPDATE segments SET worker_id = (SELECT max(id) FROM workers) WHERE sample_id = {SOME} "
            "AND segment_index = 0"
        ],
    ),
    (
        Invariant.CLAIMS,
        "which was claimed 2 times",
        [
            "INSERT INTO events (job_id, sample_id, from_state, to_state, epoch, worker_id) "
            f"SELECT job_id, sample_id, from_state, to_state, epoch, worker_id FROM events WHERE id = {CLAIM}"
        ],
    ),
    (
        Invariant.CLAIMS,
        "claimed for the small model",
        [f"UPDATE segments SET author = 'large' WHERE sample_id = {SOME} AND author = 'small'"],
    ),
    (
        Invariant.CLAIMS,
        "whose claim ended without a commit",
        [f"UPDATE events SET epoch = epoch + 1 WHERE sample_id = {SOME} AND id > {CLAIM}"],
    ),
    (
        Invariant.CLAIMS,
        "what is before it at",
        [
            f"""
            UPDATE segments g SET epoch = CASE g.epoch WHEN c.low THEN c.high ELSE c.low END
            FROM (SELECT min(epoch) AS low, max(epoch) AS high FROM segments
                  WHERE sample_id = {SOME} AND author = 'small') c
            WHERE sample_id = {SOME} AND g.epoch IN (c.low, c.high)
            """
        ],
    ),
    (
        Invariant.CLAIMS,
        "which ended and was settled",
        [HOLD.format(sample=SOME, holder="(SELECT min(id) FROM workers WHERE settled_at IS NOT NULL)")],
    ),
    (
        Invariant.CLAIMS,
        "is blamed for the deaths of its workers (engine_died) and was last alone in an engine at epoch - of",
        [
            "UPDATE samples SET state = 'failed', error_class = 'engine_died', error = 'e', epoch = epoch + 1 "
            f"WHERE id = {SOME}"
        ],
    ),
    (
        Invariant.SEGMENTS,
        "counts 3 tokens of segment 0 in parts and has 2, with a gap",
        [
            f"UPDATE samples SET part_tokens = 3, num_segments = 0 WHERE id = {SOME}",
            *(
                "INSERT INTO segment_parts (sample_id, segment_index, start_token, token_ids, epoch, worker_id) "
                f"SELECT {SOME}, 0, {start}, '{{7}}', 1, min(id) FROM workers"
                for start in (0, 2)
            ),
        ],
    ),
    (
        Invariant.TOKENS,
        "tokens generated by",
        [f"UPDATE segments SET resumed_at = '{{1}}' WHERE sample_id = {SOME} AND segment_index = 0"],
    ),
    (
        Invariant.CLAIMS,
        "a large worker",
        [
            "UPDATE workers SET settled_at = NULL",
            HOLD.format(sample=SOME, holder="(SELECT min(id) FROM workers WHERE kind = 'large')"),
        ],
    ),
    (
        Invariant.TOKENS,
        "tokens generated by small",
        [f"UPDATE segments SET tokens_generated = tokens_generated + 1 WHERE sample_id = {SOME} AND segment_index = 0"],
    ),
    (
        Invariant.TOKENS,
        "its segments have",
        [f"UPDATE samples SET discarded_small = discarded_small + 1 WHERE id = {SOME}"],
    ),
    (
        Invariant.TOKENS,
        "its segments have",
        [f"UPDATE samples SET tokens_small = tokens_small + 1, tokens_large = tokens_large - 1 WHERE id = {SOME}"],
    ),
    (Invariant.TOKENS, "its summary says", ["UPDATE job_totals SET takeovers = takeovers + 1 WHERE job_id = :job"]),
    (
        Invariant.TOKENS,
        "stopped; booked",
        [f"UPDATE workers SET tokens_committed = tokens_committed - 1, tokens_dropped = 1 WHERE id IN {WRITERS}"],
    ),
    (
        Invariant.TOKENS,
        "stopped; booked",
        [f"UPDATE workers SET tokens_generated = tokens_generated + 1 WHERE id IN {WRITERS}"],
    ),
    (
        Invariant.TOKENS,
        "lapsed; booked",
        [
            "UPDATE workers SET end_reason = 'lapsed', tokens_committed = tokens_committed + 1, "
            f"tokens_generated = tokens_generated + 1 WHERE id IN {WRITERS}"
        ],
    ),
    (
        Invariant.TOKENS,
        "1 of them withdrawn",
        [f"UPDATE workers SET tokens_withdrawn = 1 WHERE id IN {WRITERS}"],
    ),
    (Invariant.EVENTS, "follows a move to", [f"DELETE FROM events WHERE id = {CLAIM}"]),
    (
        Invariant.EVENTS,
        "follows a move to pending",
        [f"DELETE FROM events WHERE sample_id = {SOME} AND to_state = 'ready' AND from_state = 'pending'"],
    ),
    (Invariant.EVENTS, "is no legal move", [f"UPDATE events SET from_state = 'graded' WHERE id = {CLAIM}"]),
    (Invariant.EVENTS, "follows epoch", [f"UPDATE events SET epoch = 0 WHERE id = {LAST}"]),
    (Invariant.EVENTS, "did not raise epoch", [f"UPDATE events SET epoch = epoch - 1 WHERE id = {CLAIM}"]),
    (Invariant.EVENTS, "is a claim of nobody", [f"UPDATE events SET worker_id = NULL WHERE id = {CLAIM}"]),
    (Invariant.EVENTS, "the event log ends with finished", [f"DELETE FROM events WHERE id = {LAST}"]),
    (Invariant.EVENTS, "the event log ends with no event", [f"DELETE FROM events WHERE sample_id = {SOME}"]),
    (Invariant.EVENTS, "at epoch 0, held by nobody", [f"UPDATE samples SET epoch = 0 WHERE id = {SOME}"]),
    (
        Invariant.EVENTS,
        "which is not of this job",
        ["UPDATE events SET job_id = :job WHERE sample_id = (SELECT max(id) FROM samples WHERE job_id < :job + 2)"],
    ),
    (
        Invariant.EVENTS,
        "the event log ends with running",
        ["DELETE FROM events WHERE job_id = :job AND sample_id IS NULL"],
    ),
    (
        Invariant.EVENTS,
        "is no legal move",
        ["UPDATE events SET from_state = 'cancelled' WHERE job_id = :job AND sample_id IS NULL"],
    ),
    (Invariant.ANSWERS, "of 3 problems out of 3", [GIVE_ANSWERS.format(column="gold", value="r.answer")]),
    (
        Invariant.ANSWERS,
        "column solution",
        [GIVE_ANSWERS.format(column="solution", value=r"'It is $\boxed{' || r.answer || '}$, as shown.'")],
    ),
    (
        Invariant.ANSWERS,
        "shows its hidden column source",
        ['UPDATE problems SET shown = shown || \'{"source": "sums"}\' WHERE id = ' + SOLE],
    ),
    (
        Invariant.ANSWERS,
        "has the text of its hidden column Rationale where generating workers read",
        [HIDE.format(column="Rationale"), f"UPDATE problems SET prompt = 'Note: {WORKED}' WHERE id = " + SOLE],
    ),
    (
        Invariant.ANSWERS,
        "has the text of its hidden column canonical_solution where generating workers read",
        [
            HIDE.format(column="canonical_solution"),
            f"UPDATE problems SET shown = jsonb_build_object('choices', ARRAY['{WORKED}', '2']) WHERE id = " + SOLE,
        ],
    ),
    (Invariant.ANSWERS, "job", [ANSWER, r"UPDATE jobs SET name = 'is it \frac{1234}{5678}?' WHERE id = :job"]),
    (
        Invariant.ANSWERS,
        "engine",
        [ANSWER, r"""UPDATE engines SET settings = jsonb_build_object('note', 'is it \frac{1234}{5678}?')"""],
    ),
    (
        Invariant.ANSWERS,
        "worker",
        [ANSWER, rf"UPDATE workers SET host = '\frac{{1234}}{{5678}}' WHERE id IN {WRITERS}"],
    ),
]


@pytest.mark.parametrize(("invariant", "told", "statements"), BREAKS)
def test_one_thing_that_is_wrong_is_found(
    filled: Filled, invariant: Invariant, told: str, statements: list[str]
) -> None:
    found = [violation for violation in found_in(filled, *statements) if violation.invariant is invariant]
    assert any(told in f"{violation.where}: {violation.what}" for violation in found), found


def test_thing_that_is_wrong_with_one_job_is_not_another_ones(filled: Filled) -> None:
    changed = f"UPDATE samples SET discarded_small = discarded_small + 1 WHERE id = {SOME}"
    assert found_in(filled, changed, job="rescued") == []


@pytest.mark.parametrize(
    "statements",
    [
        # the row of a worker that was killed says what it had committed at its last heartbeat
        [f"UPDATE workers SET end_reason = 'lapsed', tokens_committed = 1, tokens_generated = 2 WHERE id IN {WRITERS}"],
        # one of three answers is "2", and so is one of the options
        [GIVE_ANSWERS.format(column="A", value="'2'")],
        # a set that publishes its question twice
        [HIDE.format(column="context"), f"UPDATE problems SET prompt = 'Note: {WORKED}' WHERE id = " + SOLE],
        # a word that is an answer to some question is not there because of it
        [
            f"UPDATE reference_answers SET answer = 'reflection' WHERE problem_id = {SOLE}",
            "UPDATE jobs SET name = 'on reflection' WHERE id = :job",
        ],
        [
            "UPDATE jobs SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = :job",
            "UPDATE events SET to_state = 'cancelled' WHERE job_id = :job AND sample_id IS NULL",
        ],
    ],
    ids=["counters of a killed worker", "an option", "a question told twice", "a common word", "a cancel under way"],
)
def test_what_may_be_so_is_not_called_wrong(filled: Filled, statements: list[str]) -> None:
    assert found_in(filled, *statements) == []


def test_many_violations_are_counted_and_the_first_are_listed(filled: Filled) -> None:
    wrong = f"UPDATE segments SET tokens_generated = tokens_generated + 1 WHERE {MINE}"
    with broken(filled, wrong) as connection:
        num_segments = connection.execute(
            text(f"SELECT count(*) FROM segments WHERE {MINE}"), {"job": filled.jobs["done"]}
        )
        total = num_segments.scalar_one()
        found = [v for v in check_job(connection, filled.jobs["done"]) if v.invariant is Invariant.TOKENS]
    assert total > MAX_SHOWN
    assert len(found) == MAX_SHOWN + 1
    num_workers = 2
    assert found[-1].what == f"{total + num_workers - MAX_SHOWN} more that are not listed"


def test_check_sees_one_moment_and_writes_nothing(filled: Filled) -> None:
    with snapshot(filled.db_engine) as connection:
        assert check_job(connection, filled.jobs["waiting"]) == []
        with transaction(filled.db_engine) as other:
            other.execute(text("UPDATE samples SET discarded_small = discarded_small + 1"))
        assert check_job(connection, filled.jobs["waiting"]) == []
        with pytest.raises(InternalError, match="read-only transaction"):
            connection.execute(text("UPDATE samples SET epoch = epoch + 1"))
    with transaction(filled.db_engine) as connection:
        assert len(check_job(connection, filled.jobs["waiting"])) == len(PROBLEMS) * 2
    with transaction(filled.db_engine) as connection:
        connection.execute(text("UPDATE samples SET discarded_small = discarded_small - 1"))


def test_job_that_there_is_not_is_said_to_be_unknown(filled: Filled) -> None:
    with snapshot(filled.db_engine) as connection, pytest.raises(NotFound, match="no job 999; specthink status"):
        check_job(connection, 999)


def doctor(filled: Filled, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "doctor", *arguments]
    environment = os.environ | filled.environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_doctor_says_of_a_job_that_all_is_well_or_where_it_is_not(filled: Filled) -> None:
    done, rescued = str(filled.jobs["done"]), str(filled.jobs["rescued"])
    well = doctor(filled, "--job", done, "--job", rescued)
    assert (well.returncode, well.stderr) == (0, "")
    assert well.stdout.count("ok  ") == 2 * len(Invariant)

    one_of = text("UPDATE samples SET discarded_small = discarded_small + :n WHERE id = :sample")
    with transaction(filled.db_engine) as connection:
        sample = connection.execute(text("SELECT min(id) FROM samples WHERE job_id = :job"), {"job": done}).scalar_one()
        connection.execute(one_of, {"n": 1, "sample": sample})
    try:
        shown, as_json = doctor(filled, "--job", done), doctor(filled, "--json", "--job", done, "--job", rescued)
    finally:
        with transaction(filled.db_engine) as connection:
            connection.execute(one_of, {"n": -1, "sample": sample})
    assert (shown.returncode, as_json.returncode) == (1, 1)
    assert f"sample {sample}" in shown.stdout
    first, second = json.loads(as_json.stdout)
    assert {violation["invariant"] for violation in first["violations"]} == {"tokens"}
    assert second == {"job_id": int(rescued), "violations": [], "unchecked": []}


def test_doctor_does_not_know_a_job_that_there_is_not(filled: Filled) -> None:
    unknown = doctor(filled, "--job", "999")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "there is no job 999" in unknown.stderr


def test_batch_that_does_not_account_for_its_lines_is_found(filled: Filled) -> None:
    batch = (
        "INSERT INTO files (id, purpose, filename, num_bytes, sha256, request_sha256) "
        "VALUES ('file-1', 'batch', 'r.jsonl', 2, 'a', 'b')",
        "INSERT INTO batches (id, input_file_id, endpoint, completion_window, options, request_sha256, num_lines, "
        "num_completed, num_failed, in_progress_at, completed_at) "
        "VALUES ('batch_1', 'file-1', '/v1/chat/completions', '24h', '{}', 'a', 3, 3, 0, now(), now())",
        "INSERT INTO batch_jobs VALUES ('batch_1', :job, 'pair')",
    )
    with broken(filled, *batch) as connection:
        assert check_job(connection, filled.jobs["done"]) == []
    wrong = (
        "UPDATE batches SET num_lines = 4, num_failed = 1",
        "UPDATE batches SET num_completed = 2, num_failed = 1",
        "UPDATE samples SET state = 'failed', error = 'x' WHERE id = (SELECT max(id) FROM samples WHERE job_id = :job)",
    )
    for statement in wrong:
        with broken(filled, *batch, statement) as connection:
            found = check_job(connection, filled.jobs["done"])
        assert "batch_1" in {violation.where for violation in found if violation.invariant is Invariant.ROWS}
