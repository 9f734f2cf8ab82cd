"""Makes the report of an experiment from what the database gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.experiments.comparing import Measured, difference, gain_over_random, mean_per_sample, pareto_front
from pipeline.experiments.controls import is_control_name
from pipeline.experiments.results import (
    Difference,
    Estimate,
    ExperimentJob,
    ExperimentReport,
    Gain,
    ProblemSums,
    RowReport,
    TokensByOwner,
)
from pipeline.jobs.config import FINAL_JOB_STATES, JobState
from pipeline.jobs.submission import bare_label
from pipeline.results.intervals import Interval
from pipeline.results.jobs import Job
from pipeline.results.reports import BudgetPoint, JobCost, JobSummary

_WHOLE = FINAL_JOB_STATES - {JobState.CANCELLED}
SMALL_ALONE, LARGE_ALONE, RANDOM = "small-only", "large-only", "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """All that is read of a row's job."""

    row: ExperimentJob
    job: Job
    summary: JobSummary
    cost: JobCost
    problems: Mapping[str, ProblemSums]
    budget_curve: tuple[BudgetPoint, ...]

    @property
    def measured(self) -> Measured | None:
        return Measured(job_id=self.job.id, problems=self.problems) if self.problems else None

    @property
    def policy(self) -> str:
        return self.job.policy

    @property
    def delegation(self) -> str:
        """NAME[:PRESET] without its exit."""
        config = self.job.stored_config
        return bare_label(self.policy, config.exit if config else None)

    @property
    def is_random(self) -> bool:
        """Whether large takes over at random."""
        return self.delegation == RANDOM

    @property
    def is_control(self) -> bool:
        return self.is_random or self.row.control_of is not None


def make_report(name: str, stored: Sequence[StoredRow], caveats: Sequence[str] = ()) -> ExperimentReport:
    """The rows in the order in which they were submitted, each control behind the row that it is of."""
    first = stored[0].job
    rows = [_row(each, stored) for each in _ordered(stored)]
    fronts = {
        "on_front": _front(rows, "large_tokens"),
        "on_total_front": _front(rows, "total_tokens"),
    }
    config = first.stored_config
    return ExperimentReport(
        name=name,
        problem_set=first.problem_set,
        num_problems=first.num_problems,
        num_samples=first.num_samples,
        seed=config.seed if config else None,
        small_model=next((each.job.small_model for each in stored if each.job.small_model), None),
        large_model=next((each.job.large_model for each in stored if each.job.large_model), None),
        judge_model=next((each.job.judge_model for each in stored if each.job.judge_model), None),
        rows=tuple(_on_fronts(row, fronts) for row in rows),
        caveats=(*caveats, *_caveats(stored)),
    )


def _ordered(stored: Sequence[StoredRow]) -> Iterator[StoredRow]:
    ids = {each.job.id for each in stored}
    for each in stored:
        if each.row.control_of in ids:
            continue
        yield each
        yield from (control for control in stored if control.row.control_of == each.job.id)


def _row(stored: StoredRow, others: Sequence[StoredRow]) -> RowReport:
    measured, summary, cost = stored.measured, stored.summary, stored.cost
    alone = {name: _measured(others, name) for name in (SMALL_ALONE, LARGE_ALONE)}
    sums = stored.problems.values()
    return RowReport(
        name=stored.row.name,
        job_id=stored.job.id,
        state=stored.job.state.value,
        policy=stored.policy,
        control_of=stored.row.control_of,
        is_control=stored.is_control,
        num_problems=len(stored.problems),
        num_scored=summary.num_scored,
        accuracy=_accuracy(summary),
        large_tokens=mean_per_sample(measured, [each.large for each in sums]) if measured else None,
        total_tokens=mean_per_sample(measured, [each.large + each.small for each in sums]) if measured else None,
        takeovers=summary.takeovers_per_sample,
        owners=_owners(summary, cost),
        gain=_gain(stored, others),
        gain_over_cut=_gain_over_cut(stored, others),
        against_small=_against(measured, alone[SMALL_ALONE]),
        against_large=_against(measured, alone[LARGE_ALONE]),
        on_front=False,
        on_total_front=False,
        small_tokens_per_s=_rate(summary.written_small, cost.engine_seconds_small),
        large_tokens_per_s=_rate(summary.written_large, cost.engine_seconds_large),
        judge_tokens_per_s=_rate(summary.written_judge, cost.engine_seconds_judge),
        small_seconds=_per_sample(cost.engine_seconds_small, summary),
        large_seconds=_per_sample(cost.engine_seconds_large, summary),
        judge_seconds=_per_sample(cost.engine_seconds_judge, summary),
        shares_engines=bool(cost.overlapping_jobs),
        budget_curve=stored.budget_curve,
    )


def _against(measured: Measured | None, other: Measured | None) -> Difference | None:
    """None for a row that is the other itself."""
    return difference(measured, other) if measured and other and measured.job_id != other.job_id else None


def _measured(stored: Sequence[StoredRow], policy: str) -> Measured | None:
    """Of the row without an exit or guard that has this policy."""
    for each in stored:
        config = each.job.stored_config
        if each.policy == policy and config is not None and config.exit is None and config.guard is None:
            return each.measured
    return None


