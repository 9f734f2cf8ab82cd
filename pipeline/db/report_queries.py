"""The statements that read: progress, summaries, results, one sample in full. Most are selects from the views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, text

from pipeline.db.readable import FAULTS, may_not_miss, read_choice, why_unreadable
from pipeline.db.states import COMPLETE, FINAL
from pipeline.errors import BadProblem, NotComparable, NotFound
from pipeline.jobs.config import JobConfig, JobState
from pipeline.problems.sets import Problem
from pipeline.results.comparison import compare
from pipeline.results.intervals import Interval, cluster_bootstrap
from pipeline.results.jobs import Job
from pipeline.results.reports import (
    AsideSummary,
    BudgetPoint,
    Comparison,
    Delegation,
    DelegationTenth,
    EngineTimeAlone,
    JobCost,
    JobErrors,
    JobProgress,
    JobStats,
    JobSummary,
    LengthBucket,
    MajAtK,
    PassAtK,
    ProblemScore,
    StepSummary,
    TakeoverFlow,
    TokenLengths,
    Truncation,
)
from pipeline.results.samples import Result, SampleReport, SegmentReport, StepReport
from pipeline.results.unreadable import Unreadable
from pipeline.samples import Author, FinishReason, SampleState
from pipeline.workforce import WorkerReport

_R = TypeVar("_R")
_CHOICES: dict[str, type[StrEnum]] = {
    "JobState": JobState,
    "SampleState": SampleState,
    "Author": Author,
    "FinishReason | None": FinishReason,
}
_MARK = "unreadable"
"""The field that says what of a row cannot be read."""


def _columns(report: type[Any]) -> str:
    return ", ".join(field.name for field in fields(report) if field.name != _MARK)


def _read(report: type[_R], row: RowMapping | dict[str, Any]) -> _R:
    """A row as its dataclass, with choices as their enums; what cannot be read stands there as it is, with the reason
    where the report has a place for it."""
    values: dict[str, Any] = {**row}
    faults = [values[_MARK]] if values.get(_MARK) else []
    has_mark = False
    for field in fields(report):  # type: ignore[arg-type]  # always a dataclass
        name, kind, stored = field.name, str(field.type), values.get(field.name)
        has_mark = has_mark or name == _MARK
        may_be_missing = stored is not None or name not in values or not may_not_miss(field)
        if kind in _CHOICES and not (stored is None and may_be_missing):
            values[name] = read_choice(_CHOICES[kind], stored)
            faults += [f"{name}: {values[name]}"] if isinstance(values[name], Unreadable) else []
        elif not may_be_missing:
            faults.append(f"{name} is missing")
    if has_mark:
        values[_MARK] = "; ".join(faults) or None
    return report(**values)


def _select_view(connection: Connection, report: type[_R], view: str, tail: str, **params: Any) -> tuple[_R, ...]:
    rows = connection.execute(text(f"SELECT {_columns(report)} FROM {view} WHERE {tail}"), params).mappings()
    return tuple(_read(report, row) for row in rows)


_SELECT_JOBS = """
    SELECT j.id, j.name, j.state, j.policy, j.small_model, j.large_model, j.judge_model, p.name AS problem_set,
           j.problem_set_id, j.num_problems,
           j.num_samples, j.config, j.versions, j.submitted_at, j.first_claimed_at, j.finished_at, j.priority,
           j.cloned_from
    FROM jobs j JOIN problem_sets p ON p.id = j.problem_set_id
"""


def _job(row: RowMapping, config: JobConfig | None = None) -> Job:
    """config: the job's, where it is known; None: it is read."""
    values = {**row}
    stored, fault = values.pop("config"), None
    if config is None:
        try:
            config = JobConfig.model_validate(stored)
        except FAULTS as error:
            fault = f"its configuration: {why_unreadable(error)}"
    return _read(Job, values | {"stored_config": config, _MARK: fault})


def list_jobs(connection: Connection, *, limit: int) -> list[Job]:
    """The newest jobs, newest first."""
    rows = connection.execute(text(f"{_SELECT_JOBS} ORDER BY j.id DESC LIMIT :limit"), {"limit": limit}).mappings()
    return [_job(row) for row in rows]


def unreadable_jobs(connection: Connection, *, limit: int) -> list[Job]:
    """Those of the newest jobs of whose rows something cannot be read."""
    return [job for job in list_jobs(connection, limit=limit) if job.unreadable]


