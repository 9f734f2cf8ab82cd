"""The statements of admission: let fresh samples into the pipeline, as many as ``pipeline.admission`` has room for.

One short transaction, repeated each round; what it returns is published after the commit.
"""

from __future__ import annotations

import math
import time
from typing import Any

from sqlalchemy import Connection, Row, text

from pipeline.admission import ModelPool, Room
from pipeline.db.runnable import Runnable, select_runnable
from pipeline.db.states import ADMITTED, PENDING, model_of, role_of, runnable_state_of, why_not_served
from pipeline.samples import ModelRole

_MODELS = ", ".join(f"j.{role.value}_model" for role in ModelRole)
_MISFITS = " ".join(f"WHEN {role.value!r} THEN {why_not_served(role)}" for role in ModelRole)
_DEMAND = f"""
    live AS MATERIALIZED (
        SELECT DISTINCT w.kind, w.model, e.model_fingerprint, e.weights_sha256, e.revision
        FROM workers w LEFT JOIN engines e ON e.id = w.engine_id
        WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp()
    ),
    demand AS MATERIALIZED (
        SELECT j.id, j.priority, j.first_role, {_MODELS}, {model_of("j.first_role")} AS first_model
        FROM jobs j
        WHERE j.state = 'running' AND EXISTS (
            SELECT FROM live e
            WHERE e.kind = j.first_role AND e.model = {model_of("j.first_role")}
              AND CASE j.first_role {_MISFITS} END IS NULL)
    )"""
SUPPLY = text("""
    SELECT kind AS role, model, sum(coalesce(num_slots, max_in_flight)) AS slots FROM workers
    WHERE ended_at IS NULL AND expires_at > clock_timestamp() AND model IS NOT NULL GROUP BY kind, model
""")
THERE = text(f"""
    WITH {_DEMAND}
    SELECT d.first_role, d.first_model, {role_of("s.state")} AS role,
           {model_of(role_of("s.state"), job="d")} AS model, count(*) AS number
    FROM samples s JOIN demand d ON d.id = s.job_id
    WHERE s.{ADMITTED} GROUP BY 1, 2, 3, 4
""")
WAITING = text(f"""
    WITH {_DEMAND}
    SELECT d.id AS job_id, d.first_role, d.first_model, d.small_model, d.large_model, d.judge_model
    FROM demand d
    WHERE EXISTS (SELECT FROM samples s WHERE s.job_id = d.id AND s.{PENDING})
    ORDER BY d.priority DESC, d.id
""")
ADMIT = text(f"""
    WITH chosen AS (
        SELECT s.id FROM samples s
        WHERE s.job_id = :job AND {PENDING}
          AND {runnable_state_of("coalesce(s.next_role, :first_role)")} IS NOT NULL
        ORDER BY s.id LIMIT :room FOR UPDATE SKIP LOCKED
    )
    UPDATE samples s SET
        state = {runnable_state_of("coalesce(s.next_role, :first_role)")},
        admitted_at = coalesce(s.admitted_at, clock_timestamp()),
        runnable_at = clock_timestamp(), published_at = clock_timestamp()
    FROM chosen WHERE s.id = chosen.id
    RETURNING s.id
""")

ADMITTING_S = 0.3
"""So long jobs are looked at, one statement each: with thousands of small jobs the next round goes on."""


def admit_samples(connection: Connection, *, ahead: float) -> list[Runnable]:
    """Let in as many waiting samples as the live workers have room for (``Room``).

    Jobs with a higher priority first, then older ones, for ADMITTING_S. A job that no live worker's model may write
    takes no room from others of the same name.

    ahead: places per slot. A worker whose cache cannot hold the contexts of so many says fewer slots with its heartbeat
    (CacheRoom).
    """
    waiting = connection.execute(WAITING).all()
    if not waiting:
        return []
    jobs = [(row, ModelPool(row.first_role, row.first_model)) for row in waiting]
    room = Room({ModelPool(row.role, row.model): math.ceil(row.slots * ahead) for row in connection.execute(SUPPLY)})
    needed = {row.job_id: [pool for pool in _pools(row) if pool in room.places] for row in waiting}
    for row in connection.execute(THERE):
        room.there[ModelPool(row.first_role, row.first_model), ModelPool(row.role, row.model)] += row.number
    for opening, pool in [*room.there, *((opening, pool) for row, opening in jobs for pool in needed[row.job_id])]:
        room.sharers[pool].add(opening)
    admitted: list[int] = []
    until = time.monotonic() + ADMITTING_S
    for row, opening in jobs:
        if time.monotonic() > until:
            break
        left = room.left(opening, needed[row.job_id])
        if left <= 0:
            continue
        values = {"job": row.job_id, "room": left, "first_role": row.first_role}
        ids = connection.execute(ADMIT, values).scalars().all()
        room.let_in(opening, needed[row.job_id], len(ids))
        admitted.extend(ids)
    return select_runnable(connection, sorted(admitted))


def _pools(job: Row[Any]) -> list[ModelPool]:
    """Those of a job's models."""
    models = {ModelRole.SMALL: job.small_model, ModelRole.LARGE: job.large_model, ModelRole.JUDGE: job.judge_model}
    return [ModelPool(role.value, model) for role, model in models.items() if model is not None]
