"""Makes the submissions of an experiment: alike in all but what the sweep varies."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import cast

from pipeline.errors import ConfigurationError
from pipeline.experiments.plan import PlannedRow
from pipeline.jobs.config import JobConfig
from pipeline.jobs.submission import Submission
from pipeline.problems.values import check_text
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
    for name in _ALIKE:
        given, before = getattr(config, name), getattr(first, name)
        if given != before:
            yield f"{name} {_told(given)} instead of {_told(before)}" if _is_plain(given, before) else f"another {name}"
    for role in ("small", "large"):
        model, other = getattr(config, role), getattr(first, role)
        if model is not None and other is not None and model.name != other.name:
            yield f"{role} {model.name} instead of {other.name}"


def _is_plain(*values: object) -> bool:
    return all(isinstance(value, str | int | float) for value in values)


def _told(value: object) -> str:
    return str(value)
