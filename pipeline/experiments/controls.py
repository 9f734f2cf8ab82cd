"""Controls of an experiment: what is matched to each row, so that a gain is not what tokens alone are worth."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import assert_never

from pipeline.experiments.results import ExperimentJob
from pipeline.jobs.exit_matching import CONTROLS
from pipeline.jobs.submission import SourceJob, Submission, bare_label
from pipeline.results.jobs import Job

RANDOM = "random"
"""The policy."""


class Control(StrEnum):
    """What is matched to a row: random takeovers, or an exit that knows nothing of the text."""

    TAKEOVERS = "random"
    CUT = "cut"
    RANDOM_EXIT = "random exit"


def is_control_name(name: str) -> bool:
    """Whether a row of this name was made as a control."""
    return name.startswith(tuple(f"{control.value} for " for control in Control))


def control_name(row: ExperimentJob, control: Control) -> str:
    return f"{control.value} for {row.name}"


def lacking_controls(row: ExperimentJob, job: Job, rows: Sequence[ExperimentJob]) -> list[Control]:
    """What can be matched to a row now, and is not yet."""
    if row.control_of is not None or not job.is_final:
        return []
    wanted = []
    config = job.config
    if bare_label(job.policy, config.exit) != RANDOM and None not in (job.small_model, job.large_model):
        wanted.append(Control.TAKEOVERS)
    if config.exit is not None and config.exit.name not in CONTROLS:
        wanted += [Control.CUT, Control.RANDOM_EXIT]
    own = {other.name for other in rows if other.control_of == row.job_id}
    return [control for control in wanted if control_name(row, control) not in own]


def control_submission(experiment: str, row: ExperimentJob, source: SourceJob, control: Control) -> Submission:
    """A row's control: the same problems, asked alike, with another policy or another exit."""
    name = f"{experiment} · {control_name(row, control)}"
    match control:
        case Control.TAKEOVERS:
            found = Submission.from_job(source, {"policy": RANDOM}, name=name).model_copy(update={"policy_values": {}})
        case Control.CUT:
            found = Submission.from_job(source, {"exit": "cut", "exit.thinking_tokens": 1}, name=name)
        case Control.RANDOM_EXIT:
            found = Submission.from_job(source, {"exit": "random"}, name=name)
        case _:
            assert_never(control)
    return found.model_copy(update={"matched_to": source.id, "cloned_from": None})
