"""Token counts, to the token: what the engines generated is committed in segments or dropped, whatever happened."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy import Engine as DbEngine

import workers.writing.store
from pipeline.db.job_control import cancel_job, cancel_samples
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import ServiceUnavailable
from pipeline.samples import ModelRole
from tests.integration.lapses import settle_lapsed
from tests.integration.writer_pool import LARGE, SMALL, Engines, WriterPool, make_writer_pool

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture
def writers(servers: Connections, engines: Engines) -> Iterator[WriterPool]:
    with make_writer_pool(servers) as writers:
        writers.hire(engines.get(SMALL, ModelRole.SMALL), SMALL, ModelRole.SMALL)
        writers.hire(engines.get(LARGE, ModelRole.LARGE), LARGE, ModelRole.LARGE)
        yield writers


def check_token_counts(writers: WriterPool) -> dict[str, int]:
    """Ends the workers and compares every pair of counts; returns what was dropped, by role."""
    members = list(writers.members)
    writers.dismiss()
    wrong = writers.rows("""
        SELECT sample_id, segment_index FROM segments
        WHERE tokens_generated <> CASE author WHEN 'inserted' THEN 0 ELSE
              cardinality(token_ids) + cardinality(discarded_ids) + (finish = 'eos')::integer END
    """)
    assert wrong == [], "a segment's ids and its count"
    wrong = writers.rows("""
        SELECT s.id FROM samples s LEFT JOIN LATERAL (
            SELECT sum(tokens_generated) AS generated, count(*) FILTER (WHERE finish = 'eos') AS eos
            FROM segments g WHERE g.sample_id = s.id) g ON true
        WHERE s.tokens_small + s.tokens_large + s.discarded_small + s.discarded_large + coalesce(g.eos, 0)
              <> coalesce(g.generated, 0)
    """)
    assert wrong == [], "a sample and its segments"
    wrong = writers.rows("""
        SELECT j.job_id FROM job_summary j JOIN LATERAL (
            SELECT sum(tokens_small) AS small, sum(tokens_large) AS large, sum(tokens_inserted) AS inserted,
                   sum(discarded_small + discarded_large) AS discarded
            FROM samples s WHERE s.job_id = j.job_id) s ON true
        WHERE (j.tokens_small, j.tokens_large, j.tokens_inserted, j.discarded_small + j.discarded_large)
              <> (s.small, s.large, s.inserted, s.discarded)
    """)
    assert wrong == [], "a job and its samples"
    wrong = writers.rows("""
        SELECT w.id, w.tokens_generated, w.tokens_committed, w.tokens_dropped, g.generated FROM workers w
        JOIN LATERAL (SELECT coalesce(sum(g.tokens_generated), 0) AS generated
                      FROM segments g WHERE g.worker_id = w.id) g ON true
        WHERE w.tokens_committed <> g.generated OR w.tokens_generated <> w.tokens_committed + w.tokens_dropped
    """)
    assert wrong == [], "a worker and its segments"
    dropped = {}
    for member in members:
        [booked] = writers.rows(f"""
            SELECT sum(tokens_generated), sum(prompt_tokens), sum(cached_tokens), sum(tokens_dropped)
            FROM workers WHERE kind = '{member.role.value}'
        """)
        now, before = member.engine.stats(), member.before
        counted = (
            now.num_generated_tokens - before.num_generated_tokens,
            now.num_prompt_tokens - before.num_prompt_tokens,
            now.num_cached_tokens - before.num_cached_tokens,
        )
        assert booked[:3] == counted, f"the {member.role} workers and their engine"
        dropped[member.role.value] = int(booked[3])
    return dropped


def while_writing(writers: WriterPool, job: int, action: Callable[[Connection], object]) -> Callable[[], bool]:
    """Does something once, in a moment in which samples are being written and some were handed over before."""

    def attempt() -> bool:
        with transaction(writers.db_engine) as connection:
            held = text("SELECT num_segments FROM samples WHERE job_id = :job AND holder_id IS NOT NULL FOR UPDATE")
            segments = connection.execute(held, {"job": job}).scalars().all()  # nobody commits these meanwhile
            is_ready = len(segments) > 2 and sum(segments) > 4
            if is_ready:
                action(connection)
        return is_ready

    return attempt


def wait_for_second_lives(writers: WriterPool) -> None:
    deadline = time.monotonic() + 20
    while writers.rows("SELECT count(*) FROM workers WHERE ended_at IS NULL") != [(2,)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_token_counts_agree_when_nothing_happens(writers: WriterPool) -> None:
    writers.submit(temperature=0.9)
    writers.work()
    prompts = writers.rows("SELECT sum(prompt_tokens), sum(cached_tokens) FROM segments")
    assert check_token_counts(writers) == {"small": 0, "large": 0}
    assert writers.rows("SELECT sum(prompt_tokens), sum(cached_tokens) FROM workers") == prompts


def test_token_counts_agree_after_a_cancel(writers: WriterPool) -> None:
    job = writers.submit(limit=16, temperature=0.9)

    def cancel(connection: Connection) -> None:
        cancel_job(connection, job)
        while cancel_samples(connection, job):
            pass

    writers.work(until=while_writing(writers, job, cancel))
    writers.work()
    assert sum(check_token_counts(writers).values()) > 0


def test_token_counts_agree_after_a_lease_ran_out_and_the_samples_were_rescued(writers: WriterPool) -> None:
    job = writers.submit(limit=16, temperature=0.9)

    def lapse(connection: Connection) -> None:
        connection.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s'"))
        settled = settle_lapsed(connection)
        assert settled is not None
        assert settled.rescued > 0

    writers.work(until=while_writing(writers, job, lapse))
    wait_for_second_lives(writers)
    writers.work()
    assert writers.states() == {"finished": 16}
    assert sum(check_token_counts(writers).values()) > 0
    assert writers.rows("SELECT count(*) FROM workers WHERE kind = 'small'") == [(2,)], "it began a second life"
    assert all(replayed.divergence is None for replayed in writers.client.replay_job(job))


def test_commit_whose_answer_was_lost_is_booked_once(writers: WriterPool, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[bool] = []

    @contextlib.contextmanager
    def unlucky(db_engine: DbEngine) -> Iterator[Any]:
        """Postgres commits, and the connection breaks before it says so: once, at the first segment."""
        with transaction(db_engine) as connection:
            yield connection
        if not lost and writers.rows("SELECT count(*) FROM segments") != [(0,)]:
            lost.append(True)
            raise ServiceUnavailable("the connection was lost")

    monkeypatch.setattr(workers.writing.store, "transaction", unlucky)
    monkeypatch.setattr(workers.writing.store, "RETRY_PAUSE_S", 0.01)
    writers.submit(limit=2, temperature=0.9)
    writers.work()
    assert lost
    assert check_token_counts(writers) == {"small": 0, "large": 0}


def test_row_that_postgres_refuses_sets_its_own_sample_aside(writers: WriterPool) -> None:
    job = writers.submit(limit=3, temperature=0.9)
    with transaction(writers.db_engine) as connection:
        connection.execute(
            text(f"""
            CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF new.sample_id = (SELECT min(id) FROM samples WHERE job_id = {job}) AND new.segment_index = 2 THEN
                    RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation';
                END IF;
                RETURN new; END $$;
            CREATE TRIGGER refuse_one BEFORE INSERT ON segments FOR EACH ROW EXECUTE FUNCTION refuse_one();
            """)
        )
    writers.work()
    assert writers.states() == {"finished": 2, "failed": 1}
    assert "not this one" in writers.rows("SELECT error FROM samples WHERE state = 'failed'")[0][0]
    assert sum(check_token_counts(writers).values()) > 0, "what it had written is dropped"