def get_job(connection: Connection, job_id: int) -> Job:
    """Raises NotFound."""
    return get_jobs(connection, [job_id])[0]


def get_jobs(
    connection: Connection, job_ids: Sequence[int], configs: Mapping[int, JobConfig] | None = None
) -> list[Job]:
    """Some jobs, in the order of their ids. configs: of those that were stored just now. Raises NotFound for an unknown
    id."""
    known = configs or {}
    rows = connection.execute(text(f"{_SELECT_JOBS} WHERE j.id = ANY(:jobs) ORDER BY j.id"), {"jobs": [*job_ids]})
    found = [_job(row, known.get(row["id"])) for row in rows.mappings()]
    _require_all(job_ids, {job.id for job in found})
    return found


def select_progress(connection: Connection, job_ids: Sequence[int]) -> list[JobProgress]:
    """Progress of some jobs, in the order of their ids. Raises NotFound for an unknown id."""
    found = find_progress(connection, job_ids)
    _require_all(job_ids, {progress.job_id for progress in found})
    return found


def find_progress(connection: Connection, job_ids: Sequence[int]) -> list[JobProgress]:
    """Progress of those of some jobs that there are, in the order of their ids."""
    return list(
        _select_view(connection, JobProgress, "job_progress", "job_id = ANY(:ids) ORDER BY job_id", ids=[*job_ids])
    )


_ANY_OPEN = text("SELECT EXISTS (SELECT FROM jobs WHERE id = ANY(:ids) AND state IN ('running', 'paused'))")


def any_open(connection: Connection, job_ids: Sequence[int]) -> bool:
    """Whether one of these jobs has not ended."""
    return bool(connection.execute(_ANY_OPEN, {"ids": [*job_ids]}).scalar_one())


def running_jobs(connection: Connection) -> list[JobProgress]:
    """Progress of every job that has not ended, oldest first."""
    return list(_select_view(connection, JobProgress, "job_progress", "state IN ('running', 'paused') ORDER BY job_id"))


def select_summaries(connection: Connection, job_ids: Sequence[int]) -> list[JobSummary]:
    """Summaries of some jobs, in the order asked for. Raises NotFound for an unknown id."""
    found = {row.job_id: row for row in find_summaries(connection, job_ids)}
    _require_all(job_ids, found.keys())
    return [found[job_id] for job_id in job_ids]


def find_summaries(connection: Connection, job_ids: Sequence[int]) -> list[JobSummary]:
    """Summaries of those of some jobs that there are."""
    return list(_select_view(connection, JobSummary, "job_summary", "job_id = ANY(:ids)", ids=[*job_ids]))


def _require_all(wanted: Sequence[int], found: Any) -> None:
    missing = [job_id for job_id in wanted if job_id not in found]
    if missing:
        raise NotFound.job(missing[0])


def get_stats(connection: Connection, job_id: int) -> JobStats:
    """Raises NotFound."""
    (summary,) = select_summaries(connection, [job_id])
    cost = get_cost(connection, job_id)
    return JobStats(
        summary=summary,
        bootstrap=_bootstrap(connection, job_id) if (summary.num_samples or 0) > 1 and summary.num_scored else None,
        cost=cost,
        token_lengths=_of_job(
            connection, TokenLengths, "token_lengths", job_id,
            "array_position(ARRAY['all', 'small', 'large', 'inserted'], author),"
            " finish_reason <> 'all', finish_reason, verdict <> 'all', verdict",
        ),
        length_histogram=_of_job(connection, LengthBucket, "length_histogram", job_id, "bucket"),
        budget_curve=_of_job(connection, BudgetPoint, "budget_curve", job_id, "budget"),
        delegation=_of_job(connection, Delegation, "delegation", job_id, "author DESC, tokens DESC"),
        delegation_progress=_of_job(connection, DelegationTenth, "delegation_progress", job_id, "tenth"),
        takeover_flow=_of_job(connection, TakeoverFlow, "takeover_flow", job_id, "trigger, num_takeovers DESC"),
        aside_summary=_of_job(connection, AsideSummary, "aside_summary", job_id, "purpose, author"),
        step_summary=_of_job(connection, StepSummary, "step_summary", job_id, "num_steps DESC"),
        pass_at_k=_of_job(connection, PassAtK, "pass_at_k", job_id, "k"),
        maj_at_k=_of_job(connection, MajAtK, "maj_at_k", job_id, "k"),
        truncation=next(iter(_of_job(connection, Truncation, "truncation", job_id, "job_id")), None),
        errors=_of_job(connection, JobErrors, "errors", job_id, "num_samples DESC"),
        engine_time_alone=_of_job(connection, EngineTimeAlone, "engine_time_alone", job_id, "author DESC")
        if cost.overlapping_jobs
        else (),
    )  # fmt: skip


