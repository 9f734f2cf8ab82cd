"""What read queries say of jobs themselves: as they were submitted, what commands did to them, what they take."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DamagedRow
from pipeline.jobs.config import FINAL_JOB_STATES, JobConfig, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it was submitted, and its state when it was read."""

    id: int
    name: str
    state: JobState
    policy: str
    small_model: str | None
    large_model: str | None
    judge_model: str | None
    problem_set: str
    problem_set_id: int
    num_problems: int
    num_samples: int
    """Per problem."""
    stored_config: JobConfig | None
    """None where it cannot be read; ``config`` says why."""
    versions: dict[str, Any]
    """Of the packages of the client that submitted it."""
    submitted_at: dt.datetime
    first_claimed_at: dt.datetime | None
    finished_at: dt.datetime | None
    priority: int = 0
    """Jobs with a higher one are admitted first."""
    cloned_from: int | None = None
    """The job whose problems and configuration it took."""
    unreadable: str | None = None
    """What of its row cannot be read, and why; None where all of it can."""

    @property
    def config(self) -> JobConfig:
        """Raises DamagedRow where it cannot be read."""
        if self.stored_config is None:
            raise DamagedRow(f"job {self.id} is unreadable: {self.unreadable}")
        return self.stored_config

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_JOB_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """What a command did to a job.

    state: of the job afterwards. is_new: False where the job was as it should be before, and nothing was changed.
    num_samples: how many samples it concerns: those still open when the job was cancelled, those being written when
        it was paused, those that go on at once when it is resumed, those that are tried again.
    """

    job_id: int
    state: JobState
    is_new: bool
    num_samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """What a job takes in the database. num_bytes: of its rows, without indexes."""

    job_id: int
    name: str
    state: str
    finished_at: dt.datetime | None
    num_samples: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvents:
    """What the events of a job's samples take in the database, without indexes."""

    job_id: int
    name: str
    state: str
    finished_at: dt.datetime | None
    num_rows: int
    num_bytes: int
