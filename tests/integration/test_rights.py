"""Each worker's login may do what its statements need, and nothing else: statement by statement, right by right."""

from __future__ import annotations

import datetime as dt
import importlib
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from celery import Celery
from sqlalchemy import Connection, Engine, TextClause, make_url, text

from pipeline.chat.steps import Step
from pipeline.chat.translation import ThinkPhase
from pipeline.db.claims import (
    ClaimedSample,
    begin_trial,
    defer_samples,
    find_fitting_queue,
    find_misfit,
    held_epochs,
    release_samples,
)
from pipeline.db.commits import StoredRow, are_undone
from pipeline.db.grades import TextGrade, begin_grade, end_grade, running_grades, store_grades, time_out_grades
from pipeline.db.grants import grant_roles
from pipeline.db.job_configs import fix_identity, fix_think_phase, get_job_config
from pipeline.db.leadership import lead, resign
from pipeline.db.metrics import read_fleet
from pipeline.db.parts import OpenSegment, Part, store_parts
from pipeline.db.report_queries import select_progress
from pipeline.db.revision import require_current
from pipeline.db.rollups import Rollup, compact_lengths, postpone_rollup
from pipeline.db.session import open_database, session, transaction
from pipeline.db.upkeep_statements import mark_followed
from pipeline.db.worker_leases import (
    Registration,
    WorkerCounters,
    end_worker,
    finalize_counters,
    refuse_second_identity,
    register_worker,
    renew_worker,
    settle_late_tokens,
)
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from pipeline.jobs.config import ModelSpec
from pipeline.logins import DatabaseRole
from pipeline.policies.reading.cues import SentenceClass
from pipeline.samples import Author, GradeStatus, ModelRole, Piece, SampleState, SegmentFinish
from pipeline.segments import WrittenAside
from pipeline.settings import Settings
from pipeline.signals import Signal
from pipeline.workforce import WorkerKind
from tests.conftest import TEMPLATE, with_database
from tests.integration.rights import Recorded, everything_readable, recording, unneeded
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker
from tests.integration.test_protocol import TTL, claim, commit, make_job, make_worker, written
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.grading.grader import SampleGrader
from workers.upkeep.rollup_refresher import RollupRefresher
from workers.upkeep.rounds import Upkeep

SECRET = "ZQ-7f3a-the-answer"
WORKERS = (DatabaseRole.WRITER, DatabaseRole.GRADER, DatabaseRole.UPKEEP)
TRIED = (*WORKERS, DatabaseRole.MONITOR)
MODULES = (
    "claims", "commits", "context_cache", "grades", "job_configs", "leadership", "metrics", "parts", "rollups",
    "runnable", "totals", "upkeep_statements", "verdicts", "worker_leases",
)  # fmt: skip
"""Of pipeline.db: their statements are those that workers execute."""
OTHERS = {"grades._COMPLETE", "grades._REOPEN", "leadership._SELECT_LEADER", "verdicts._SELECT_JUDGE"}
"""Statements there that a person's login executes."""


@dataclass
class Worked:
    """A database in which each worker has executed all of its statements, with the rights of its role alone."""

    url: str
    owner: Engine
    recorded: dict[DatabaseRole, Recorded]


