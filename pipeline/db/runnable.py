"""Says what a message about samples that wait for a worker carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from pipeline.db.states import home_worker, model_waited_for
from pipeline.samples import SUSPECT_AFTER, SampleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """A sample that now waits for somebody, and the queue of the worker that has its context cached, if it lives."""

    sample_id: int
    job_id: int
    epoch: int
    state: SampleState
    model: str | None
    """The model it waits for; None where it waits for a grader."""
    home_queue: str | None
    resumed: bool
    is_suspect: bool
    """Its workers died with it: upkeep sends it alone, nobody else does."""


_HOME_QUEUE = f"(SELECT w.queue FROM workers w WHERE w.ended_at IS NULL AND w.id = {home_worker('s.state')})"
_MODEL = f"(SELECT {model_waited_for('s.state')} FROM jobs j WHERE j.id = s.job_id)"
RUNNABLE_COLUMNS = (
    f"s.id AS sample_id, s.job_id, s.epoch, s.state, {_MODEL} AS model, {_HOME_QUEUE} AS home_queue, "
    f"s.num_segments + s.num_asides > 0 AS resumed, s.num_rescues >= {SUSPECT_AFTER} AS is_suspect"
)
"""What to select FROM samples s to make a Runnable."""


def runnable(row: Mapping[str, Any] | RowMapping) -> Runnable:
    return Runnable(**{**row, "state": SampleState(row["state"])})


_SELECT_RUNNABLE = text(f"SELECT {RUNNABLE_COLUMNS} FROM samples s WHERE s.id = ANY(:ids) ORDER BY s.id")


def select_runnable(connection: Connection, sample_ids: Sequence[int]) -> list[Runnable]:
    """The present state of some samples, as a message about them needs it."""
    if not sample_ids:
        return []
    return [runnable(row) for row in connection.execute(_SELECT_RUNNABLE, {"ids": list(sample_ids)}).mappings()]
