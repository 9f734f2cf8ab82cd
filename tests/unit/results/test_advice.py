"""What is said of numbers that are easily misread, and when nothing is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.jobs.config import JobState
from pipeline.results.advice import few_takeovers, partial_results, shared_time
from pipeline.results.reports import JobProgress
from tests.unit.results.test_page import cost, job


def progress(**changes: Any) -> JobProgress:
    """Of a job of 30 samples: 20 are complete, no takeover in any."""
    usual = JobProgress(
        job_id=1, name="j", state=JobState.RUNNING, samples_total=30, samples_done=15, pending=10, ready=0, drafting=0,
        awaiting_large=0, assisting=0, awaiting_judge=0, judging=0, finished=5, graded=15, failed=0, cancelled=0,
        live_small_workers=1, live_large_workers=1, live_judge_workers=0, samples_ahead=0, waiting_for=None,
        takeovers=0, written_small=5000, written_large=0, written_judge=0, seconds=1.0,
    )  # fmt: skip
    return replace(usual, **changes)


def test_delegating_policy_without_takeovers_is_named_after_twenty_samples() -> None:
    listed, _ = job(1)
    told = few_takeovers(listed, progress())
    assert told is not None
    assert told.startswith("job 1: 0 takeovers in 20 complete samples")
    assert few_takeovers(listed, progress(graded=14)) is None


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({"takeovers": 1}, False),
        ({"takeovers": 1, "graded": 95}, True),
        ({"written_large": 60}, False),  # large opens each sample
        ({"written_large": 20}, True),
    ],
)
def test_almost_no_takeover_is_fewer_than_one_in_twenty_samples(changes: dict[str, int], is_told: bool) -> None:
    assert (few_takeovers(job(1)[0], progress(**changes)) is not None) == is_told


@pytest.mark.parametrize("role", ["small_model", "large_model"])
def test_policy_of_one_model_needs_no_takeover(role: str) -> None:
    one_model: dict[str, Any] = {role: None}
    assert few_takeovers(replace(job(1)[0], **one_model), progress()) is None


def test_partial_results_say_that_they_favour_short_texts() -> None:
    summary = job(1)[1].summary
    assert partial_results([summary]) == []
    (told,) = partial_results([replace(summary, samples_graded=3, samples_open=1)])
    assert told.startswith("job 1 is partial: 3 of 4 samples are graded, and short texts end first")
    assert partial_results([replace(summary, samples_graded=3, samples_failed=1)]) == []
    assert len(partial_results([replace(summary, samples_graded=3, samples_cancelled=1)])) == 1
    assert partial_results([replace(summary, samples_graded=0, samples_open=4)]) == []


def test_jobs_that_ran_at_the_same_time_are_named() -> None:
    assert shared_time([cost(1)]) == []
    (told,) = shared_time([replace(cost(1), overlapping_jobs=tuple(range(2, 10)))])
    assert "at the same time as jobs 2, 3, 4, 5, 6 and 3 more:" in told
