"""The views on cases small enough to count by hand, in every state of a job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db import migrate
from pipeline.db.report_queries import get_comparison
from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections
from pipeline.results import reports
from pipeline.results.intervals import paired_interval, t_quantile
from tests.conftest import TEMPLATE, with_database
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_worker,
    every,
    one,
)

pytestmark = pytest.mark.integration

VIEWS = {
    "job_summary": reports.JobSummary,
    "job_progress": reports.JobProgress,
    "token_lengths": reports.TokenLengths,
    "delegation": reports.Delegation,
    "aside_summary": reports.AsideSummary,
    "pass_at_k": reports.PassAtK,
    "job_comparison": reports.JobComparison,
    "errors": reports.JobErrors,
    "truncation": reports.Truncation,
    "job_cost": reports.JobCost,
    "engine_time_alone": reports.EngineTimeAlone,
    "problem_scores": reports.ProblemScore,
    "maj_at_k": reports.MajAtK,
    "length_histogram": reports.LengthBucket,
    "budget_curve": reports.BudgetPoint,
    "takeover_flow": reports.TakeoverFlow,
    "delegation_progress": reports.DelegationTenth,
    "step_summary": reports.StepSummary,
}
"""The views that a report reads, each with the report's type."""
COLUMNS = {
    view: [field.name for field in fields(report) if field.name != "unreadable"] for view, report in VIEWS.items()
} | {
    "judgements": [
        "job_id", "judge_job_id", "sample_id", "problem", "sample_index", "grader_before", "score_before", "verdict",
        "why_none", "judge_sample_id", "prompt", "judge_text",
    ],
    "takeovers": [
        "job_id", "sample_id", "segment_index", "trigger", "cue", "tokens", "start_token", "position", "followed_by",
        "tokens_between", "score",
    ],
    "results": [
        "job_id", "sample_id", "problem", "subject", "level", "sample_index", "state", "policy", "small_model",
        "large_model", "judge_model", "seed", "prompt", "output", "predicted_answer", "score", "finish_reason",
        "output_tokens", "tokens_small", "tokens_large", "tokens_inserted", "num_takeovers", "error_class", "error",
        "finished_at", "grade_detail",
    ],
    "subject_scores": [
        "job_id", "subject", "num_problems", "num_scored", "num_right", "accuracy", "accuracy_low", "accuracy_high",
        "mean_output_tokens", "share_large",
    ],
    "problem_comparison": [
        "job_a", "job_b", "problem_id", "problem", "subject", "level", "num_scored_a", "num_scored_b", "score_a",
        "score_b", "difference", "mean_output_tokens_a", "mean_output_tokens_b",
    ],
    "throughput": [
        "job_id", "minute", "author", "num_requests", "num_samples", "num_workers", "tokens", "tokens_per_second",
    ],
    "step_positions": [
        "job_id", "tenth", "sentence_class", "num_steps", "num_samples", "num_taken_over", "tokens", "mean_tokens",
        "share_large",
    ],
    "draft_acceptance": [
        "engine_id", "role", "model", "accelerator", "num_workers", "num_drafts", "draft_tokens", "accepted_tokens",
        "share_accepted", "tokens_per_step",
    ],
    "worker_demand": ["role", "model", "waiting", "writing", "live_workers", "slots", "wanted"],
}  # fmt: skip
"""Of every view."""


@pytest.fixture(scope="module")
def views_engine(servers: Connections) -> Iterator[Engine]:
    """One migrated database for all tests here; each leaves it empty."""
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE views TEMPLATE {TEMPLATE}"))
    owner.dispose()
    db_engine = open_database(with_database(servers.database_url, "views"))
    yield db_engine
    db_engine.dispose()


@pytest.fixture
def connection(views_engine: Engine) -> Iterator[Connection]:
    """A transaction that is rolled back."""
    with views_engine.connect() as connection:
        yield connection
        connection.rollback()


def summary(connection: Connection, job_id: int) -> dict[str, Any]:
    return one(connection, "SELECT * FROM job_summary WHERE job_id = :job", job=job_id)


