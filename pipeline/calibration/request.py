"""What a calibration is asked for, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pipeline.calibration.calibrating import (
    ASIDE,
    Calibration,
    Pilot,
    Question,
    ShareOf,
    StatisticReport,
    calibrate,
    step_tokens_of,
)
from pipeline.calibration.overlap import Overlap, overlap_caveats
from pipeline.calibration.steps import USUAL_RULE, StepRule
from pipeline.calibration.thresholds import Side
from pipeline.errors import ConfigurationError, JobError
from pipeline.policies import PluginSpec, PolicySpec, parse_policy, settable_fields
from pipeline.policies.relay import RelaySpec
from pipeline.samples import ModelRole

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
FEW_PROBLEMS = 50
"""Of fewer problems a pilot's intervals are wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """A question with the policy that it is for. field: what the threshold is set by. rule: the policy's, where it has
    the fields ``min_step_tokens`` and ``confident_below_perplexity``. first_steps: that it lets large write of each
    text, whatever the threshold."""

    question: Question
    policy: str | None = None
    field: str = "policy.threshold"
    rule: StepRule = USUAL_RULE
    first_steps: int = 0

    @classmethod
    def parse(
        cls,
        *,
        policy: str | None = None,
        policy_values: Mapping[str, Any] | None = None,
        shares: Sequence[float] = SHARES,
        share_of: str = ShareOf.STEPS,
        statistic: str | None = None,
        side: str | None = None,
        field: str | None = None,
        step_tokens: float | None = None,
    ) -> CalibrationRequest:
        """Raises ConfigurationError for a share that is none, for a policy without a threshold, and for a field that it
        has not."""
        wrong = [share for share in shares if not 0 < share < 1]
        if wrong or not shares:
            raise ConfigurationError(f"share {wrong[0] if wrong else ''}: give numbers between 0 and 1, as 0.1,0.2")
        if step_tokens is not None and not 1 <= step_tokens < math.inf:
            raise ConfigurationError(f"step_tokens {step_tokens:g}: give a number, at least 1")
        question = Question(
            shares=tuple(dict.fromkeys(shares)),
            share_of=_choice(ShareOf, share_of),
            step_tokens=step_tokens,
            statistic=statistic,
            side=None if side is None else _choice(Side, side),
        )
        if policy is None:
            return cls(question=question, field=_checked_field(field or "policy.threshold"))
        spec = parse_policy(policy, policy_values)
        rule = spec.threshold_rule
        if isinstance(spec, RelaySpec):
            raise ConfigurationError(
                f"policy {policy!r} has no threshold but words: --cues finds them in a pilot of large alone"
            )
        if rule is None and statistic is None:
            raise ConfigurationError(
                f"policy {policy!r} says of no threshold what it is compared with; give --statistic, --side and --field"
            )
        if rule is not None:
            question = dataclasses.replace(
                question, statistic=statistic or rule.statistic, side=question.side or Side(rule.side)
            )
        return cls(
            question=question,
            policy=policy,
            field=_checked_field(field or f"policy.{rule.field if rule else 'threshold'}", policy, spec),
            first_steps=getattr(spec, "first_steps", 0),
            rule=StepRule(
                min_tokens=getattr(spec, "min_step_tokens", USUAL_RULE.min_tokens),
                confident_below_perplexity=getattr(
                    spec, "confident_below_perplexity", USUAL_RULE.confident_below_perplexity
                ),
            ),
        )


def _checked_field(field: str, policy: str | None = None, spec: PolicySpec | None = None) -> str:
    """What a threshold is set by. Raises ConfigurationError where submit would take no such --set."""
    part, _, name = field.partition(".")
    if part not in ("policy", "exit") or not name:
        raise ConfigurationError(f"there is no {field!r} to set; write policy.NAME or exit.NAME, as in exit.threshold")
    if part == "policy" and spec is not None:
        fields = settable_fields(type(spec.load() if isinstance(spec, PluginSpec) else spec))
        if name not in fields:
            raise ConfigurationError(f"policy {policy} has no {name}; it has: {', '.join(fields) or 'nothing to set'}")
    return field


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(kind: type[_Choice], given: str) -> _Choice:
    names = [choice.value for choice in kind]
    if given not in names:
        raise ConfigurationError(f"{given!r}: give {' or '.join(names)}")
    return kind(given)


def make_calibration(pilot: Pilot, request: CalibrationRequest, overlap: Overlap | None = None) -> Calibration:
    """The answer. overlap: with what will be scored; None: nobody said what that is.

    Raises JobError for a pilot that stored nothing to calibrate on, or not the statistic that is asked for, or for a
    policy that of another model than it reads.
    """
    wanted = request.question.statistic
    names = [name for name, _ in pilot.statistics]
    if not names or not pilot.samples:
        raise JobError(
            pilot.job_id,
            "it stored no signal; submit a pilot with --policy small-only --set policy.signals=all",
        )
    if wanted is not None and wanted not in names:
        raise JobError(pilot.job_id, f"it has no {wanted!r}; it has: {', '.join(names)}")
    if request.policy is not None and wanted is not None:
        _require_small(pilot, request.policy, wanted)
    found = tuple(calibrate(pilot, request.question))
    return Calibration(
        job_id=pilot.job_id,
        policy=request.policy,
        field=request.field,
        num_problems=len(pilot.problems),
        num_samples=len(pilot.samples),
        num_scored=sum(sample.score is not None for sample in pilot.samples),
        accuracy=pilot.accuracy,
        mean_tokens=pilot.mean_tokens,
        step_tokens=step_tokens_of(pilot, request.question),
        share_of=request.question.share_of,
        statistics=found,
        caveats=tuple(_caveats(pilot, request, found, overlap)),
    )


def _require_small(pilot: Pilot, policy: str, statistic: str) -> None:
    """Raises JobError where what a policy reads of small's steps is known of another model's alone."""
    roles = [role for name, role in pilot.statistics if name == statistic]
    if ModelRole.SMALL not in roles and not statistic.startswith(ASIDE):
        raise JobError(
            pilot.job_id,
            f"its {statistic} is of the {roles[0]} model, and {policy} reads the small one's; submit a pilot with "
            "--policy small-only --set policy.signals=all",
        )


def chosen_threshold(found: Calibration) -> dict[str, float]:
    """The field of the policy that the one threshold goes into, with its value. Raises JobError where there is none."""
    thresholds = [row.threshold for report in found.statistics for row in report.thresholds]
    if len(thresholds) != 1:
        raise JobError(found.job_id, f"it gives no threshold for {found.policy!r}: {'; '.join(found.caveats)}")
    return {found.field.removeprefix("policy."): thresholds[0]}


def _caveats(
    pilot: Pilot,
    request: CalibrationRequest,
    found: Sequence[StatisticReport],
    overlap: Overlap | None,
) -> Iterator[str]:
    yield from overlap_caveats(overlap)
    if request.first_steps:
        yield (
            f"{request.policy} lets large write the first {request.first_steps} steps of a text, whatever the "
            "threshold: what is foretold is of the steps after them"
        )
    if len(pilot.problems) < FEW_PROBLEMS:
        yield f"the pilot has {len(pilot.problems)} problems; {FEW_PROBLEMS} or more give narrower intervals"
    for report in found:
        told = report.separation
        if told is None:
            yield f"{report.name}: the pilot's samples are all right, all wrong or unscored, so nothing says its sign"
        elif told.bad_side is not None and told.bad_side is not report.side:
            yield (
                f"{report.name}: wrong samples are {told.bad_side} here (AUC {told.auc:.2f}), and this calls large "
                f"{report.side} the threshold: where small is right"
            )
        left_out = [f"{share:g}" for share in _left_out(report, request.question)]
        if report.least == report.greatest:
            yield f"{report.name}: all values are equal; there is no threshold"
        elif left_out:
            yield f"{report.name}: share {', '.join(left_out)} of the tokens needs more than every place"


def _left_out(report: StatisticReport, question: Question) -> list[float]:
    given = {threshold.wanted for threshold in report.thresholds}
    return [share for share in question.shares if share not in given]
