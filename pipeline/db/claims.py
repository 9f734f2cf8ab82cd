"""The statements about claims: claim, release, defer. Every one is fenced by the sample's epoch.

A claim raises the epoch; a message that names another epoch finds nothing and is dropped. A release or deferral
touches only rows that still have the epoch and the holder under which they were claimed. Rows are locked in the order
of their ids, so that two workers never wait for each other in a circle.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from pipeline.chat.translation import first_prompt_tokens
from pipeline.db.context_cache import EMPTY, Context, ContextCache, load_contexts
from pipeline.db.runnable import Runnable, select_runnable
from pipeline.db.states import model_waited_for, waiting_again
from pipeline.policies.protocol import PolicyState
from pipeline.problems import Problem
from pipeline.samples import RUNNABLE_STATE, SUSPECT_AFTER, WRITING_STATE, ModelRole
from pipeline.segments import storable


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedSample:
    """A sample this worker holds, with all it needs to go on writing."""

    sample_id: int
    job_id: int
    epoch: int
    problem_id: int
    problem: Problem
    sample_index: int
    policy_state: PolicyState | None
    next_request: Any
    """As it is stored: ``policies.requests`` reads it, or says that it is damaged."""
    budget: int | None
    """Most output tokens, where it has a larger budget than its job's."""
    runnable_at: dt.datetime | None
    """Since when it could be claimed. Of two histories of a database only what both have in common gives the same."""
    wait_seconds: float | None
    """Since then, however often a message was sent."""
    context: Context
    num_prompt_tokens: int | None
    """Of the rendered prompt, as the first writer read it; None where nobody has written."""


_HOME_IS_HERE = ", ".join(
    f"{role.value}_worker_id = CASE s.state WHEN {state.value!r} THEN :worker ELSE s.{role.value}_worker_id END"
    for role, state in RUNNABLE_STATE.items()
)
_CLAIM = text(f"""
    WITH message AS (SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS m(id, epoch)),
    me AS MATERIALIZED (
        SELECT w.model FROM workers w
        WHERE w.id = :worker AND w.ended_at IS NULL AND w.expires_at > clock_timestamp() FOR SHARE
    ),
    suspect AS (
        SELECT min(s.id) AS id FROM samples s JOIN message m ON m.id = s.id AND m.epoch = s.epoch
        WHERE s.state = :runnable AND s.num_rescues >= {SUSPECT_AFTER}
          AND (CAST(:job AS bigint) IS NULL OR s.job_id = :job)
          AND NOT EXISTS (SELECT FROM samples o WHERE o.holder_id = :worker AND o.num_rescues >= {SUSPECT_AFTER})
    ),
    mine AS (
        SELECT s.id
        FROM samples s JOIN message m ON m.id = s.id AND m.epoch = s.epoch JOIN jobs j ON j.id = s.job_id
        WHERE s.state = :runnable AND j.state = 'running'
          AND (CAST(:job AS bigint) IS NULL OR s.job_id = :job)
          AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
          AND {model_waited_for("s.state")} = (SELECT model FROM me)
          AND (s.num_rescues < {SUSPECT_AFTER} OR s.id = (SELECT id FROM suspect))
        ORDER BY s.id FOR UPDATE OF s
    ),
    claimed AS (
        UPDATE samples s SET state = :writing, epoch = s.epoch + 1, holder_id = :worker,
               {_HOME_IS_HERE}
        FROM mine WHERE s.id = mine.id
        RETURNING s.id, s.job_id, s.epoch, s.problem_id, s.sample_index, s.policy_state, s.max_tokens, s.next_request,
                  s.num_segments, s.num_asides, s.runnable_at
    )
    SELECT c.id AS sample_id, c.job_id, c.epoch, c.problem_id, c.sample_index, c.policy_state, c.max_tokens AS budget,
           c.next_request, c.num_segments, c.num_asides, c.runnable_at,
           extract(epoch FROM clock_timestamp() - c.runnable_at)::float8 AS wait_seconds,
           p.external_id, p.prompt, p.shown
    FROM claimed c JOIN problems p ON p.id = c.problem_id
    ORDER BY c.num_segments + c.num_asides = 0, c.id
""")


