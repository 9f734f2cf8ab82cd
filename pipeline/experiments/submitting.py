"""Makes the submissions of an experiment: alike in all but what the sweep varies."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import cast

from pipeline.errors import ConfigurationError
from pipeline.experiments.plan import PlannedRow
from pipeline.jobs.config import JobConfig
from pipeline.jobs.likeness import asking_differences, field_differences, model_differences
from pipeline.jobs.submission import Submission
from pipeline.problems.values import check_text
from pipeline.results.jobs import Job
from pipeline.samples import WRITING_ROLES
from pipeline.submit_options import SubmitOptions

_DRAWN_SEEDS = 2**31
_ALIKE = (
    "num_samples", "seed", "sampling", "small_sampling", "large_sampling", "prompt_template", "template_text",
    "few_shot", "grader", "cut_samples",
)  # fmt: skip
"""Fields of a configuration that are one in all rows; models are where both have one."""


def check_name(experiment: str) -> None:
    """Raises ConfigurationError for a name that cannot be stored."""
    try:
        check_text(experiment)
    except ValueError as error:
        raise ConfigurationError(f"the experiment's name has {error}, which cannot be stored") from error
    if not experiment.strip():
        raise ConfigurationError("the experiment has no name; give it one, by which it is run again")


def with_seed(options: SubmitOptions, first: JobConfig | None) -> SubmitOptions:
    """The options with the seed of the experiment's first job, or one drawn now, where none was given."""
    if options.get("seed") is not None:
        return options
    seed = first.seed if first is not None else secrets.randbelow(_DRAWN_SEEDS)
    return cast("SubmitOptions", {**options, "seed": seed})


def row_submission(experiment: str, row: PlannedRow, shared: Submission) -> Submission:
    """The job of a row. shared: what all rows have in common."""
    values = {name: getattr(shared, name) for name in shared.model_fields_set}
    own = {"policy": row.policy, "name": f"{experiment} · {row.name}", **row.options}
    return Submission.parse(**values | own)


def require_same_pilot(row: PlannedRow, job: Job) -> None:
    """Raises ConfigurationError where the job that is a row has its threshold from another pilot than is asked for."""
    wanted, config = row.options.get("calibrated_from"), job.stored_config
    pilot = config.calibrated_from if config else None
    if wanted is not None and pilot is not None and wanted["job"] != pilot.job:
        raise ConfigurationError(
            f"row {row.name!r} (job {job.id}) has its threshold from the pilot {pilot.job}, not from {wanted['job']}: "
            "give that pilot, or the experiment another name"
        )


def differences(config: JobConfig, first: JobConfig) -> Iterator[str]:
    """What a row would have that the first row has otherwise."""
    yield from field_differences(config, first, _ALIKE)
    yield from model_differences(config, first, WRITING_ROLES)
    yield from asking_differences(config, first, WRITING_ROLES)
