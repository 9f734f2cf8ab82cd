"""What the pages say of progress, whom they let in, and how they send files."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pipeline.gateway.browsers import cookie_key, form_token, is_open, is_page, local_path
from pipeline.gateway.pages.pieces import pieces_of
from pipeline.gateway.progress import ShownProgress, mean_pace, told_duration
from pipeline.jobs.config import JobState
from pipeline.results.exports import ExportFormat
from pipeline.results.reports import JobProgress
from tests.unit.results.test_exports import make_result


def progress(**values: Any) -> JobProgress:
    usual: dict[str, Any] = {
        "job_id": 3, "name": "a job", "state": JobState.RUNNING, "samples_total": 1000, "samples_done": 200,
        "pending": 500, "ready": 10, "drafting": 80, "awaiting_large": 5, "assisting": 5, "awaiting_judge": 0,
        "judging": 0, "finished": 200, "graded": 198, "failed": 2, "cancelled": 0, "live_small_workers": 1,
        "live_large_workers": 1, "live_judge_workers": 0, "samples_ahead": 0, "waiting_for": None, "takeovers": 1234,
        "written_small": 1, "written_large": 1, "written_judge": 0, "seconds": 100.0,
    }  # fmt: skip
    return JobProgress(**{**usual, **values})


def texts(per_second: float | None = None, **values: Any) -> dict[str, str]:
    return ShownProgress(progress=progress(**values), summary=None, per_second=per_second).texts


def test_progress_is_told_in_words() -> None:
    told = texts(per_second=4.0, waiting_for="no live large worker")
    assert told["done"] == "400 of 1,000"
    assert (told["pace"], told["left"]) == ("4.0/s", "2 min left")
    assert told["failed"] == "2 failed"
    assert told["waiting"] == "no live large worker"
    assert told["at_work"] == "500 not begun · 90 with small · 10 with large · 200 to grade"
    assert texts(per_second=0.05)["pace"] == "3.0/min"


def test_what_is_not_known_is_not_said() -> None:
    assert (texts()["pace"], texts()["left"]) == ("", "")
    ended = texts(per_second=4.0, state=JobState.COMPLETED, waiting_for="nothing")
    assert (ended["pace"], ended["left"], ended["waiting"]) == ("", "", "")
    assert texts(per_second=1.0, samples_done=800)["left"] == "200 to grade"


def test_a_job_that_nobody_watched_has_the_pace_of_its_whole_time() -> None:
    assert mean_pace(progress()) == 4.0
    assert mean_pace(progress(seconds=None)) is None
    assert mean_pace(progress(state=JobState.COMPLETED)) is None


@pytest.mark.parametrize(("seconds", "told"), [(3.2, "3 s"), (250, "4 min"), (7_620, "2 h 07 min"), (3e5, "3 days")])
def test_durations_are_rounded_to_what_is_wanted(seconds: float, told: str) -> None:
    assert told_duration(seconds) == told


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "", "jobs", "/a\nb", "/\tb"],
)
def test_login_goes_on_to_addresses_of_its_own_alone(wanted: str) -> None:
    assert local_path(wanted) == "/"
    assert local_path("/jobs/7/samples?state=wrong") == "/jobs/7/samples?state=wrong"


def test_forms_of_one_key_are_none_of_another() -> None:
    assert form_token("a") == form_token("a")
    assert len({form_token("a"), form_token("b"), form_token(None)}) == 3
    assert cookie_key("theme=dark; specthink_key=sk-1; x=y") == "sk-1"
    assert cookie_key("specthink_key_old=sk-1") is None
    assert cookie_key(None) is None


def test_the_api_is_no_page_and_little_is_open() -> None:
    for path in ("/v1/batches", "/health", "/metrics", "/openapi.json", "/jobsx"):
        assert not is_page(path)
    assert all(is_page(path) for path in ("/", "/jobs/7/results.csv", "/events", "/static/pages.css"))
    assert [path for path in ("/", "/jobs", "/events", "/login", "/static/pages.js") if is_open(path)] == [
        "/login", "/static/pages.js",
    ]  # fmt: skip


def test_a_reader_that_goes_ends_what_writes_for_it() -> None:
    before = threading.active_count()
    endless = pieces_of(many(10**9), ExportFormat.JSONL)
    assert next(endless)
    endless.close()
    assert threading.active_count() == before


def test_a_fault_in_the_rows_reaches_the_reader() -> None:
    with pytest.raises(ValueError, match="the row is broken"):
        list(pieces_of(many(2, fails=True), ExportFormat.JSONL))


def many(number: int, *, fails: bool = False) -> Any:

    yield from (make_result() for _ in range(number))
    if fails:
        raise ValueError("the row is broken")
