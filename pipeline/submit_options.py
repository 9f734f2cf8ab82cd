"""The options of a submission as keywords, so that an editor completes them and mypy checks them.

``pipeline.jobs.submission.Submission`` says what each means, checks its value and has its default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

from pydantic import JsonValue

from pipeline.chat.asking import Asking, ThinkTags
from pipeline.jobs.config import CalibratedFrom, RoleDrawingSpec
from pipeline.jobs.few_shot import FewShot, FewShotFile
from pipeline.jobs.submission import ModelChoice
from pipeline.policies.exits import AnyExitSpec
from pipeline.policies.guards import LoopGuard
from pipeline.problems import ColumnNames
from pipeline.results.jobs import Job
from pipeline.samples import CutSamples


class SubmitOptions(TypedDict, total=False):
    """What may be said beside the problems: the fields of Submission by name; matched_to may be a Job."""

    columns: ColumnNames | None
    keep: tuple[str, ...]
    recipe: str | None
    small: ModelChoice | None
    large: ModelChoice | None
    judge: ModelChoice | None
    small_revision: str | None
    large_revision: str | None
    judge_revision: str | None
    policy: str
    policy_values: Mapping[str, Any]
    exit: AnyExitSpec | str | None
    guard: LoopGuard | None
    matched_to: Job | int | None
    calibrated_from: CalibratedFrom | None
    num_samples: int
    seed: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    stop: tuple[str, ...] | None
    max_tokens: int | None
    small_sampling: RoleDrawingSpec
    large_sampling: RoleDrawingSpec
    system: str | None
    template_variables: dict[str, JsonValue]
    think_tags: ThinkTags | tuple[()] | None
    small_asking: Asking
    large_asking: Asking
    judge_asking: Asking
    prompt_template: str | None
    prompt_file: Path | str | None
    template_text: str | None
    few_shot: FewShotFile | FewShot | None
    grader: str | None
    cut_samples: CutSamples
    limit: int | None
    name: str | None
    cloned_from: int | None


_Function = TypeVar("_Function", bound=Callable[..., Any])


def shows_options(function: _Function) -> _Function:
    """``help`` and ``inspect.signature`` show each of its options, and not ``**options`` alone."""
    signature = inspect.signature(function)
    given = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=kind)
        for name, kind in SubmitOptions.__annotations__.items()
    ]
    cast("Any", function).__signature__ = signature.replace(parameters=[*given, *named])
    return function
