"""A job as Inspect's ``EvalLog`` without its samples: what was asked, of whom, and what came of it."""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalPlan,
    EvalPlanStep,
    EvalResults,
    EvalScore,
    EvalSpec,
    EvalStats,
)
from inspect_ai.log._log import EvalSampleReductions, EvalSampleScore, EvalScorer, EvalStatus
from inspect_ai.model import GenerateConfig, ModelConfig

from pipeline.interop.inspect_samples import SampleMaker, model_name
from pipeline.jobs.config import JobConfig, JobState
from pipeline.problems.hub import HubSet
from pipeline.results.written import WrittenJob
from pipeline.samples import ModelRole

_STATUS: Mapping[str, EvalStatus] = {
    JobState.COMPLETED: "success",
    JobState.COMPLETED_WITH_ERRORS: "success",
    JobState.CANCELLED: "cancelled",
}
"""All others still run."""
_HUB_PARTS = ("config", "revision", "split")


def make_header(job: WrittenJob) -> EvalLog:
    """Everything but the samples, and the tokens that are added up of these."""
    config = job.job.stored_config
    spec = _spec(job, config)
    policy = config.policy.model_dump(mode="json") if config else {}
    return EvalLog(
        status=_STATUS.get(job.job.state, "started"),
        eval=spec,
        plan=EvalPlan(steps=[EvalPlanStep(solver=job.job.policy, params=policy)], config=spec.model_generate_config),
        results=_results(job, _scorer(config)),
        stats=EvalStats(
            started_at=_iso(job.job.first_claimed_at or job.job.submitted_at), completed_at=_iso(job.job.finished_at)
        ),
    )


def sample_maker(job: WrittenJob, header: EvalLog) -> SampleMaker:
    config = job.job.stored_config
    configs = {role: _drawing(config, role) for role in ModelRole} if config else {}
    return SampleMaker(job=job, eval_id=header.eval.eval_id, configs=configs)


def make_reductions(job: WrittenJob) -> list[EvalSampleReductions]:
    """The mean score of each problem. Set on a log after it is made: beside results its constructor refuses them."""
    samples = [EvalSampleScore(value=row.score, sample_id=row.problem) for row in job.problem_scores]
    return [EvalSampleReductions(scorer=_scorer(job.job.stored_config), reducer="mean", samples=samples)]


def usual_file_name(header: EvalLog, ending: str = ".eval") -> str:
    """As Inspect names logs: it splits names at - and _."""
    task = re.sub(r"[^A-Za-z0-9]+", "-", header.eval.task).strip("-") or "job"
    return f"{header.eval.created.replace(':', '-')}_{task}_{header.eval.task_id}{ending}"


def _spec(job: WrittenJob, config: JobConfig | None) -> EvalSpec:
    told = f"{job.content_sha256} {job.job.id} {job.job.submitted_at.isoformat()}"
    models = {ModelRole.SMALL: job.job.small_model, ModelRole.LARGE: job.job.large_model}
    stored = config.model_dump(mode="json") if config else {}
    return EvalSpec(
        eval_id=_id("eval", told),
        run_id=_id("run", told),
        task_id=_id("task", job.content_sha256),
        created=_iso(job.job.submitted_at),
        task=job.job.problem_set,
        task_version=job.content_sha256,
        task_display_name=job.job.name,
        solver=job.job.policy,
        solver_args=stored.get("policy"),
        dataset=EvalDataset(
            name=job.job.problem_set,
            location=_location(job.source),
            samples=job.job.num_problems,
            sample_ids=list(job.problem_ids),
            shuffled=False,
        ),
        model=model_name(job),
        model_generate_config=_drawing(config, None) if config else GenerateConfig(),
        model_roles={
            role.value: ModelConfig(model=name, config=_drawing(config, role) if config else GenerateConfig())
            for role, name in models.items()
            if name
        },
        config=EvalConfig(
            epochs=job.job.num_samples,
            epochs_reducer=["mean"],
            limit=config.limit if config else None,
            fail_on_error=False,
            continue_on_fail=True,
            token_limit=config.sampling.max_tokens if config else None,
            token_limit_type="output",
        ),
        packages={name: str(version) for name, version in job.job.versions.items()},
        scorers=[EvalScorer(name=_scorer(config))],
        metadata={"specthink": {"job_id": job.job.id, "name": job.job.name, "config": stored}},
    )


def _results(job: WrittenJob, scorer: str) -> EvalResults:
    summary = job.summary
    metrics = {} if summary.accuracy is None else {"accuracy": summary.accuracy}
    if len(job.problem_scores) > 1:
        metrics["stderr"] = _standard_error([row.score for row in job.problem_scores])
    if summary.accuracy_low is not None and summary.accuracy_high is not None:
        metrics |= {"accuracy_low": summary.accuracy_low, "accuracy_high": summary.accuracy_high}
    metrics |= {f"pass_at_{row.k}": row.pass_at_k for row in job.pass_at_k if row.k > 1}
    score = EvalScore(
        name=scorer,
        scorer=scorer,
        reducer="mean" if job.job.num_samples > 1 else None,
        scored_samples=summary.num_scored,
        unscored_samples=summary.samples_graded - summary.num_scored,
        metrics={name: EvalMetric(name=name, value=value) for name, value in metrics.items()},
    )
    return EvalResults(
        total_samples=summary.samples_total,
        completed_samples=summary.samples_graded + summary.samples_finished,
        scores=[score],
    )


def _standard_error(scores: Sequence[float]) -> float:
    """As Inspect has it: of the mean over problems, each with the mean of its samples."""
    return statistics.stdev(scores) / math.sqrt(len(scores))


def _scorer(config: JobConfig | None) -> str:
    return config.grader if config else "score"


def _drawing(config: JobConfig, role: ModelRole | None) -> GenerateConfig:
    drawing = config.sampling if role is None else config.drawing(role)
    return GenerateConfig(
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        top_k=drawing.top_k or None,
        presence_penalty=drawing.presence_penalty or None,
        frequency_penalty=drawing.frequency_penalty or None,
        stop_seqs=list(drawing.stop) or None,
        max_tokens=config.sampling.max_tokens,
        seed=config.seed if role is None else None,
    )


def _location(source: Mapping[str, Any]) -> str | None:
    """As ``specthink submit`` takes it; None for a set of a file."""
    repo = source.get("hub") or source.get("folder")
    return None if repo is None else str(HubSet(repo=repo, **{name: source.get(name) for name in _HUB_PARTS}))


def _iso(at: Any) -> str:
    return "" if at is None else at.isoformat(timespec="seconds")


def _id(*told: str) -> str:
    """Letters and digits."""
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:22]