def _gain(stored: StoredRow, others: Sequence[StoredRow]) -> Gain | None:
    """None for what is random itself, for one model alone, and where nothing random is there."""
    measured = stored.measured
    if measured is None or stored.is_control or stored.delegation in (SMALL_ALONE, LARGE_ALONE):
        return None
    controls = [each for each in others if each.is_random and _is_exited_alike(each, stored)]
    curve = [found for each in controls if (found := each.measured) is not None]
    own = next((each.measured for each in controls if each.row.control_of == stored.job.id), None)
    small = next(
        (each.measured for each in others if each.delegation == SMALL_ALONE and _is_exited_alike(each, stored)), None
    )
    if not curve:
        return None
    return gain_over_random(measured, [*([small] if small else []), *curve], own)


def _gain_over_cut(stored: StoredRow, others: Sequence[StoredRow]) -> Gain | None:
    """Of a row with an exit that has a cut as its control."""
    measured = stored.measured
    for each in others:
        config = each.job.stored_config
        is_cut = config is not None and config.exit is not None and config.exit.name == "cut"
        if measured and is_cut and each.row.control_of == stored.job.id and each.measured is not None:
            found = difference(measured, each.measured)
            ratio = each.measured.total_tokens / measured.total_tokens
            return None if found is None else Gain(difference=found, jobs=(each.job.id,), ratio=ratio)
    return None


def _is_exited_alike(first: StoredRow, second: StoredRow) -> bool:
    """Whether two jobs end thinking and samples by the same rules."""
    one, other = first.job.stored_config, second.job.stored_config
    return one is not None and other is not None and (one.exit, one.guard) == (other.exit, other.guard)


def _accuracy(summary: JobSummary) -> Estimate | None:
    if summary.accuracy is None:
        return None
    low, high = summary.accuracy_low, summary.accuracy_high
    return Estimate(mean=summary.accuracy, interval=None if low is None or high is None else Interval(low, high))


def _owners(summary: JobSummary, cost: JobCost) -> TokensByOwner | None:
    """Of an ended job all samples have what was written for them; of a running one, those at work count, too."""
    count = _num_complete(summary)
    if not count:
        return None
    return TokensByOwner(
        kept_small=summary.tokens_small / count,
        kept_large=summary.tokens_large / count,
        inserted=summary.tokens_inserted / count,
        discarded_small=summary.discarded_small / count,
        discarded_large=summary.discarded_large / count,
        aside_small=(summary.aside_small - summary.taken_small) / count,
        aside_large=(summary.aside_large - summary.taken_large) / count,
        aside_judge=summary.aside_judge / count,
        prompt_small=cost.prompt_tokens_small / count,
        prompt_large=cost.prompt_tokens_large / count,
        prompt_judge=cost.prompt_tokens_judge / count,
    )


def _num_complete(summary: JobSummary) -> int:
    return summary.samples_finished + summary.samples_graded


def _per_sample(seconds: float, summary: JobSummary) -> float | None:
    count = _num_complete(summary)
    return seconds / count if count else None


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens and seconds else None


def _front(rows: Sequence[RowReport], cost: str) -> frozenset[int]:
    """The jobs on the front of accuracy against a cost. Random's jobs are the line to beat, and no part of it; nor is
    one that still runs or was cancelled, of which mostly short texts are known."""
    points = [
        (row.job_id, getattr(row, cost).mean, row.accuracy.mean)
        for row in rows
        if row.accuracy is not None and getattr(row, cost) is not None and not row.is_control
        if row.state in _WHOLE
    ]
    on_front = pareto_front([(x, y) for _, x, y in points])
    return frozenset(job_id for (job_id, _, _), is_on in zip(points, on_front, strict=True) if is_on)


def _on_fronts(row: RowReport, fronts: Mapping[str, frozenset[int]]) -> RowReport:
    return replace(
        row, on_front=row.job_id in fronts["on_front"], on_total_front=row.job_id in fronts["on_total_front"]
    )


def _caveats(stored: Sequence[StoredRow]) -> Iterator[str]:
    open_jobs = [str(each.job.id) for each in stored if not each.job.is_final]
    if open_jobs:
        yield f"still running: job {', '.join(open_jobs)}; short texts end first, and favour what is read of them now"
    for each in stored:
        if each.summary.samples_failed or each.summary.samples_cancelled:
            yield (
                f"job {each.job.id}: {each.summary.samples_failed} samples failed and "
                f"{each.summary.samples_cancelled} were cancelled; they count nowhere"
            )
        config = each.job.stored_config
        pilot = config.calibrated_from if config else None
        if pilot is not None and pilot.num_shared:
            yield (
                f"job {each.job.id} is calibrated on its own problems: {pilot.num_shared} are in the pilot, job "
                f"{pilot.job}"
            )
        if each.row.control_of is None and is_control_name(each.row.name):
            yield f"job {each.job.id} is a control of a job that was removed"
    if not any(each.is_random for each in stored):
        yield "no random control: nothing says what large's tokens alone are worth; --controls adds one to each row"
    if any(each.cost.overlapping_jobs for each in stored):
        yield "tokens/s of rows that ran at the same time are shared; run jobs one after the other to compare speed"
