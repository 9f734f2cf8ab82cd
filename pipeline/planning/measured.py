"""What a plan is made from: what was measured of the segments and asides of a job that ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.planning.pools import Trajectory
from pipeline.samples import ModelRole


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRequest:
    """One request to an engine, as the segment or aside that it gave tells of it."""

    worker_id: int
    tokens: int
    """Generated: kept, discarded and EOS."""
    computed_tokens: int
    """Of its prompt: those that the prefix cache did not have."""
    wait_s: float | None
    """From publishing to claim; None where no message was sent."""
    engine_s: float
    """From the engine's first work on it to its end."""
    held_s: float | None = None
    """From its end to its commit, for which writers gather; None where it is not known, as of a sample's first."""
    ended_at: float
    """When its commit began, in seconds of the database's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredWorker:
    """A worker that wrote some of the job. in_one_process: whether its engine has no process of its own."""

    role: ModelRole
    max_in_flight: int
    in_one_process: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredJob:
    """What was measured of a job.

    trajectories: of complete samples, drawn at random where there are many. workers: all that wrote for it. requests:
    all that some of these workers wrote, so that how many ran beside each other can be seen.
    """

    job_id: int
    num_samples: int
    trajectories: tuple[Trajectory, ...]
    workers: Mapping[int, MeasuredWorker]
    requests: tuple[MeasuredRequest, ...]