def claim_samples(
    connection: Connection,
    *,
    worker_id: int,
    role: ModelRole,
    epochs: Mapping[int, int],
    job_id: int | None = None,
    cache: ContextCache | None = None,
) -> list[ClaimedSample]:
    """Take the samples that still wait at the epochs a message names; resumed ones come first.

    epochs: sample id → epoch. Samples that moved on meanwhile, and those of another job than job_id, are left out; so
    are suspects beside a first one: of two that lose their worker together, nobody could tell who killed it.
    cache: what this process has of their contexts; the contexts that are loaded now are kept there. A worker whose
    lease lapsed gets nothing: its row is locked before any sample's, so that a claim and the winding up of its worker
    never pass each other.
    Plan: samples by primary key, at most as many as the message names.
    """
    rows = connection.execute(
        _CLAIM,
        {
            "ids": list(epochs),
            "epochs": list(epochs.values()),
            "worker": worker_id,
            "job": job_id,
            "runnable": RUNNABLE_STATE[role].value,
            "writing": WRITING_STATE[role].value,
        },
    ).mappings()
    claimed = [dict(row) for row in rows]
    if not claimed:
        return []
    with_segments = {row["sample_id"] for row in claimed if row.pop("num_segments")}
    with_asides = {row["sample_id"] for row in claimed if row.pop("num_asides")}
    resumed = [row["sample_id"] for row in claimed if row["sample_id"] in with_segments | with_asides]
    contexts = load_contexts(connection, resumed, cache or ContextCache(), with_asides=with_asides)
    return [_claimed_sample(row, contexts.get(row["sample_id"], EMPTY)) for row in claimed]


def _claimed_sample(row: dict[str, Any], context: Context) -> ClaimedSample:
    problem = Problem(
        external_id=row.pop("external_id"),
        prompt=row.pop("prompt"),
        metadata=row.pop("shown"),
    )
    lengths = ((segment.prompt_tokens, len(segment.token_ids)) for segment in context.segments)
    return ClaimedSample(problem=problem, context=context, num_prompt_tokens=first_prompt_tokens(lengths), **row)


_MINE = """
    SELECT s.id, s.num_attempts FROM samples s
    JOIN unnest(CAST(:ids AS bigint[]), CAST(:epochs AS integer[])) AS claim(id, epoch)
      ON s.id = claim.id AND s.epoch = claim.epoch
    WHERE s.holder_id = :worker ORDER BY s.id FOR UPDATE OF s
"""
_RELEASE = text(f"""
    WITH mine AS ({_MINE})
    UPDATE samples s SET
        state = {waiting_again("s.state")},
        epoch = s.epoch + 1, holder_id = NULL, runnable_at = clock_timestamp(), published_at = clock_timestamp()
    FROM mine WHERE s.id = mine.id
    RETURNING s.id
""")


def release_samples(connection: Connection, *, worker_id: int, epochs: Mapping[int, int]) -> list[Runnable]:
    """Hand samples back at their last committed segment. epochs: sample id → epoch of the claim."""
    values = {"worker": worker_id, "ids": list(epochs), "epochs": list(epochs.values())}
    released = connection.execute(_RELEASE, values).scalars().all()
    return select_runnable(connection, sorted(released))


_DEFER = text(f"""
    WITH locked AS ({_MINE}),
    mine AS (
        SELECT id, num_attempts + 1 >= :max_attempts AS is_last,
               clock_timestamp() + least(interval '1 s' * 2 ^ least(num_attempts, 10), interval '1 min') AS not_before
        FROM locked
    )
    UPDATE samples s SET
        epoch = s.epoch + 1, holder_id = NULL, num_attempts = s.num_attempts + 1, published_at = '-infinity',
        not_before = mine.not_before, runnable_at = mine.not_before,
        state = CASE WHEN mine.is_last THEN 'failed' ELSE {waiting_again("s.state")} END,
        error_class = CASE WHEN mine.is_last THEN 'engine_refused' END, error = CASE WHEN mine.is_last THEN :error END,
        ended_at = CASE WHEN mine.is_last THEN clock_timestamp() END
    FROM mine WHERE s.id = mine.id
""")


def defer_samples(
    connection: Connection, *, worker_id: int, epochs: Mapping[int, int], error: str, max_attempts: int
) -> None:
    """Hand back samples that an engine refused for the moment: to be claimed again after 1, 2, 4 … 60 seconds.

    epochs: sample id → epoch of the claim. error: why; it is kept where this was the last of max_attempts without a
    commit between them, and the sample fails. The delay lives in the row: upkeep publishes when it is over.
    """
    claims = {"worker": worker_id, "ids": list(epochs), "epochs": list(epochs.values())}
    connection.execute(_DEFER, claims | {"error": storable(error), "max_attempts": max_attempts})


_HELD = text("SELECT id, epoch FROM samples WHERE holder_id = :worker")


def held_epochs(connection: Connection, worker_id: int) -> dict[int, int]:
    """What a worker holds, by the database: sample id → epoch."""
    return {row.id: row.epoch for row in connection.execute(_HELD, {"worker": worker_id})}