def _of_job(connection: Connection, report: type[_R], view: str, job_id: int, order: str) -> tuple[_R, ...]:
    return _select_view(connection, report, view, f"job_id = :job ORDER BY {order}", job=job_id)


def get_budget_curve(connection: Connection, job_id: int) -> tuple[BudgetPoint, ...]:
    """Accuracy, at least, had every sample been cut at so many tokens."""
    return _of_job(connection, BudgetPoint, "budget_curve", job_id, "budget")


def _bootstrap(connection: Connection, job_id: int) -> Interval | None:
    problems = problem_scores(connection, job_id)
    return cluster_bootstrap([row.score * row.num_scored for row in problems], [row.num_scored for row in problems])


def problem_scores(connection: Connection, job_id: int) -> tuple[ProblemScore, ...]:
    """The problems with a score, in the order of their set."""
    return _of_job(connection, ProblemScore, "problem_scores", job_id, "problem_id")


def get_errors(connection: Connection, job_id: int) -> tuple[JobErrors, ...]:
    """Raises NotFound."""
    get_job(connection, job_id)
    return _of_job(connection, JobErrors, "errors", job_id, "num_samples DESC")


def get_cost(connection: Connection, job_id: int) -> JobCost:
    """Raises NotFound."""
    rows = _of_job(connection, JobCost, "job_cost", job_id, "job_id")
    _require_all([job_id], {row.job_id for row in rows})
    return rows[0]


_SELECT_GRADERS = text("""
    SELECT DISTINCT g.grader || ' ' || g.grader_version AS grader
    FROM samples s CROSS JOIN LATERAL (
        SELECT grader, grader_version FROM grades g
        WHERE g.sample_id = s.id AND g.status <> 'running' ORDER BY g.graded_at DESC LIMIT 1
    ) g
    WHERE s.job_id = :job AND s.state = 'graded' AND s.score IS NOT NULL ORDER BY grader
""")


def get_comparison(connection: Connection, job_a: int, job_b: int, *, anyway: bool = False) -> Comparison:
    """Two jobs, paired by problem. Raises NotFound; NotComparable unless anyway, and where nothing can be paired."""
    if job_a == job_b:
        raise NotComparable(f"job {job_a} can only be compared with another job")
    caveats = _caveats(connection, job_a, job_b)
    if caveats and not anyway:
        raise NotComparable(f"{'; '.join(caveats)}; --anyway compares them all the same")
    first, second = ({row.problem: row for row in problem_scores(connection, job)} for job in (job_a, job_b))
    pairs = [(row, second[problem]) for problem, row in first.items() if problem in second]
    if caveats and not pairs:
        raise NotComparable(f"jobs {job_a} and {job_b} share no scored problem id: there is nothing to pair")
    return compare(
        pairs, job_a=job_a, job_b=job_b, cost_a=get_cost(connection, job_a), cost_b=get_cost(connection, job_b),
        caveats=caveats,
    )  # fmt: skip


def _caveats(connection: Connection, job_a: int, job_b: int) -> tuple[str, ...]:
    """Why two jobs are not comparable: what was asked, or how it was graded, differs."""
    first, second = get_job(connection, job_a), get_job(connection, job_b)
    caveats = []
    if first.problem_set_id != second.problem_set_id:
        caveats.append(
            f"jobs {job_a} and {job_b} are not on the same problem set ({first.problem_set} and {second.problem_set}, "
            "or two versions of one)"
        )
    graders = {job: connection.execute(_SELECT_GRADERS, {"job": job}).scalars().all() for job in (job_a, job_b)}
    used = {grader for found in graders.values() for grader in found}
    if len(used) > 1:
        told = ", ".join(f"job {job}: {' and '.join(found)}" for job, found in graders.items())
        caveats.append(f"jobs {job_a} and {job_b} were not graded by the same grader in the same version ({told})")
    return tuple(caveats)


