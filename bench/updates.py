"""What a hand-over costs Postgres in its rows of samples: how many updates are in place, how much is logged, whose CPU.

    python -m bench.updates

Claims and commits driven by hand on one connection: no worker, engine or message has a part in the figures.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Connection, Engine, text

from bench.measurement import Report, multiple_of
from bench.scale import MODEL, NUM_SAMPLES, submit, write_problems
from bench.stack import Stack, running_servers
from pipeline.db.claims import ClaimedSample, claim_samples
from pipeline.db.commits import SampleCommit, commit_samples
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.db.upkeep_statements import admit_samples
from pipeline.db.worker_leases import Registration, put_engine, register_worker
from pipeline.embedded import EMBEDDED_LOGINS
from pipeline.logins import DatabaseRole
from pipeline.policies.requests import Generate
from pipeline.samples import (
    RUNNABLE_STATE,
    WRITING_ROLES,
    Author,
    FinishReason,
    ModelRole,
    Piece,
    SampleState,
    SegmentFinish,
)
from pipeline.segments import WrittenSegment
from pipeline.workforce import WorkerKind

GROUP = 16
"""Samples in a claim, and in a commit: what a busy worker has."""
TOKENS = 8
"""In each segment."""
OTHER = {ModelRole.SMALL: ModelRole.LARGE, ModelRole.LARGE: ModelRole.SMALL}
PIECE = Piece(token_ids=tuple(range(1000, 1000 + TOKENS)), texts=(" word",) * TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    worker: int
    engine: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What Postgres has done so far: updates of samples, those in place, bytes logged, CPU seconds of the session."""

    updates: int
    in_place: int
    logged: int
    cpu: float

    @classmethod
    def read(cls, db_engine: Engine, writer: Engine, backend: int) -> Used:
        """writer: the one session, whose process is backend. Each session keeps its counts for up to a second."""
        for session in (db_engine, writer):
            with transaction(session) as connection:
                connection.execute(text("SELECT pg_stat_force_next_flush()"))
        with transaction(db_engine) as connection:
            query = """SELECT n_tup_upd, n_tup_hot_upd, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
                       FROM pg_stat_user_tables WHERE relname = 'samples'"""
            updates, in_place, logged = connection.execute(text(query)).one()
        times = psutil.Process(backend).cpu_times()
        return cls(updates=updates, in_place=in_place, logged=logged, cpu=times.user + times.system)


def add_writer(connection: Connection, role: ModelRole, slots: int) -> Writer:
    engine = put_engine(
        connection, kind="by hand", version="1", model=MODEL[role], model_fingerprint="f", vocabulary_sha256="v",
        settings={},
    )  # fmt: skip
    life = Registration(
        kind=WorkerKind(role.value), model=MODEL[role], engine_id=engine, host="bench", pid=0, queue=f"{role}.bench",
        max_in_flight=slots, ttl=dt.timedelta(hours=1),
    )  # fmt: skip
    return Writer(worker=register_worker(connection, life), engine=engine)


def written(sample: ClaimedSample, role: ModelRole, *, is_last: bool) -> SampleCommit:
    """A segment after which the other model goes on, or the text is complete."""
    after = OTHER[role]
    request = Generate(
        role=after, max_tokens=1000, trigger="reflection", cue="wait", takes_over=after is ModelRole.LARGE
    )
    return SampleCommit(
        sample_id=sample.sample_id,
        epoch=sample.epoch,
        to_state=SampleState.FINISHED if is_last else RUNNABLE_STATE[after],
        segments=(
            WrittenSegment(
                author=Author(role.value), trigger="reflection", cue="wait", takes_over=role is ModelRole.LARGE,
                piece=PIECE, num_kept=TOKENS, finish=SegmentFinish.WATCH, tokens_generated=TOKENS, prompt_tokens=300,
                vocabulary_sha256="v",
            ),
        ),
        num_segments_before=len(sample.context.segments),
        num_asides_before=0,
        policy_state={"count": 3, "spent": 240, "phase": "thinking", "last": [12, 40, 77]},
        next_request=None if is_last else request,
        finish_reason=FinishReason.EOS if is_last else None,
    )  # fmt: skip


