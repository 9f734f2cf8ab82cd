"""What the gateway adds to an answer: how long a chat request waits, and for whom, with engines that answer at once.

    make bench-chat BENCH_ARGS="--requests 40"

Everything is real but the models: the official client, a gateway of its own process, Postgres, Redis, Celery, both
workers (``bench.scripted_worker``) and upkeep. The engines take no time, so all of an answer's time is the pipeline's.
Requests are streamed and come one by one: each has a job of its own. Where the time went is read from the database,
whose clock is this machine's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import openai
from sqlalchemy import text

from bench.gateway import gateway
from bench.measurement import Report, percentile
from bench.scripted_worker import environment, program
from bench.scripts import problem_set
from bench.stack import JOB_TIMEOUT_S, MODELS, Stack, running_stack
from bench.usage import cpu_seconds
from pipeline.chat.prompts import render_user_message
from pipeline.db.session import transaction
from pipeline.samples import WRITING_ROLES

MODEL = f"{MODELS['small'].name}+{MODELS['large'].name}"
WARM_UP = 3
LEGS = (
    "request → its job is being stored",
    "→ claimed",
    "claimed → first segment",
    "first segment → first piece at the client",
    "first segment → last one",
    "last segment → end at the client",
)
_MOMENTS = text("""
    SELECT extract(epoch FROM j.submitted_at)::float8 AS stored,
           extract(epoch FROM j.first_claimed_at)::float8 AS claimed,
           extract(epoch FROM min(s.committed_at))::float8 AS first,
           extract(epoch FROM max(s.committed_at))::float8 AS last
    FROM jobs j JOIN samples t ON t.job_id = j.id JOIN segments s ON s.sample_id = t.id
    WHERE j.id = :job GROUP BY j.id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Moments in seconds since the epoch. first_piece: the first text at the client; end: of the stream."""

    job: int
    asked: float
    first_piece: float
    end: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--takeovers", type=int, default=2, help="in each answer")
    options = parser.parse_args()
    report = Report(bench="chat", setting=vars(options))
    with running_stack() as stack:
        for role in WRITING_ROLES:
            stack.start_programs([program(role.value, role, environment(f"takeovers:{options.takeovers}"))])
        with gateway(stack) as (url, pid):
            client = openai.OpenAI(base_url=url, api_key="any", timeout=300)
            for number in range(WARM_UP):
                ask(client, number)
            before = cpu_seconds(pid)
            answers = [ask(client, WARM_UP + number) for number in range(options.requests)]
            used = cpu_seconds(pid) - before
        legs = [legs_of(stack, answer) for answer in answers]
    add_times(report, "request → first piece", [answer.first_piece - answer.asked for answer in answers])
    add_times(report, "request → end", [answer.end - answer.asked for answer in answers])
    for name, times in zip(LEGS, zip(*legs, strict=True), strict=True):
        report.add(f"{name}: p50", 1000 * statistics.median(times), "ms")
    report.add("CPU of the gateway", 1000 * used / options.requests, "ms/request")
    report.print()


def add_times(report: Report, name: str, seconds: list[float]) -> None:
    report.add(f"{name}: p50", 1000 * statistics.median(seconds), "ms")
    report.add(f"{name}: p95", 1000 * percentile(seconds, 95), "ms")


def ask(client: openai.OpenAI, number: int) -> Answer:
    """Ask for one answer, as a stream. Its prompt is of as many tokens as the script of the engines counts on."""
    (problem,) = problem_set(1, first=number).problems
    asked, first_piece, job = time.time(), 0.0, 0
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": render_user_message("math", problem)}],
        max_tokens=1000,
        stream=True,
    )
    for chunk in stream:
        about = getattr(chunk, "specthink", None) or {}
        job = about.get("job_id", job)
        delta = chunk.choices[0].delta
        if not first_piece and (delta.content or getattr(delta, "reasoning", None)):
            first_piece = time.time()
    return Answer(job=job, asked=asked, first_piece=first_piece, end=time.time())


def legs_of(stack: Stack, answer: Answer) -> tuple[float, ...]:
    """Seconds of LEGS, once the job has ended: upkeep notes its first claim in a later round."""
    stack.client.wait(answer.job, timeout_s=JOB_TIMEOUT_S)
    with transaction(stack.db_engine) as connection:
        at = connection.execute(_MOMENTS, {"job": answer.job}).one()
    to_first = [after - before for before, after in pairwise((answer.asked, at.stored, at.claimed, at.first))]
    return (*to_first, answer.first_piece - at.first, at.last - at.first, answer.end - at.last)


if __name__ == "__main__":
    main()