def wilson(mean: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The textbook's interval, written down a second time."""
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


@pytest.mark.parametrize("view", COLUMNS)
def test_view_columns_are_the_fields_of_its_report_each_with_a_comment(connection: Connection, view: str) -> None:
    rows = every(
        connection,
        "SELECT attname, col_description(attrelid, attnum) AS comment FROM pg_attribute "
        "WHERE attrelid = CAST(:view AS regclass) AND attnum > 0 ORDER BY attnum",
        view=view,
    )
    assert [row["attname"] for row in rows] == COLUMNS[view]
    assert [row["attname"] for row in rows if not row["comment"]] == []


def test_views_go_away_with_a_migration_down_and_come_back(views_engine: Engine) -> None:
    names = "SELECT viewname FROM pg_views WHERE schemaname = 'public'"
    migrate.downgrade(views_engine, "0001")
    with transaction(views_engine) as connection:
        assert every(connection, names) == []
    migrate.upgrade(views_engine)
    with transaction(views_engine) as connection:
        assert {row["viewname"] for row in every(connection, names)} == set(COLUMNS)


def test_fresh_job_has_a_summary_of_nothing_and_no_other_rows(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    add_samples(connection, job, [{"problem": p, "state": "pending"} for p in range(4)])
    row = summary(connection, job)
    assert (row["samples_total"], row["samples_open"], row["num_scored"]) == (4, 4, 0)
    nothing = ["accuracy", "accuracy_low", "mean_output_tokens", "share_large", "seconds", "tokens_per_second"]
    assert [row[name] for name in nothing] == [None] * len(nothing)
    for view in sorted(COLUMNS.keys() - {"job_summary", "job_progress", "job_cost", "results", "worker_demand"}):
        assert every(connection, f"SELECT * FROM {view}") == []


def test_interval_is_wilsons_with_one_sample_per_problem(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 10))
    add_samples(connection, job, [{"problem": p, "score": float(p < 7)} for p in range(10)])
    row = summary(connection, job)
    assert row["accuracy"] == pytest.approx(0.7)
    # 7 of 10: 0.397 to 0.892 in any table of Wilson's intervals.
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((0.3968, 0.8922), abs=1e-4)


def test_interval_counts_problems_where_samples_of_a_problem_agree(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=2)
    add_samples(connection, job, [{"problem": p, "score": float(p < 2)} for p in range(4) for _ in range(2)])
    row = summary(connection, job)
    # Clustered variance 4/3 · 4/64 = 1/12 over the variance of 8 independent draws 2/7/8 = 1/28: design effect 7/3.
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(0.5, 8 / (7 / 3), t_quantile(3)))


def test_interval_is_never_narrower_than_of_independent_samples(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=2)
    add_samples(connection, job, [{"problem": p, "score": float(i)} for p in range(4) for i in range(2)])
    row = summary(connection, job)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(0.5, 8, t_quantile(3)))


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_interval_of_equal_scores_counts_problems(connection: Connection, score: float) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=2)
    add_samples(connection, job, [{"problem": p, "score": score} for p in range(4) for _ in range(2)])
    row = summary(connection, job)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(score, 4), abs=1e-12)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_interval_does_not_leave_its_range_by_rounding(connection: Connection, score: float) -> None:
    """With five problems, Wilson's formula in double precision does."""
    job = add_job(connection, add_problem_set(connection, 5))
    add_samples(connection, job, [{"problem": p, "score": score} for p in range(5)])
    [subject] = every(connection, "SELECT * FROM subject_scores WHERE job_id = :job", job=job)
    for row in (summary(connection, job), subject):
        assert 0 <= row["accuracy_low"] <= row["accuracy_high"] <= 1


def test_one_scored_problem_counts_once_however_many_samples_it_has(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=4)
    add_samples(connection, job, [{"problem": 0, "score": float(i % 2)} for i in range(4)])
    row = summary(connection, job)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(0.5, 1))


