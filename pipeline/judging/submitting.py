"""Makes the job of a judge ready to be stored: its problems, its configuration, and what a person should know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import JobError
from pipeline.grading import make_grader
from pipeline.jobs.config import JobConfig, JudgeSpec
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.submission import ModelChoice, Submission
from pipeline.judging.problems import CompleteSample, JudgeProblems, make_problems
from pipeline.judging.prompts import JudgeTemplate

DEFAULT_MAX_TOKENS = 8_192
"""Of a judge's text, thoughts included."""
DEFAULT_TEMPERATURE = 0.0
"""The same answer gets the same verdict."""


def ask_about(
    job_id: int,
    problem_set_id: int,
    config: JobConfig,
    samples: Iterable[CompleteSample],
    *,
    template: JudgeTemplate,
    answer_chars: int,
) -> JudgeProblems:
    """What the judge of a job with this configuration is asked, whose problems are of this set."""
    config.check_same_version("grader")
    return make_problems(
        samples,
        name=f"answers of job {job_id} to problem set {problem_set_id}",
        template=template,
        asked_with=config.template(),
        grader=make_grader(config.grader),
        answer_chars=answer_chars,
    )


def make_judge(
    job_id: int,
    asked: JudgeProblems,
    *,
    model: ModelChoice,
    template: JudgeTemplate,
    answer_chars: int,
    name: str | None,
    options: Mapping[str, Any],
) -> ReadyJob:
    """The judge of a job, ready to be stored. options: of its submission.

    Raises JobError where there is nothing to judge, and what ``make_ready`` raises.
    """
    if not asked.num_judged:
        raise JobError(job_id, _why_nothing(asked))
    submission = Submission.parse(
        problems=asked.problems,
        large=model,
        policy="large-only",
        prompt_template="free",
        grader="verdict",
        name=name or f"judge of job {job_id} · {template.name}",
        **options,
    )
    ready = make_ready(submission)
    spec = JudgeSpec(
        job=job_id,
        template=template.name,
        template_text=template.text,
        template_sha256=template.sha256,
        answer_chars=answer_chars,
    )
    versions = {**ready.versions, "judge template": template.sha256}
    return replace(
        ready,
        config=ready.config.model_copy(update={"judging": spec}),
        versions=versions,
        notes=tuple(_notes(asked, template, job_id)),
    )


def _why_nothing(asked: JudgeProblems) -> str:
    if asked.num_unreferenced:
        return (
            f"{asked.num_unreferenced} of its samples have no reference answer, which the judge template shows; "
            "judge without {{reference}} in --judge-template"
        )
    return f"none of its {asked.num_unanswered} complete samples has an answer to judge"


def _notes(asked: JudgeProblems, template: JudgeTemplate, job_id: int) -> Iterator[str]:
    yield (
        f"{asked.num_judged:,} samples of job {job_id} are judged by {len(asked.problems.problems):,} different prompts"
    )
    if asked.num_unanswered:
        yield f"{asked.num_unanswered:,} samples have no answer to judge: they count as samples without an answer"
    if asked.num_unreferenced:
        yield f"{asked.num_unreferenced:,} samples are left out: their problems have no reference answer"
    if template.tells_reference:
        yield (
            f"the judge's prompts show the reference answers of job {job_id}: logins that write or submit can read "
            "them there, until the judge's job is removed"
        )


def refuse_open_jobs(job_id: int, open_jobs: Sequence[int]) -> None:
    """Raises JobError where jobs that ask the same problems have not ended: their writers could read the answers."""
    if open_jobs:
        ids = ", ".join(map(str, open_jobs))
        raise JobError(
            job_id,
            f"the judge's prompts would show its reference answers while other jobs ask the same problems ({ids}), "
            "and their writers could read them; wait for these, or judge all the same with --expose-references",
        )
