"""The statements of admission: let fresh samples into the pipeline, as many as ``pipeline.admission`` has room for.

One short transaction, repeated each round; what it returns is published after the commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, text

from pipeline.admission import Lane, ModelPool, Room, Traffic
from pipeline.db.runnable import Runnable, select_runnable
from pipeline.db.states import ADMITTED, PENDING, model_of, role_of, runnable_state_of, why_not_served
from pipeline.samples import ModelRole

_LANE = ", ".join(["j.first_role", *(f"j.{role.value}_model" for role in ModelRole)])
_MISFITS = " ".join(f"WHEN {role.value!r} THEN {why_not_served(role)}" for role in ModelRole)
_LIVE = """
    live AS MATERIALIZED (
        SELECT DISTINCT w.kind, w.model, e.model_fingerprint, e.weights_sha256, e.revision
        FROM workers w LEFT JOIN engines e ON e.id = w.engine_id
        WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp()
    )"""
_CAN_BEGIN = f"""
    j.state = 'running' AND EXISTS (
        SELECT FROM live e
        WHERE e.kind = j.first_role AND e.model = {model_of("j.first_role")}
          AND CASE j.first_role {_MISFITS} END IS NULL)"""
SUPPLY = text("""
    SELECT kind AS role, model, sum(coalesce(num_slots, max_in_flight)) AS slots, sum(max_in_flight) AS most
    FROM workers
    WHERE ended_at IS NULL AND expires_at > clock_timestamp() AND model IS NOT NULL GROUP BY kind, model
""")
TRAFFIC = text(f"""
    WITH {_LIVE},
    admitted AS MATERIALIZED (
        SELECT s.job_id, {role_of("s.state")} AS role, count(*) AS number,
               count(*) FILTER (WHERE s.num_segments = 0) AS unwritten
        FROM samples s WHERE s.{ADMITTED} GROUP BY 1, 2
    )
    SELECT {_LANE}, a.role, sum(a.number)::integer AS number,
           sum(a.unwritten) FILTER (WHERE a.role = j.first_role) AS fresh
    FROM admitted a JOIN jobs j ON j.id = a.job_id
    WHERE {_CAN_BEGIN} GROUP BY {_LANE}, a.role
""")
WAITING = text(f"""
    WITH {_LIVE}
    SELECT j.id AS job_id, {_LANE} FROM jobs j
    WHERE {_CAN_BEGIN} AND EXISTS (SELECT FROM samples s WHERE s.job_id = j.id AND s.{PENDING})
    ORDER BY j.priority DESC, j.id
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
    supply = {ModelPool(row.role, row.model): row for row in connection.execute(SUPPLY)}
    places = {pool: math.ceil(row.slots * ahead) for pool, row in supply.items()}
    jobs = [(row.job_id, row.first_role, _lane(row, places)) for row in waiting]
    lanes = {lane: Traffic() for _, _, lane in jobs}
    for row in connection.execute(TRAFFIC):
        traffic = lanes.setdefault(_lane(row, places), Traffic())
        traffic.at[_pools(row)[row.role]] += row.number
        traffic.fresh += int(row.fresh or 0)
    room = Room(places, lanes, short=frozenset(pool for pool, row in supply.items() if row.slots < row.most))
    admitted: list[int] = []
    until = time.monotonic() + ADMITTING_S
    for job_id, first_role, lane in jobs:
        if time.monotonic() > until:
            break
        left = room.left(lane)
        if left <= 0:
            continue
        values = {"job": job_id, "room": left, "first_role": first_role}
        ids = connection.execute(ADMIT, values).scalars().all()
        room.let_in(lane, len(ids))
        admitted.extend(ids)
    return select_runnable(connection, sorted(admitted))


def _lane(job: Row[Any], places: Mapping[ModelPool, int]) -> Lane:
    pools = _pools(job)
    opening = pools.pop(job.first_role)
    return Lane(opening, tuple(pool for pool in pools.values() if pool in places))


def _pools(job: Row[Any]) -> dict[str, ModelPool]:
    """Those of a job's models, by role."""
    models = {"small": job.small_model, "large": job.large_model, "judge": job.judge_model}
    return {role: ModelPool(role, model) for role, model in models.items() if model is not None}