@pytest.fixture(scope="module")
def worked(servers: Connections) -> Iterator[Worked]:
    name = f"worked_{uuid.uuid4().hex[:8]}"
    admin = open_database(servers.database_url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    url = with_database(servers.database_url, name)
    owner = open_database(url)
    logins = {role: open_database(with_database(servers.role_urls[role], name)) for role in TRIED}
    recorded: dict[DatabaseRole, Recorded] = {role: {} for role in TRIED}
    with ExitStack() as stack:
        for role, login in logins.items():
            stack.enter_context(recording(login, recorded[role]))
            stack.callback(login.dispose)
        work(owner, logins)
    yield Worked(url.get_secret_value(), owner, recorded)
    owner.dispose()
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def work(owner: Engine, logins: dict[DatabaseRole, Engine]) -> None:
    """Every statement once: a new one that needs more rights fails here, and not in a worker's log alone."""
    with transaction(owner) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = make_job(connection, num_problems=6)
        ending = make_job(connection, num_problems=1)
    publisher = Publisher(Celery("grants", broker="memory://", set_as_current=False))
    leader = live(logins[DatabaseRole.UPKEEP], DatabaseRole.UPKEEP)
    upkeep = Upkeep(logins[DatabaseRole.UPKEEP], publisher, Settings(), worker_id=lambda: leader)
    for role in WORKERS:
        live(logins[role], role)
    watch(logins[DatabaseRole.MONITOR])
    with transaction(logins[DatabaseRole.WRITER]) as connection:
        refuse_second_identity(connection, model="S", model_fingerprint="f", weights_sha256="w")
        worker = make_worker(connection)
    with session(logins[DatabaseRole.UPKEEP]) as connection:
        assert lead(connection, leader, ttl=TTL, can_publish=True)
        upkeep.round(connection)
        resign(connection, leader)
    with transaction(logins[DatabaseRole.WRITER]) as connection:
        finished = write(connection, job, worker)
    grade(owner, logins[DatabaseRole.GRADER], job, *finished)
    tidy(owner, logins[DatabaseRole.UPKEEP], upkeep, job, ending)
    watch(logins[DatabaseRole.MONITOR])


def watch(monitor: Engine) -> None:
    """All that the exporter asks, and what an autoscaler does."""
    require_current(monitor)
    with transaction(monitor) as connection:
        fleet = read_fleet(connection)
    assert fleet.samples
    assert fleet.jobs


def live(login: Engine, role: DatabaseRole) -> int:
    """A worker's life, whatever its kind; returns its id."""
    require_current(login)
    kind = {DatabaseRole.GRADER: WorkerKind.GRADE, DatabaseRole.UPKEEP: WorkerKind.UPKEEP}.get(role, WorkerKind.SMALL)
    registration = Registration(
        kind=kind, model=None, engine_id=None, host="here", pid=1, queue=f"{kind.value}.own", max_in_flight=1, ttl=TTL
    )
    with transaction(login) as connection:
        worker = register_worker(connection, registration)
        renew_worker(connection, worker, ttl=TTL, counters=WorkerCounters())
        finalize_counters(connection, worker, WorkerCounters())
        end_worker(connection, worker, WorkerCounters())
    return worker


def write(connection: Connection, job: int, worker: int) -> list[ClaimedSample]:
    """All that a writer does; returns the two samples that it finished."""
    ready = text("SELECT id, epoch FROM samples WHERE state = 'ready' AND job_id = :job ORDER BY id")
    waiting = connection.execute(ready, {"job": job}).all()
    claimed = claim(connection, worker, {row.id: row.epoch for row in waiting if row.id != waiting[-1].id})
    assert len(claimed) == 5
    get_job_config(connection, job)
    for role in ModelRole:
        fix_identity(connection, job, role, ModelSpec(name="S", fingerprint="f", weights="w"))
        find_fitting_queue(connection, worker_id=worker, role=role, job_id=job)
    assert find_misfit(connection, worker_id=worker, job_id=job) is None
    fix_think_phase(connection, job, ThinkPhase(start="", end="", opened=False))
    first, second, third, fourth, fifth = claimed
    step = Step(
        step_index=0, text="one two", tokens_small=2, tokens_large=0, tokens_inserted=0, author=Author.SMALL,
        sentence_class=SentenceClass.STATEMENT, trigger=None, start_token=0,
    )  # fmt: skip
    aside = WrittenAside(
        author=Author.SMALL, aside_index=0, after_segment=1, purpose="doubt", finish=SegmentFinish.EOS,
        piece=Piece(token_ids=(5,), texts=("one",)), vocabulary_sha256="v", signals={Signal.LOGPROB: (-0.5,)},
    )  # fmt: skip
    finished = replace(written(first, SampleState.FINISHED), steps=(step,))
    asked = replace(written(second, SampleState.READY), asides=(aside,))
    part = Part(sample_id=third.sample_id, epoch=third.epoch, segment_index=0, start_token=0, token_ids=[5])
    assert store_parts(connection, worker_id=worker, parts=[part]) == {third.sample_id}
    release_samples(connection, worker_id=worker, epochs={third.sample_id: third.epoch})
    [third] = claim(connection, worker, {third.sample_id: third.epoch + 1})
    assert third.open_segment == OpenSegment(token_ids=(5,))
    assert commit(connection, worker, written(third, SampleState.READY))
    [third] = claim(connection, worker, {third.sample_id: third.epoch})
    assert third.open_segment is None
    assert commit(connection, worker, finished, asked, written(fifth, SampleState.FINISHED))
    assert commit(connection, worker, finished), "a commit that is sent again"
    assert claim(connection, worker, {second.sample_id: second.epoch})[0].context.asides
    release_samples(connection, worker_id=worker, epochs={third.sample_id: third.epoch})
    defer_samples(connection, worker_id=worker, epochs={fourth.sample_id: fourth.epoch}, error="busy", max_attempts=1)
    assert len(held_epochs(connection, worker)) == 1
    begin_trial(connection, worker_id=worker, claim=next(iter(held_epochs(connection, worker).items())))
    settle_late_tokens(connection, worker, tokens=1)
    assert not are_undone(connection, [StoredRow(worker, first.sample_id, dt.datetime.now(dt.UTC))])
    return [first, fifth]


def grade(owner: Engine, grader: Engine, job: int, sample: ClaimedSample, other: ClaimedSample) -> None:
    for version in ("1", "2"):  # the second one changes a grade of a sample that is graded
        with transaction(owner) as connection:
            connection.execute(text("UPDATE grades SET grader_version = :version"), {"version": version})
        message = SamplesMessage(job_id=job, samples=[(sample.sample_id, sample.epoch)])
        assert SampleGrader(grader, time_limit_s=20).grade(message) == "1 of 1 graded"
    slow: dict[str, Any] = {"sample_id": sample.sample_id, "epoch": sample.epoch, "grader": "slow", "version": "1"}
    with transaction(grader) as connection:
        quick = TextGrade(other.sample_id, other.epoch, GradeStatus.DONE, 1.0, SECRET, None)
        assert store_grades(connection, [quick], grader="quick", version="1")
        assert begin_grade(connection, **slow)
        assert end_grade(
            connection, **slow, status=GradeStatus.DONE, score=1.0, predicted_answer=SECRET, detail=None
        )  # fmt: skip


def tidy(owner: Engine, login: Engine, upkeep: Upkeep, job: int, ending: int) -> None:
    """All that upkeep does, each duty with something to do."""
    with transaction(owner) as connection:
        connection.execute(text("UPDATE grades SET status = 'running', started_at = '2001-01-01', num_tries = 99"))
        connection.execute(text("UPDATE samples SET published_at = '2001-01-01' WHERE state = 'ready'"))
        connection.execute(text("UPDATE workers SET expires_at = '2001-01-01', renewed_at = '2001-01-01'"))
        last = text("UPDATE samples SET state = 'failed', error = 'e', ended_at = now() WHERE job_id = :job")
        connection.execute(last, {"job": ending})
        connection.execute(
            text("UPDATE jobs SET judged_job_id = :job WHERE id = :judge"), {"job": job, "judge": ending}
        )
        judged = text("""
            INSERT INTO judged_samples (job_id, sample_id, epoch)
            SELECT :judge, id, epoch FROM samples WHERE job_id = :job AND state = 'graded'
        """)
        assert connection.execute(judged, {"job": job, "judge": ending}).rowcount == 2
    with transaction(login) as connection:  # a round would do so that has seen them for long enough
        late = running_grades(connection, tries=1)
        assert late
        time_out_grades(connection, late=late)
    do_round(login, upkeep)
    with transaction(login) as connection:
        mark_followed(connection, job)
        assert select_progress(connection, [job])[0].failed == 1
    with transaction(owner) as connection:
        ended = "UPDATE jobs SET state = 'cancelled', finished_at = clock_timestamp() WHERE state = 'running'"
        assert connection.execute(text(ended)).rowcount == 1
    do_round(login, upkeep)  # ends the samples of a cancel whose client died
    refresher = RollupRefresher(login)
    assert refresher.carry_verdicts() == 1
    assert refresher.count_jobs() == 2
    with transaction(owner) as connection:
        connection.execute(text("UPDATE rollups SET changed_at = '2001-01-01'"))
    assert refresher.refresh_rollups() == 2
    with transaction(login) as connection:
        postpone_rollup(connection, Rollup(job, 0), by=TTL)
        compact_lengths(connection, job, at_least=1)


def do_round(login: Engine, upkeep: Upkeep) -> None:
    with session(login) as own:
        upkeep.round(own)


def test_each_worker_does_its_work_with_the_rights_of_its_role_alone(worked: Worked) -> None:
    with transaction(worked.owner) as connection:
        states = set(connection.execute(text("SELECT state FROM samples")).scalars())
        assert states == {"graded", "failed", "cancelled"}
        assert connection.execute(text("SELECT count(*) FROM job_totals")).scalar_one() == 2
        assert connection.execute(text("SELECT bool_and(is_base) FROM length_counts")).scalar_one()


def test_every_statement_of_the_workers_was_tried(worked: Worked) -> None:
    tried = set().union(*worked.recorded.values())
    for module in MODULES:
        for name, found in vars(importlib.import_module(f"pipeline.db.{module}")).items():
            for statement in found.values() if isinstance(found, dict) else [found]:
                if isinstance(statement, TextClause) and f"{module}.{name}" not in OTHERS:
                    assert str(statement.compile(worked.owner)) in tried, f"let a worker execute {module}.{name} here"


@pytest.mark.parametrize("role", TRIED)
def test_no_right_without_a_statement_that_needs_it(worked: Worked, role: DatabaseRole) -> None:
    with psycopg.connect(worked.url) as connection:
        found = unneeded(connection, EMBEDDED_LOGINS[role], worked.recorded[role])
    assert sorted(map(str, found)) == []


TEXTS = ("so it is QZ-first-7", "so it is QZ-second-8")


@pytest.fixture
def finished_job(db_engine: Engine) -> None:
    """A job with two samples of one problem: the first is right, the second is not; the planner knows all of them."""
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        job = add_job(connection, add_problem_set(connection, 1), state="completed", seconds=5, num_samples=2)
        worker, engine = add_worker(connection, "small"), add_engine(connection, "S")
        for sample, written_text in zip(add_samples(connection, job, [{}, {}]), TEXTS, strict=True):
            add_segment(connection, sample, 0, "small", written_text, worker_id=worker, engine_id=engine)
    say_which_is_right(db_engine, 0)


def say_which_is_right(db_engine: Engine, place: int) -> None:
    """Nothing but the scores, the predicted answers, the grades and the reference answer says so."""
    with transaction(db_engine) as connection:
        connection.execute(text("SET LOCAL session_replication_role = 'replica'"))  # no trigger: no event tells it
        values = {"right": TEXTS[place], "answer": TEXTS[place].split()[-1]}
        connection.execute(text("UPDATE reference_answers SET answer = :answer"), values)
        connection.execute(
            text("""
                UPDATE samples s SET score = (g.text = :right)::integer, predicted_answer = split_part(g.text, ' ', 4)
                FROM segments g WHERE g.sample_id = s.id
            """),
            values,
        )
        connection.execute(text("DELETE FROM grades"))
        connection.execute(
            text("""
                INSERT INTO grades (sample_id, grader, grader_version, status, score, predicted_answer, started_at)
                SELECT id, 'math', '1', 'done', score, predicted_answer, '2001-01-01' FROM samples
            """)
        )
    with db_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


@pytest.mark.parametrize("role", [DatabaseRole.WRITER, DatabaseRole.UPKEEP, DatabaseRole.MONITOR])
def test_who_generates_or_tidies_cannot_tell_the_answer_of_a_finished_job(
    servers: Connections, connections: Connections, db_engine: Engine, finished_job: None, role: DatabaseRole
) -> None:
    """Whatever it asks: all that it can read is the same when the other sample is right, or holds no text of either."""
    name = make_url(connections.database_url.get_secret_value()).database or ""
    with psycopg.connect(with_database(servers.role_urls[role], name).get_secret_value(), autocommit=True) as login:
        readable = everything_readable(login)
        say_which_is_right(db_engine, 1)
        now = everything_readable(login)
    assert readable
    tells = {place for place in readable if readable[place] != now[place]}
    texts = {place for place in readable if any("QZ-" in row for row in readable[place])}
    assert not tells or not texts, f"{sorted(tells)} tell which of the texts in {sorted(texts)} is right"
    assert bool(texts) == (role is DatabaseRole.WRITER)
    assert bool(tells) == (role is DatabaseRole.UPKEEP), "a monitor's scores have no ids beside them"