def test_summary_of_a_half_done_job_counts_what_is_complete(connection: Connection) -> None:
    worker = add_worker(connection, "small", model="S")
    job = add_job(connection, add_problem_set(connection, 7), seconds=10)
    add_samples(
        connection,
        job,
        [
            {"problem": 0, "score": 1.0, "tokens_small": 60, "tokens_large": 30, "tokens_inserted": 10,
             "num_takeovers": 3},
            {"problem": 1, "score": None, "tokens_small": 200, "num_takeovers": 0},  # unscored is not wrong
            {"problem": 2, "state": "finished", "tokens_small": 300, "num_takeovers": 0},
            {"problem": 3, "state": "drafting", "holder_id": worker, "tokens_small": 50, "tokens_large": 40,
             "discarded_small": 5, "discarded_large": 7, "num_takeovers": 9},
            {"problem": 4, "state": "failed", "tokens_small": 10},
            {"problem": 5, "state": "cancelled"},
            {"problem": 6, "state": "pending"},
        ],
    )  # fmt: skip
    row = summary(connection, job)
    counts = ["total", "finished", "graded", "failed", "cancelled", "open"]
    assert [row[f"samples_{name}"] for name in counts] == [7, 1, 2, 1, 1, 3]
    assert (row["num_scored"], row["accuracy"]) == (1, 1.0)
    assert (row["mean_output_tokens"], row["p50_output_tokens"], row["p90_output_tokens"]) == (200, 200, 280)
    assert (row["tokens_small"], row["tokens_large"], row["tokens_inserted"]) == (620, 70, 10)
    assert (row["discarded_small"], row["discarded_large"]) == (5, 7)
    assert row["share_large"] == pytest.approx(70 / 700)
    assert (row["takeovers"], row["takeovers_per_sample"]) == (12, 1.0)
    assert row["seconds"] == pytest.approx(10, abs=5)
    assert row["tokens_per_second"] == pytest.approx(700 / row["seconds"])
    assert row["tokens_per_second_small"] == pytest.approx(625 / row["seconds"])
    assert row["tokens_per_second_large"] == pytest.approx(77 / row["seconds"])


def test_speed_of_an_ended_job_stands_still(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 1), state="completed", seconds=4)
    add_samples(connection, job, [{"score": 1.0, "tokens_small": 100}])
    row = summary(connection, job)
    assert (row["seconds"], row["tokens_per_second"]) == (4, 25)


def test_token_lengths_by_author_finish_reason_and_verdict(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    add_samples(
        connection,
        job,
        [
            {"problem": 0, "score": 1.0, "tokens_small": 10},
            {"problem": 1, "score": 0.0, "tokens_small": 15, "tokens_large": 5},
            {"problem": 2, "score": 0.0, "tokens_small": 30, "finish_reason": "length"},
            {"problem": 3, "score": None, "tokens_small": 40},
        ],
    )
    query = (
        "SELECT * FROM token_lengths WHERE job_id = :job AND author = :author "
        "AND finish_reason = :reason AND verdict = :verdict"
    )

    def lengths(author: str, reason: str, verdict: str) -> dict[str, Any]:
        return one(connection, query, job=job, author=author, reason=reason, verdict=verdict)

    row = lengths("all", "all", "all")
    assert [row[name] for name in ("n", "mean", "min", "p50", "max", "total")] == [4, 25, 10, 25, 40, 100]
    assert row["sd"] == pytest.approx(12.909944)
    assert [row[name] for name in ("p90", "p95", "p99")] == pytest.approx([37, 38.5, 39.7])
    assert lengths("all", "length", "wrong")["total"] == 30
    assert lengths("all", "eos", "all")["n"] == 3
    assert lengths("all", "all", "unscored")["mean"] == 40
    assert lengths("large", "all", "all")["mean"] == 1.25
    assert lengths("large", "all", "wrong")["max"] == 5


def test_delegation_adds_up_to_the_large_models_tokens(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 2))
    ids = add_samples(
        connection,
        job,
        [{"problem": 0, "tokens_large": 5, "tokens_inserted": 2}, {"problem": 1, "tokens_large": 3}],
    )
    by: dict[str, Any] = {
        "worker_id": add_worker(connection, "large", model="L"),
        "engine_id": add_engine(connection, "L"),
    }
    add_segment(connection, ids[0], 0, "small", "aaaa", **by)
    add_segment(connection, ids[0], 1, "large", "bb", trigger="reflection", wait_seconds=1.0, cached_tokens=5, **by)
    add_segment(connection, ids[0], 2, "large", "ccc", trigger="verify", discarded="x", wait_seconds=0.5, **by)
    add_segment(connection, ids[0], 3, "inserted", "dd", trigger="too_much_reflection", **by)
    add_segment(connection, ids[1], 0, "large", "eee", trigger="reflection", wait_seconds=3.0, cached_tokens=10, **by)
    rows = every(connection, "SELECT * FROM delegation WHERE job_id = :job ORDER BY author DESC, trigger", job=job)
    assert [(row["author"], row["trigger"], row["num_segments"], row["tokens"]) for row in rows] == [
        ("large", "reflection", 2, 5),
        ("large", "verify", 1, 3),
        ("inserted", "too_much_reflection", 1, 2),
    ]
    reflection, verify, _ = rows
    assert (reflection["mean_tokens"], reflection["mean_wait_seconds"], reflection["share_cached"]) == (2.5, 2.0, 0.75)
    assert (reflection["num_samples"], verify["tokens_discarded"]) == (2, 1)


