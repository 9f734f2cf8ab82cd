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


def differences(config: JobConfig, first: JobConfig) -> Iterator[str]:
    """What a row would have that the first row has otherwise."""
    yield from field_differences(config, first, _ALIKE)
    yield from model_differences(config, first, WRITING_ROLES)
    yield from asking_differences(config, first, WRITING_ROLES)