def hand_over(db_engine: Engine, epochs: Mapping[int, int], role: ModelRole, writer: Writer, *, is_last: bool) -> None:
    """A claim and a commit of some samples, each a transaction."""
    with transaction(db_engine) as connection:
        claimed = claim_samples(connection, worker_id=writer.worker, role=role, epochs=epochs)
    commits = [written(sample, role, is_last=is_last) for sample in claimed]
    with transaction(db_engine) as connection:
        done = commit_samples(connection, worker_id=writer.worker, engine_id=writer.engine, commits=commits)
    if len(done.samples) != len(epochs):
        raise RuntimeError(f"{len(done.samples)} of {len(epochs)} samples were handed over")


def hand_over_all(db_engine: Engine, writers: Mapping[ModelRole, Writer], ids: Sequence[int], rounds: int) -> None:
    """Each sample so often, by turns from small to large and back: groups of all are in the pipeline at a time."""
    groups = [ids[start : start + GROUP] for start in range(0, len(ids), GROUP)]
    for turn in range(rounds):
        role = ModelRole.SMALL if turn % 2 == 0 else ModelRole.LARGE
        for group in groups:
            hand_over(db_engine, dict.fromkeys(group, turn), role, writers[role], is_last=turn == rounds - 1)


def size(db_engine: Engine, what: str) -> int:
    with transaction(db_engine) as connection:
        return int(connection.execute(text(f"SELECT {what}('samples')")).scalar_one())


def run(report: Report, stack: Stack, db_engine: Engine, *, samples: int, in_flight: int, rounds: int) -> None:
    """Samples are admitted in parts of in_flight, as upkeep would. db_engine: one session with a writer's rights."""
    with transaction(db_engine) as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with transaction(stack.db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
        writers = {role: add_writer(connection, role, in_flight) for role in WRITING_ROLES}
    with tempfile.TemporaryDirectory() as folder:
        write_problems(Path(folder) / "problems.jsonl", samples // NUM_SAMPLES, "")
        submit(stack, Path(folder) / "problems.jsonl", "updates")
    before, done, sizes = Used.read(stack.db_engine, db_engine, backend), 0, size(stack.db_engine, "pg_indexes_size")
    while done < samples:
        with transaction(stack.db_engine) as connection:
            admitted = [sample.sample_id for sample in admit_samples(connection, ahead=1.0)]
        hand_over_all(db_engine, writers, admitted, rounds)
        done += len(admitted)
    after, hops = Used.read(stack.db_engine, db_engine, backend), samples * rounds
    report.add("updates in place", (after.in_place - before.in_place) / (after.updates - before.updates))
    report.add("updates per hand-over", (after.updates - before.updates) / hops)
    report.add("logged per hand-over", (after.logged - before.logged) / hops, "bytes")
    report.add("CPU of the session per hand-over", 1e6 * (after.cpu - before.cpu) / hops, "µs")
    report.add("indexes of samples grew by", (size(stack.db_engine, "pg_indexes_size") - sizes) / 2**20, "MiB")
    report.add("samples' own size", size(stack.db_engine, "pg_relation_size") / 2**20, "MiB")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=multiple_of(NUM_SAMPLES), default=4096)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20, help="hand-overs of each sample")
    parser.add_argument("--sql", type=Path, help="statements to run before: to try other indexes")
    args = parser.parse_args()
    numbers = {"samples": args.samples, "in_flight": args.in_flight, "rounds": args.rounds}
    report = Report(bench="updates", setting={**numbers, "group": GROUP, "seed": "none"})
    with running_servers() as stack:
        if args.sql:
            with transaction(stack.db_engine) as connection:
                connection.exec_driver_sql(args.sql.read_text(), execution_options={"no_parameters": True})
        db_engine = open_database(stack.connections.role_urls[DatabaseRole.WRITER], pool_size=1)
        run(report, stack, db_engine, **numbers)
        db_engine.dispose()
    report.print()


if __name__ == "__main__":
    main()