def test_pass_at_k_is_the_unbiased_estimate(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=4)
    right = {0: 2, 1: 0, 2: 4}
    graded = [{"problem": p, "score": float(i < c)} for p, c in right.items() for i in range(4)]
    add_samples(connection, job, [*graded, {"problem": 3, "score": 1.0}, {"problem": 3, "state": "pending"}])
    rows = every(connection, "SELECT k, num_problems, pass_at_k FROM pass_at_k WHERE job_id = :job ORDER BY k", job=job)
    assert [(row["k"], row["num_problems"]) for row in rows] == [(1, 4), (2, 3), (3, 3), (4, 3)]
    by_hand = [(0.5 + 0 + 1 + 1) / 4, (5 / 6 + 0 + 1) / 3, (1 + 0 + 1) / 3, (1 + 0 + 1) / 3]
    assert [row["pass_at_k"] for row in rows] == pytest.approx(by_hand)


def test_comparison_pairs_problems_scored_in_both_jobs(connection: Connection) -> None:
    problems = add_problem_set(connection, 5)
    first, second = (add_job(connection, problems) for _ in range(2))
    other = add_job(connection, add_problem_set(connection))
    add_samples(
        connection, first, [{"problem": p, "score": s, "tokens_small": 10} for p, s in enumerate([0, 1, 0, 1, 1])]
    )
    add_samples(
        connection, second, [{"problem": p, "score": s, "tokens_small": 30} for p, s in enumerate([1, 1, 1, 0])]
    )
    add_samples(connection, second, [{"problem": 4, "state": "pending"}])
    rows = every(connection, "SELECT * FROM job_comparison WHERE job_a = :a", a=first)
    assert [row["job_b"] for row in rows] == [second]
    (row,) = rows
    assert (row["num_problems"], row["accuracy_a"], row["accuracy_b"], row["difference"]) == (4, 0.5, 0.75, 0.25)
    half = t_quantile(3) * math.sqrt(((0.75**2) * 2 + 0.25**2 + 1.25**2) / 3) / 2  # differences 1, 0, 1, -1 around 1/4
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((max(-1, 0.25 - half), min(1, 0.25 + half)))
    assert (row["num_b_better"], row["num_a_better"], row["num_equal"], row["token_ratio"]) == (2, 1, 1, 3)
    assert one(connection, "SELECT difference FROM job_comparison WHERE job_a = :b AND job_b = :a", a=first, b=second)[
        "difference"
    ] == pytest.approx(-0.25)
    assert every(connection, "SELECT * FROM job_comparison WHERE :other IN (job_a, job_b)", other=other) == []


