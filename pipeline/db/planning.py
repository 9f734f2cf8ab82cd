"""The statements of planning: how the samples of a job went, and how long their requests took. No text is read."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from sqlalchemy import Connection, text

from pipeline.db.readable import reading
from pipeline.db.report_queries import get_job
from pipeline.db.states import COMPLETE
from pipeline.planning.measured import MeasuredJob, MeasuredRequest, MeasuredWorker
from pipeline.planning.pools import Piece, Trajectory
from pipeline.results.jobs import Job
from pipeline.samples import ModelRole

MAX_TRAJECTORIES = 2000
"""Complete samples whose trajectories are read: their mean length is then known to about 1 %."""
MAX_REQUESTS = 50_000
MAX_HELD_S = 1.0
"""A longer time between the end of a piece and its commit is something else."""
TIMED_WORKERS = 4
"""Of each role: all of a worker's requests are needed to see how many ran beside each other."""

# A segment that takes an aside's head is no request to an engine: the aside is.
_REQUESTS = """(
        SELECT g.segment_index AS place, 1 AS kind, 0 AS number, g.author, g.worker_id, g.epoch, g.tokens_generated,
               g.prompt_tokens, g.cached_tokens, g.wait_seconds, g.queue_seconds, g.write_seconds, g.held_seconds,
               g.committed_at
        FROM segments g WHERE g.sample_id = s.id AND g.author <> 'inserted' AND g.taken_from IS NULL
        UNION ALL
        SELECT a.after_segment, 0, a.aside_index, a.author, a.worker_id, a.epoch, a.tokens_generated, a.prompt_tokens,
               a.cached_tokens, a.wait_seconds, a.queue_seconds, a.write_seconds, a.held_seconds, a.committed_at
        FROM asides a WHERE a.sample_id = s.id AND s.num_asides > 0
    )"""
"""Of the sample s, in the order of place, kind and number: its segments, and before each of them the asides."""
# Of complete samples only: what the others would have written is not known. The hash draws the same ones every time.
_SELECT_TRAJECTORIES = text(f"""
    SELECT s.id AS sample_id, r.author, r.tokens_generated AS tokens,
           r.prompt_tokens - r.cached_tokens AS computed_tokens, r.worker_id,
           coalesce(r.epoch = lag(r.epoch) OVER (PARTITION BY s.id ORDER BY r.place, r.kind, r.number), false) AS stays
    FROM (
        SELECT id, num_asides FROM samples WHERE job_id = :job AND state IN {COMPLETE}
        ORDER BY hashint8(id) LIMIT :limit
    ) s
    CROSS JOIN LATERAL {_REQUESTS} r
    ORDER BY s.id, r.place, r.kind, r.number
""")
_SELECT_WORKERS = text("""
    SELECT w.id, w.kind, coalesce(w.num_slots, w.max_in_flight) AS slots,
           e.settings->>'process' IS DISTINCT FROM 'separate' AS in_one_process
    FROM workers w LEFT JOIN engines e ON e.id = w.engine_id WHERE w.id = ANY(:workers)
""")
# Between two commits of a sample: the second one's wait for its claim, its writing, and its wait to be stored. Where
# much more is left than writers gather for, the sample was held back, rescued or paused meanwhile. What is written
# under one claim is stored together.
_SELECT_REQUESTS = text(f"""
    WITH timed AS (
        SELECT s.id, s.num_asides, r.*
        FROM samples s CROSS JOIN LATERAL {_REQUESTS} r
        WHERE s.job_id = :job AND r.worker_id = ANY(:workers) AND r.write_seconds IS NOT NULL
        ORDER BY r.committed_at LIMIT :limit
    )
    SELECT s.worker_id, s.tokens_generated AS tokens, s.prompt_tokens - s.cached_tokens AS computed_tokens,
           s.wait_seconds AS wait_s, s.write_seconds - coalesce(s.queue_seconds, 0) AS engine_s,
           extract(epoch FROM s.committed_at)::float8 - coalesce(s.held_seconds, 0) AS ended_at,
           CASE WHEN held.s <= {MAX_HELD_S} THEN greatest(0.0, held.s) END AS held_s
    FROM timed s LEFT JOIN LATERAL (
        SELECT extract(epoch FROM s.committed_at - p.committed_at)::float8 - s.wait_seconds - s.write_seconds AS s
        FROM {_REQUESTS} p
        WHERE (p.place, p.kind, p.number) < (s.place, s.kind, s.number) AND p.epoch < s.epoch
        ORDER BY p.place DESC, p.kind DESC, p.number DESC LIMIT 1
    ) held ON true
    ORDER BY s.committed_at
""")


def get_measured_job(connection: Connection, job_id: int) -> MeasuredJob:
    """What a plan needs of a job. Raises NotFound.

    Plan: the job's samples by the unique index on (job_id, …), their segments by primary key; a job of a million
    samples is read once through.
    """
    job = get_job(connection, job_id)
    with reading(f"job {job_id}: how it was written"):
        return _measure(connection, job)


def _measure(connection: Connection, job: Job) -> MeasuredJob:
    job_id = job.id
    rows = connection.execute(_SELECT_TRAJECTORIES, {"job": job_id, "limit": MAX_TRAJECTORIES}).all()
    trajectories: list[Trajectory] = [
        tuple(
            Piece(role=ModelRole(row.author), tokens=row.tokens, computed_tokens=row.computed_tokens, stays=row.stays)
            for row in sample
        )
        for _, sample in groupby(rows, lambda row: row.sample_id)
    ]
    written = Counter(row.worker_id for row in rows)
    workers = {
        row.id: MeasuredWorker(role=ModelRole(row.kind), max_in_flight=row.slots, in_one_process=row.in_one_process)
        for row in connection.execute(_SELECT_WORKERS, {"workers": list(written)})
    }
    timed = [
        worker_id
        for role in ModelRole
        for worker_id in [found for found, _ in written.most_common() if workers[found].role is role][:TIMED_WORKERS]
    ]
    requests = connection.execute(_SELECT_REQUESTS, {"job": job_id, "workers": timed, "limit": MAX_REQUESTS}).mappings()
    return MeasuredJob(
        job_id=job_id,
        num_samples=job.num_samples * job.num_problems,
        trajectories=tuple(trajectories),
        workers=workers,
        requests=tuple(MeasuredRequest(**row) for row in requests),
    )