_MAY_READ_ANSWERS = text("""
    SELECT has_table_privilege('reference_answers', 'SELECT') AND has_table_privilege('hidden_columns', 'SELECT')
""")
_RESULTS = """
    SELECT s.job_id, s.id AS sample_id, p.external_id AS problem, s.sample_index, s.state, p.prompt,
           coalesce((SELECT string_agg(g.text, '' ORDER BY g.segment_index) FROM segments g WHERE g.sample_id = s.id),
                    '') AS output,
           s.predicted_answer, s.score, s.finish_reason,
           s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens,
           s.tokens_small, s.tokens_large, s.tokens_inserted, s.discarded_small, s.discarded_large,
           s.num_takeovers, s.num_segments, p.subject, p.level, s.error_class, s.error, s.finished_at, p.shown,
"""
_WITH_ANSWERS = f"""{_RESULTS}
           r.answer AS reference, coalesce(r.also_accepted, '{{}}') AS also_accepted,
           (SELECT d.detail FROM grades d WHERE d.sample_id = s.id AND d.status <> 'running'
            ORDER BY d.graded_at DESC, d.grader DESC, d.grader_version DESC LIMIT 1) AS grade_detail,
           coalesce(h.columns, '{{}}') || p.shown AS metadata
    FROM samples s JOIN problems p ON p.id = s.problem_id
    LEFT JOIN reference_answers r ON r.problem_id = p.id LEFT JOIN hidden_columns h ON h.problem_id = p.id
"""
_WITHOUT_ANSWERS = f"""{_RESULTS}
           NULL AS reference, CAST('{{}}' AS varchar[]) AS also_accepted, NULL AS grade_detail,
           p.shown AS metadata
    FROM samples s JOIN problems p ON p.id = s.problem_id
"""


def may_read_answers(connection: Connection) -> bool:
    """Whether this login may read reference answers, and the columns that are hidden from those who generate."""
    return bool(connection.execute(_MAY_READ_ANSWERS).scalar_one())


def _select_results(connection: Connection) -> str:
    """With the right answers where this login may read them."""
    return _WITH_ANSWERS if may_read_answers(connection) else _WITHOUT_ANSWERS


def _result(row: RowMapping, job: Job) -> Result:
    values = dict(row)
    problem = Problem(external_id=row["problem"], prompt=row["prompt"], metadata=values.pop("shown"))
    config = job.stored_config
    return _read(
        Result,
        values
        | {
            "also_accepted": tuple(row["also_accepted"] or ()),
            "policy": job.policy or "",
            "small_model": job.small_model,
            "large_model": job.large_model,
            "judge_model": job.judge_model,
            "seed": config.seed if config else None,
            "rendered_prompt": _rendered(config, problem) if config else None,
            _MARK: f"its job: {job.unreadable}" if job.unreadable else None,
        },
    )


def _rendered(config: JobConfig, problem: Problem) -> str | None:
    """The whole of what is asked, earlier messages under their roles; None where it cannot be rendered here."""
    try:
        prompt = config.prompt(problem)
    except (BadProblem, *FAULTS):  # a damaged problem is a fault of its row
        return None
    if not prompt.earlier:
        return prompt.message
    turns = [*prompt.earlier, {"role": "user", "content": prompt.message}]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns)


def stream_results(
    connection: Connection, job_id: int, *, only_final: bool, batch: int = 200, with_answers: bool = True
) -> Iterator[Result]:
    """Every sample of a job in the order of the problems, read in batches from a server-side cursor.

    with_answers: what is right is read too, where this login may read it.
    Plan: the unique index on (job_id, problem_id, sample_index) gives the order, so that nothing is sorted and the
    texts of one batch at a time are in memory; problem ids rise with the position in the set.
    """
    job = get_job(connection, job_id)
    condition = f"AND s.state IN {FINAL}" if only_final else ""
    columns = _select_results(connection) if with_answers else _WITHOUT_ANSWERS
    query = text(f"{columns} WHERE s.job_id = :job {condition} ORDER BY s.problem_id, s.sample_index")
    rows = connection.execution_options(yield_per=batch).execute(query, {"job": job_id}).mappings()
    for row in rows:
        yield _result(row, job)


_SELECT_SEGMENTS = text("""
    SELECT g.segment_index, g.author, g.trigger, g.cue, g.takes_over, g.text, g.discarded_text,
           cardinality(g.token_ids) AS tokens, cardinality(g.discarded_ids) AS tokens_discarded, g.tokens_generated,
           g.prompt_tokens, g.cached_tokens, g.finish, g.wait_seconds, g.queue_seconds, g.first_token_seconds,
           g.write_seconds, g.worker_id, e.model, g.committed_at
    FROM segments g JOIN engines e ON e.id = g.engine_id WHERE g.sample_id = :sample ORDER BY g.segment_index
""")