@pytest.mark.parametrize(
    "scores",
    [
        [([1, 1], [1, 1]), ([0, 0], [0, 0]), ([1, 0], [0, 1])],  # all differences are 0
        [([0], [1]), ([0], [1])],
        [([0, 1, 0, 0], [1]), ([1, 1, 1, 0], [0])],
        [([0], [1])],
    ],
)
def test_comparison_is_that_of_the_problem_scores(
    connection: Connection, scores: list[tuple[list[float], list[float]]]
) -> None:
    """The view and the comparison in Python say the same, and no interval is of no width."""
    problems = add_problem_set(connection, len(scores))
    jobs = [add_job(connection, problems, num_samples=4) for _ in range(2)]
    for side, job in enumerate(jobs):
        add_samples(
            connection, job, [{"problem": p, "score": float(s)} for p, pair in enumerate(scores) for s in pair[side]]
        )
    row = one(connection, "SELECT * FROM job_comparison WHERE job_a = :a AND job_b = :b", a=jobs[0], b=jobs[1])
    told = get_comparison(connection, *jobs)
    for field in fields(reports.JobComparison):
        expected = getattr(told, field.name)
        assert row[field.name] == (pytest.approx(expected) if isinstance(expected, float) else expected), field.name
    interval = paired_interval([sum(b) / len(b) - sum(a) / len(a) for a, b in scores])
    assert (interval is None) == (len(scores) == 1) == (row["difference_low"] is None)
    if interval is not None:
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
        assert row["difference_high"] - row["difference_low"] > 0.1
    assert (row["num_b_better"] is None) == any(len(a) != len(b) for a, b in scores)


def test_students_t_of_the_views_is_that_of_the_comparison(connection: Connection) -> None:
    rows = every(connection, "SELECT n, student_t(n) AS t FROM generate_series(1, 400) AS n ORDER BY n")
    assert [row["t"] for row in rows] == pytest.approx([t_quantile(row["n"]) for row in rows], rel=2e-6)


