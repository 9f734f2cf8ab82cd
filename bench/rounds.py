"""Thousands of small jobs at once: how many a second are submitted, and what a round of upkeep takes beside them.

    python -m bench.rounds [--jobs 10000] [--workers 300] [--models 64]

The jobs are copies of one that was submitted, made by SQL, for as many models; the workers are rows, and nobody writes.
The statements, the messages and upkeep are real. Each round admits samples until the workers have no more room, and as
long as it may: the first ones are the dearest.
"""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bench.measurement import Report
from bench.scripts import problem_set
from bench.stack import MODELS, Stack, running_servers
from bench.usage import cpu_seconds
from pipeline.db.session import session, transaction
from pipeline.jobs.submission import Submission
from pipeline.settings import load_settings
from workers.broker.app import make_app
from workers.broker.publish import Publisher
from workers.upkeep.rounds import Upkeep

SUBMITTED = 50
TOGETHER = 500
ROUNDS = 20
PROBLEMS = 2
_JOB_COLUMNS = text("""
    SELECT string_agg(column_name, ', ') FROM information_schema.columns
    WHERE table_name = 'jobs' AND column_name NOT IN ('id', 'name', 'small_model', 'large_model')
""")
_ADD_SAMPLES = text("""
    INSERT INTO samples (job_id, problem_id, sample_index, state)
    SELECT j.id, s.problem_id, 0, 'pending' FROM jobs j, samples s WHERE s.job_id = :job AND j.id > :job
""")
_ADD_WORKERS = text("""
    INSERT INTO workers (kind, model, host, pid, queue, max_in_flight, expires_at)
    SELECT CASE i % 2 WHEN 0 THEN 'small' ELSE 'large' END, CASE i % 2 WHEN 0 THEN 'S' ELSE 'L' END || i / 2 % :models,
           'host', i, 'queue', 8, now() + interval '1 day'
    FROM generate_series(0, :workers - 1) AS i
""")
_ADD_UPKEEP = text("""
    INSERT INTO workers (kind, host, pid, queue, max_in_flight, expires_at)
    VALUES ('upkeep', 'host', 1, 'queue', 0, now() + interval '1 day') RETURNING id
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("jobs", 10_000), ("workers", 300), ("models", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    setting = vars(parser.parse_args())
    report = Report(bench="rounds", setting=setting)
    with running_servers() as stack:
        for name, submit in (("submit", one_by_one), ("submit_all", together)):
            costs = [submit(stack) for _ in range(3)]
            report.add(name, [cost.rate for cost in costs], "jobs/s")
            report.add(f"{name}, CPU of the client", [cost.client_ms for cost in costs], "ms/job")
            report.add(f"{name}, CPU of Postgres", [cost.postgres_ms for cost in costs], "ms/job")
        with transaction(stack.db_engine) as connection:
            add_rows(connection, **setting)
        with session(stack.db_engine) as connection:
            connection.execute(text("ANALYZE"))
        seconds = round_seconds(stack)
    report.add("round, the first", seconds[:1], "s")
    report.add("round, the others", seconds[1:], "s")
    report.goal("submit_all", "≥", 500)
    report.goal("round, the first", "≤", 1)
    report.goal("round, the others", "≤", 1)
    report.print()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of submitting. rate: jobs a second. client_ms, postgres_ms: CPU time for a job; the client's with its child that
    renders chat templates."""

    rate: float
    client_ms: float
    postgres_ms: float


def one_by_one(stack: Stack) -> Cost:
    """Each job in a transaction of its own."""
    jobs = small_jobs(SUBMITTED)
    with measured(stack, SUBMITTED) as found:
        for job in jobs:
            stack.client.submit(job)
    return found[0]


def together(stack: Stack) -> Cost:
    jobs = small_jobs(TOGETHER)
    with measured(stack, TOGETHER) as found:
        stack.client.submit_all(jobs)
    return found[0]


def small_jobs(count: int) -> list[Submission]:
    """Each with two problems that nobody has asked."""
    first = secrets.randbelow(5_000_000)
    return [
        Submission(
            problems=problem_set(PROBLEMS, first=first + number * PROBLEMS),
            small=MODELS["small"], large=MODELS["large"], max_tokens=100,
        )
        for number in range(count)
    ]  # fmt: skip


@contextmanager
def measured(stack: Stack, num_jobs: int) -> Iterator[list[Cost]]:
    """What submitting so many jobs meanwhile costs."""
    pids = (os.getpid(), stack.pid("postgres"))
    found: list[Cost] = []
    before, start = [cpu_seconds(pid) for pid in pids], time.perf_counter()
    yield found
    seconds = time.perf_counter() - start
    whole, postgres = (cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True))
    client = whole - postgres  # the servers are children of this process
    found.append(
        Cost(rate=num_jobs / seconds, client_ms=1000 * client / num_jobs, postgres_ms=1000 * postgres / num_jobs)
    )


def add_rows(connection: Connection, *, jobs: int, workers: int, models: int) -> None:
    """Jobs like the newest one, their samples, and workers of all models."""
    job = connection.execute(text("SELECT max(id) FROM jobs")).scalar_one()
    columns = connection.execute(_JOB_COLUMNS).scalar_one()
    copy_jobs = text(f"""
        INSERT INTO jobs (name, small_model, large_model, {columns})
        SELECT 'copy', 'S' || i % :models, 'L' || i % :models, {columns}
        FROM jobs, generate_series(1, :jobs) AS i WHERE id = :job
    """)
    connection.execute(copy_jobs, {"models": models, "jobs": jobs, "job": job})
    connection.execute(_ADD_SAMPLES, {"job": job})
    connection.execute(_ADD_WORKERS, {"models": models, "workers": workers})


def round_seconds(stack: Stack) -> list[float]:
    """What each of ROUNDS rounds takes."""
    with transaction(stack.db_engine) as connection:
        worker = connection.execute(_ADD_UPKEEP).scalar_one()
    publisher = Publisher(make_app(stack.connections.redis_url))
    settings = load_settings(state_dir=stack.state.state_dir)
    upkeep = Upkeep(stack.db_engine, publisher, settings, worker_id=lambda: worker)
    seconds = []
    with session(stack.db_engine) as own:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            upkeep.round(own)
            seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