def get_sample(connection: Connection, sample_id: int) -> SampleReport:
    """Raises NotFound."""
    query = text(f"{_select_results(connection)} WHERE s.id = :sample")
    row = connection.execute(query, {"sample": sample_id}).mappings().first()
    if row is None:
        raise NotFound(f"there is no sample {sample_id}; specthink results JOB lists those of a job")
    segments = connection.execute(_SELECT_SEGMENTS, {"sample": sample_id}).mappings()
    return SampleReport(
        result=_result(row, get_job(connection, row["job_id"])),
        segments=tuple(_read(SegmentReport, segment) for segment in segments),
        steps=_select_view(
            connection,
            StepReport,
            "steps",
            "sample_id = :sample ORDER BY step_index",
            sample=sample_id,
        ),
    )


_SELECT_EXAMPLES = text(f"""
    SELECT id FROM (
        SELECT id, row_number() OVER (
            PARTITION BY score >= 0.5 ORDER BY num_takeovers BETWEEN 1 AND 8 DESC, num_takeovers DESC, md5(id::text)
        ) AS place
        FROM samples WHERE job_id = :job AND state IN {COMPLETE}
    ) s
    ORDER BY place, id LIMIT :limit
""")


def select_examples(connection: Connection, job_id: int, *, limit: int) -> list[int]:
    """Ids of complete samples worth reading: right and wrong ones by turns, those with a few takeovers first."""
    return list(connection.execute(_SELECT_EXAMPLES, {"job": job_id, "limit": limit}).scalars())


_SELECT_SAME_PROBLEMS = text(f"""
    SELECT array_agg(s.id ORDER BY array_position(CAST(:jobs AS bigint[]), s.job_id)) AS ids
    FROM samples s JOIN problems p ON p.id = s.problem_id
    WHERE s.job_id = ANY(:jobs) AND s.sample_index = 0 AND s.state IN {COMPLETE}
    GROUP BY p.external_id HAVING count(*) = :num_jobs
    ORDER BY count(DISTINCT s.score >= 0.5) DESC, sum(s.num_takeovers) DESC, md5(p.external_id) LIMIT :limit
""")


def select_same_problems(connection: Connection, job_ids: Sequence[int], *, limit: int) -> list[list[int]]:
    """Ids of the first samples of one problem in each of some jobs; problems on which the jobs disagree first."""
    values = {"jobs": list(job_ids), "num_jobs": len(job_ids), "limit": limit}
    return list(connection.execute(_SELECT_SAME_PROBLEMS, values).scalars())


_SELECT_WORKERS = text("""
    SELECT w.id, w.kind, w.model, w.host, w.pid, w.max_in_flight, w.num_in_flight, w.tokens_generated, w.started_at,
           extract(epoch FROM clock_timestamp() - w.renewed_at)::float8 AS renewed_seconds_ago,
           CASE WHEN e.settings ->> 'max_model_len' ~ '^[0-9]{1,9}$'
                THEN (e.settings ->> 'max_model_len')::int END AS max_model_len,
           e.model_fingerprint, e.weights_sha256, e.revision,
           (SELECT jsonb_object_agg(substr(a.key, 10), a.value) FROM jsonb_each_text(
                CASE WHEN jsonb_typeof(e.settings) = 'object' THEN e.settings END) a
            WHERE a.key LIKE 'argument %') AS engine_arguments,
           e.settings ->> 'accelerate' AS accelerate, w.num_drafts, w.draft_tokens, w.accepted_tokens
    FROM workers w LEFT JOIN engines e ON e.id = w.engine_id
    WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp() ORDER BY w.kind, w.model, w.id
""")


def live_workers(connection: Connection) -> list[WorkerReport]:
    """The workers whose lease is valid now."""
    return [_read(WorkerReport, row) for row in connection.execute(_SELECT_WORKERS).mappings()]


_SUM_GENERATED = text("""
    SELECT kind, sum(tokens_generated)::bigint AS tokens FROM workers WHERE kind IN ('small', 'large') GROUP BY kind
""")


def generated_tokens(connection: Connection) -> dict[str, int]:
    """Tokens all workers ever generated, by kind, as of their last heartbeats: its growth is the present speed."""
    return {"small": 0, "large": 0} | {row.kind: row.tokens for row in connection.execute(_SUM_GENERATED)}