def test_errors_are_grouped_with_an_example(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    ids = add_samples(
        connection,
        job,
        [
            {"problem": 0, "state": "failed", "error_class": "budget", "error": "900 tokens"},
            {"problem": 1, "state": "failed", "error_class": "budget", "error": "901 tokens"},
            {"problem": 2},
        ],
    )
    connection.execute(
        text(
            "INSERT INTO grades (sample_id, grader, grader_version, status, detail)"
            " VALUES (:id, 'm', '1', 'timeout', 'd')"
        ),
        {"id": ids[2]},
    )
    rows = every(connection, "SELECT * FROM errors WHERE job_id = :job ORDER BY stage", job=job)
    told = [
        (row["stage"], row["error_class"], row["num_samples"], row["example_sample_id"], row["example"]) for row in rows
    ]
    assert told == [("generation", "budget", 2, ids[0], "900 tokens"), ("grading", "timeout", 1, ids[2], "d")]


def test_error_of_an_older_grader_version_is_gone(connection: Connection) -> None:
    """A sample counts once, and only where its newest grade is an error."""
    job = add_job(connection, add_problem_set(connection))
    mended, twice, worse = add_samples(connection, job, [{"problem": p} for p in range(3)])
    grades = [
        (mended, "9", "error"), (mended, "10", "done"), (twice, "1", "error"), (twice, "2", "error"),
        (worse, "1", "done"), (worse, "2", "timeout"), (worse, "3", "running"),
    ]  # fmt: skip
    for place, (sample, version, status) in enumerate(grades):
        connection.execute(
            text(
                "INSERT INTO grades (sample_id, grader, grader_version, status, graded_at)"
                " VALUES (:id, 'm', :version, :status, now() + make_interval(secs => :place))"
            ),
            {"id": sample, "version": version, "status": status, "place": place},
        )
    rows = every(connection, "SELECT * FROM errors WHERE job_id = :job ORDER BY error_class", job=job)
    told = [(row["error_class"], row["num_samples"], row["example_sample_id"]) for row in rows]
    assert told == [("error", 1, twice), ("timeout", 1, worse)]


def test_truncation_counts_and_compares(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    reasons = ["length", "context", "repetition", "eos"]
    add_samples(
        connection, job, [{"problem": p, "finish_reason": r, "score": float(p > 0)} for p, r in enumerate(reasons)]
    )
    row = one(connection, "SELECT * FROM truncation WHERE job_id = :job", job=job)
    assert (row["num_complete"], row["num_truncated"], row["share_truncated"]) == (4, 2, 0.5)
    assert (row["num_length"], row["num_context"], row["num_repetition"]) == (1, 1, 1)
    assert (row["accuracy_truncated"], row["accuracy_eos"]) == (0.5, 1.0)
    assert (row["num_scored_truncated"], row["num_scored_eos"]) == (2, 1)


def waiting_for(connection: Connection, job_id: int) -> str | None:
    row = one(connection, "SELECT waiting_for FROM job_progress WHERE job_id = :job", job=job_id)
    return row["waiting_for"]


def test_progress_says_what_a_job_waits_for(connection: Connection) -> None:
    problems = add_problem_set(connection)
    older, newer = (add_job(connection, problems) for _ in range(2))
    add_samples(connection, older, [{"problem": p, "state": "pending"} for p in range(3)])
    add_samples(connection, newer, [{"state": "pending"}])
    assert (waiting_for(connection, older) or "").startswith("no live upkeep worker")
    add_worker(connection, "upkeep")
    add_worker(connection, "small", model="S", alive=False)
    add_worker(connection, "small", model="another")
    assert (waiting_for(connection, older) or "").startswith("no live small worker serves S: ")
    add_worker(connection, "small", model="S")
    assert waiting_for(connection, older) is None
    assert waiting_for(connection, newer) == "samples of older or higher-ranking jobs ahead: 3"
    add_samples(connection, older, [{"state": "awaiting_large"}])
    assert (waiting_for(connection, older) or "").startswith("no live large worker serves L: ")
    add_worker(connection, "large", model="L")
    add_samples(connection, older, [{"problem": 1, "state": "finished"}])
    assert (waiting_for(connection, older) or "").startswith("no live grade worker")
    add_worker(connection, "grade")
    assert waiting_for(connection, older) is None


def test_ended_job_waits_for_nothing(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="cancelled")
    add_samples(connection, job, [{"state": "cancelled"}, {"score": 1.0}])
    row = one(connection, "SELECT * FROM job_progress WHERE job_id = :job", job=job)
    assert (row["waiting_for"], row["samples_total"], row["samples_done"], row["cancelled"]) == (None, 2, 1, 1)


def demand(connection: Connection) -> dict[tuple[str, str], tuple[int, ...]]:
    """Waiting, writing, live workers, slots and wanted, by role and model."""
    rows = every(connection, "SELECT * FROM worker_demand")
    return {(row.pop("role"), row.pop("model")): tuple(row.values()) for row in rows}


def test_demand_counts_what_running_jobs_wait_for_and_what_a_worker_has_room_for(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=10)
    worker = add_worker(connection, "small", model="S")  # 8 slots
    add_samples(connection, job, [{"state": "pending"}] * 5 + [{"state": "ready"}] * 3)
    add_samples(connection, job, [{"state": "drafting", "holder_id": worker}] + [{"state": "awaiting_large"}] * 2)
    add_samples(connection, job, [{"state": "graded"}, {"state": "failed"}])
    assert demand(connection) == {("small", "S"): (8, 1, 1, 8, 2), ("large", "L"): (2, 0, 0, 128, 1)}


def test_demand_of_a_model_that_is_named_and_not_yet_waited_for_is_one_worker(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    add_samples(connection, job, [{"state": "pending"}])
    assert demand(connection)["large", "L"] == (0, 0, 0, 128, 1)


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_demand_of_a_job_that_does_not_run_is_none(connection: Connection, state: str) -> None:
    job = add_job(connection, add_problem_set(connection), state=state)
    add_samples(connection, job, [{"state": "pending"}])
    assert demand(connection) == {}
    add_worker(connection, "large", model="L", num_slots=4)
    assert demand(connection) == {("large", "L"): (0, 0, 1, 4, 0)}


def test_demand_takes_the_slots_of_live_workers_else_of_the_last_one(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=20)
    add_samples(connection, job, [{"state": "pending"}] * 12)
    add_worker(connection, "small", model="S", alive=False, num_slots=2)
    add_worker(connection, "small", model="S", alive=False, num_slots=4)
    assert demand(connection)["small", "S"] == (12, 0, 0, 4, 3)
    add_worker(connection, "small", model="S", num_slots=5)
    add_worker(connection, "small", model="S", num_slots=8)
    assert demand(connection)["small", "S"] == (12, 0, 2, 6, 2)
