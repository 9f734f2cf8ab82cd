"""The statements of planning: how the samples of a job went, and how long their segments took. No text is read."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from sqlalchemy import Connection, text

from pipeline.db.readable import reading
from pipeline.db.report_queries import get_job
from pipeline.db.states import COMPLETE
from pipeline.planning.measured import MeasuredJob, MeasuredRequest, MeasuredWorker
from pipeline.planning.pools import Piece, Trajectory
from pipeline.results.reports import Job
from pipeline.samples import ModelRole

MAX_TRAJECTORIES = 2000
"""Complete samples whose trajectories are read: their mean length is then known to about 1 %."""
MAX_REQUESTS = 50_000
MAX_HELD_S = 1.0
"""A longer time between the end of a piece and its commit is something else."""
TIMED_WORKERS = 4
"""Of each role: all of a worker's requests are needed to see how many ran beside each other."""

# Of complete samples only: what the others would have written is not known. The hash draws the same ones every time.
_SELECT_TRAJECTORIES = text(f"""
    WITH chosen AS (
        SELECT id FROM samples WHERE job_id = :job AND state IN {COMPLETE}
        ORDER BY hashint8(id) LIMIT :limit
    )
    SELECT g.sample_id, g.author, g.tokens_generated AS tokens, g.prompt_tokens - g.cached_tokens AS computed_tokens,
           g.worker_id
    FROM chosen c JOIN segments g ON g.sample_id = c.id WHERE g.author IN ('small', 'large')
    ORDER BY g.sample_id, g.segment_index
""")
_SELECT_WORKERS = text("""
    SELECT w.id, w.kind, coalesce(w.num_slots, w.max_in_flight) AS slots,
           e.settings->>'process' IS DISTINCT FROM 'separate' AS in_one_process
    FROM workers w LEFT JOIN engines e ON e.id = w.engine_id WHERE w.id = ANY(:workers)
""")
# Between two commits of a sample: the second one's wait for its claim, its writing, and its wait to be stored. Where
# much more is left than writers gather for, the sample was held back, rescued or paused meanwhile.
_SELECT_REQUESTS = text(f"""
    WITH timed AS (
        SELECT g.* FROM samples s JOIN segments g ON g.sample_id = s.id
        WHERE s.job_id = :job AND g.worker_id = ANY(:workers) AND g.write_seconds IS NOT NULL
        ORDER BY g.committed_at LIMIT :limit
    )
    SELECT g.worker_id, g.tokens_generated AS tokens, g.prompt_tokens - g.cached_tokens AS computed_tokens,
           g.wait_seconds AS wait_s, g.write_seconds - coalesce(g.queue_seconds, 0) AS engine_s,
           extract(epoch FROM g.committed_at)::float8 - coalesce(g.held_seconds, 0) AS ended_at,
           CASE WHEN held.s <= {MAX_HELD_S} THEN greatest(0.0, held.s) END AS held_s
    FROM timed g LEFT JOIN LATERAL (
        SELECT extract(epoch FROM g.committed_at - p.committed_at)::float8 - g.wait_seconds - g.write_seconds AS s
        FROM segments p
        WHERE p.sample_id = g.sample_id AND p.segment_index < g.segment_index AND p.author <> 'inserted'
        ORDER BY p.segment_index DESC LIMIT 1
    ) held ON true
    ORDER BY g.committed_at
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
            Piece(role=ModelRole(row.author), tokens=row.tokens, computed_tokens=row.computed_tokens) for row in sample
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
