"""Views of numbers, the kept totals and their speed, on cases small enough to count by hand."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db import rollups
from pipeline.db.grades import begin_grade, end_grade
from pipeline.db.report_queries import get_stats
from pipeline.db.upkeep_statements import close_jobs
from pipeline.samples import GradeStatus
from pipeline.settings import PriceSettings
from tests.integration.rows import (
    add_aside,
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
    count_ended,
    every,
    one,
)

pytestmark = pytest.mark.integration

NOW = dt.timedelta(0)


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    """Its own transaction, never committed but where a test does it."""
    with db_engine.connect() as connection:
        yield connection


def rows_of(connection: Connection, view: str, job: int, order: str) -> list[dict[str, Any]]:
    return every(connection, f"SELECT * FROM {view} WHERE job_id = :job ORDER BY {order}", job=job)


def writers(connection: Connection) -> dict[str, dict[str, Any]]:
    """What add_segment needs to know of a small and a large worker."""
    return {
        role: {
            "worker_id": add_worker(connection, role, model=role.upper()),
            "engine_id": add_engine(connection, role.upper()),
        }
        for role in ("small", "large")
    }


# Majority, histogram, budgets.


def share_of_right(votes: Sequence[str | None]) -> float:
    """How probably the most frequent vote is "right"; equally frequent ones are equally probable."""
    counts = Counter(vote for vote in votes if vote is not None)
    leading = [vote for vote, count in counts.items() if count == max(counts.values())]
    return leading.count("right") / len(leading) if leading else 0.0


def majority(votes: Sequence[str | None], k: int) -> float:
    """The mean over all subsets of k, written down a second time."""
    shares = [share_of_right(subset) for subset in itertools.combinations(votes, k)]
    return sum(shares) / len(shares)


def add_votes(connection: Connection, num_samples: int, problems: Sequence[Sequence[str | None]]) -> int:
    job = add_job(connection, add_problem_set(connection, len(problems)), num_samples=num_samples)
    rows = [
        {"problem": p, "predicted_answer": vote, "score": float(vote == "right")}
        for p, votes in enumerate(problems)
        for vote in votes
    ]
    add_samples(connection, job, rows)
    return job


def test_maj_at_k_of_few_samples_is_the_mean_of_all_subsets(connection: Connection) -> None:
    drawn = random.Random(7)
    problems = [drawn.choices(["right", "a", "b", None], k=n) for n in (1, 2, 3, 5, 8, 8, 8)]
    found = rows_of(connection, "maj_at_k", add_votes(connection, 8, problems), "k")
    assert [row["k"] for row in found] == list(range(1, 9))
    for row in found:
        having = [votes for votes in problems if len(votes) >= row["k"]]
        assert row["num_problems"] == len(having)
        assert row["maj_at_k"] == pytest.approx(sum(majority(votes, row["k"]) for votes in having) / len(having))


def test_maj_at_k_of_many_samples_draws_subsets(connection: Connection) -> None:
    drawn = random.Random(8)
    problems = [drawn.choices(["right", "a", "b", None], weights=[4, 3, 2, 1], k=12) for _ in range(20)]
    found = rows_of(connection, "maj_at_k", add_votes(connection, 12, problems), "k")
    exact = [sum(majority(votes, k) for votes in problems) / 20 for k in range(1, 13)]
    # 64 subsets of each of 20 problems: a standard error of at most 0.5 / sqrt(1280) = 0.014, fourfold here.
    assert [row["maj_at_k"] for row in found] == pytest.approx(exact, abs=0.056)
    assert (found[0]["maj_at_k"], found[-1]["maj_at_k"]) == (pytest.approx(exact[0]), pytest.approx(exact[-1]))
    again = rows_of(connection, "maj_at_k", add_votes(connection, 12, problems), "k")
    assert [row["maj_at_k"] for row in again] == pytest.approx([row["maj_at_k"] for row in found], rel=1e-12)


def test_maj_at_k_of_many_samples_without_an_answer_or_all_right(connection: Connection) -> None:
    found = rows_of(connection, "maj_at_k", add_votes(connection, 10, [[None] * 10, ["right"] * 10]), "k")
    assert [row["maj_at_k"] for row in found] == [0.5] * 10


def test_maj_at_k_by_hand(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), num_samples=4)
    answers: dict[int, list[str | None]] = {
        0: ["4", "4.0", "5", "6"],
        1: ["1", None, "2", "3"],
        2: ["7", "7", "8", "9"],
    }
    right = {0: {"4", "4.0"}, 1: {"3"}, 2: {"8"}}
    add_samples(
        connection,
        job,
        [
            {"problem": p, "predicted_answer": answer, "score": float(answer in right[p])}
            for p, given in answers.items()
            for answer in given
        ],
    )
    found = rows_of(connection, "maj_at_k", job, "k")
    assert [(row["k"], row["num_problems"]) for row in found] == [(1, 3), (2, 3), (3, 3), (4, 3)]
    by_hand = [
        (2 / 4 + 1 / 4 + 1 / 4) / 3,
        # Six pairs each. First: 4 with 4.0, four ties, 5 with 6. A sample without an answer does not vote.
        ((1 + 4 / 2) / 6 + (1 + 2 / 2) / 6 + (3 / 2) / 6) / 3,
        # Four threes each. First: two with both right, two ties of three. Last: 7 wins two, two ties of three.
        ((2 + 2 / 3) / 4 + (2 / 2 + 1 / 3) / 4 + (2 * 0 + 2 / 3) / 4) / 3,
        (1 + 1 / 3 + 0) / 3,  # 4 and 4.0 are one answer
    ]
    assert [row["maj_at_k"] for row in found] == pytest.approx(by_hand)


def test_histogram_counts_every_complete_sample_once(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    lengths = [(0, 1.0), (4, 0.0), (5, None), (99, 1.0)]
    add_samples(connection, job, [{"problem": p, "tokens_small": n, "score": s} for p, (n, s) in enumerate(lengths)])
    add_samples(connection, job, [{"state": "pending"}])
    found = rows_of(connection, "length_histogram", job, "bucket")
    assert [(row["from_tokens"], row["to_tokens"]) for row in found] == [(5 * i, 5 * i + 5) for i in range(20)]
    counted = {row["bucket"]: [row[f"num_{v}"] for v in ("right", "wrong", "unscored")] for row in found if row["n"]}
    assert counted == {1: [1, 1, 0], 2: [0, 0, 1], 20: [1, 0, 0]}
    assert [row["n"] for row in found if row["n"]] == [2, 1, 1]


def test_budget_curve_is_the_accuracy_of_what_is_complete_by_then(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    lengths = [(10, 1.0), (11, 1.0), (30, 0.0), (200, 1.0)]
    add_samples(connection, job, [{"problem": p, "tokens_small": n, "score": s} for p, (n, s) in enumerate(lengths)])
    found = {row["budget"]: row for row in rows_of(connection, "budget_curve", job, "budget")}
    assert list(found) == [10 * i for i in range(1, 21)]
    told = {budget: (found[budget]["num_complete"], found[budget]["accuracy"]) for budget in (10, 20, 30, 190, 200)}
    assert told == {10: (1, 0.25), 20: (2, 0.5), 30: (3, 0.5), 190: (3, 0.5), 200: (4, 0.75)}
    assert found[10]["mean_output_tokens"] == 10
    assert found[20]["mean_output_tokens"] == (10 + 11 + 20 + 20) / 4
    assert found[200]["mean_output_tokens"] == (10 + 11 + 30 + 200) / 4


# Delegation and steps.


def job_with_takeovers(connection: Connection) -> int:
    """Two complete samples of 20 and 10 tokens, and one that still goes on."""
    job = add_job(connection, add_problem_set(connection))
    ids = add_samples(
        connection,
        job,
        [
            {"problem": 0, "score": 1.0, "tokens_small": 12, "tokens_large": 6, "tokens_inserted": 2},
            {"problem": 1, "score": 0.0, "tokens_small": 6, "tokens_large": 4},
            {"problem": 2, "state": "ready", "tokens_small": 2, "tokens_large": 1},
        ],
    )
    by = writers(connection)
    small, large = by["small"], by["large"]
    add_segment(connection, ids[0], 0, "small", "s" * 8, **small)
    add_segment(connection, ids[0], 1, "large", "l" * 2, trigger="reflection", takes_over=True, **large)
    add_segment(connection, ids[0], 2, "small", "s" * 2, trigger="resume", **small)
    add_segment(connection, ids[0], 3, "inserted", "i" * 2, trigger="too_much_reflection", **small)
    add_segment(connection, ids[0], 4, "large", "l" * 4, trigger="too_much_reflection", takes_over=True, **large)
    add_segment(connection, ids[0], 5, "small", "s" * 2, trigger="resume", **small)
    add_segment(connection, ids[1], 0, "large", "l" * 4, trigger="start", **large)
    add_segment(connection, ids[1], 1, "small", "s" * 6, trigger="resume", **small)
    add_segment(connection, ids[2], 0, "small", "s" * 2, **small)
    add_segment(connection, ids[2], 1, "large", "l", trigger="reflection", takes_over=True, **large)
    return job


def test_takeovers_have_a_place_and_what_followed(connection: Connection) -> None:
    job = job_with_takeovers(connection)
    names = ("trigger", "tokens", "start_token", "position", "followed_by", "tokens_between", "score")
    found = [tuple(row[n] for n in names) for row in rows_of(connection, "takeovers", job, "sample_id, segment_index")]
    assert found == [
        ("reflection", 2, 8, 0.4, "too_much_reflection", 4, 1.0),
        ("too_much_reflection", 4, 14, 0.7, "end", 2, 1.0),
        ("reflection", 1, 2, pytest.approx(2 / 3), None, 0, None),
    ]


def test_takeover_flow_leaves_out_what_is_still_open(connection: Connection) -> None:
    job = job_with_takeovers(connection)
    found = rows_of(connection, "takeover_flow", job, "trigger")
    told = [(row["trigger"], row["followed_by"], row["num_takeovers"], row["mean_tokens_between"]) for row in found]
    assert told == [
        ("reflection", "too_much_reflection", 1, 4),
        ("too_much_reflection", "end", 1, 2),
    ]
    assert (found[0]["mean_position"], found[0]["mean_tokens"], found[0]["accuracy"]) == (0.4, 2, 1.0)
    assert [row["num_scored"] for row in found] == [1, 1]


def test_delegation_along_the_sample_adds_up_to_the_large_models_tokens(connection: Connection) -> None:
    found = rows_of(connection, "delegation_progress", job_with_takeovers(connection), "tenth")
    assert [row["tokens"] for row in found] == [3.0] * 10  # 2 of the first sample, 1 of the second
    # First sample: tokens 8-9 and 14-17 of 20, two a tenth. Second: tokens 0-3 of 10, one a tenth.
    assert [row["tokens_large"] for row in found] == [1, 1, 1, 1, 2, 0, 0, 2, 2, 0]
    assert [row["num_takeovers"] for row in found] == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0]  # the second was opened by large
    assert found[4]["share_large"] == pytest.approx(2 / 3)


def test_steps_by_class_and_author(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    ids = add_samples(connection, job, [{"problem": 0, "score": 1.0}, {"problem": 1, "score": 0.0}])
    add_step(connection, ids[0], 0, "small", "aaaa")
    add_step(connection, ids[0], 1, "large", "bb", sentence_class="reflection", trigger="reflection")
    add_step(connection, ids[1], 0, "small", "cc")
    found = rows_of(connection, "step_summary", job, "num_steps DESC")
    names = ("sentence_class", "author", "num_steps", "tokens", "mean_tokens", "num_scored", "accuracy")
    assert [tuple(row[n] for n in names) for row in found] == [
        ("statement", "small", 2, 6, 3.0, 2, 0.5),
        ("reflection", "large", 1, 2, 2.0, 1, 1.0),
    ]
    assert [row["steps_per_sample"] for row in found] == [1.0, 0.5]
    assert [row["num_taken_over"] for row in found] == [0, 1]


def test_step_positions_are_those_of_the_stored_steps(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    ids = add_samples(connection, job, [{"problem": 0, "tokens_small": 20}, {"problem": 1, "tokens_small": 4}])
    add_step(connection, ids[0], 0, "small", "a" * 15)
    add_step(connection, ids[0], 1, "large", "b" * 5, sentence_class="reflection", trigger="reflection", start_token=15)
    add_step(connection, ids[1], 0, "small", "cccc")
    found = rows_of(connection, "step_positions", job, "tenth")
    names = ("tenth", "sentence_class", "num_steps", "num_samples", "num_taken_over", "tokens", "mean_tokens")
    assert [tuple(row[n] for n in names) for row in found] == [
        (1, "statement", 2, 2, 0, 19, 9.5),
        (8, "reflection", 1, 1, 1, 5, 5.0),  # 15 of 20 tokens are before it
    ]
    assert [row["share_large"] for row in found] == [0, 1]


# Results, subjects, problems, minutes.


def test_results_have_the_text_of_every_sample(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    first, second = add_samples(
        connection, job, [{"problem": 0, "score": 1.0, "tokens_small": 3}, {"problem": 1, "state": "pending"}]
    )
    by = writers(connection)
    add_segment(connection, first, 0, "small", "abc", discarded="x", **by["small"])
    add_segment(connection, first, 1, "large", "de", **by["large"])
    rows = rows_of(connection, "results", job, "sample_id")
    stored = one(connection, "SELECT * FROM jobs WHERE id = :job", job=job)
    assert [(row["sample_id"], row["output"]) for row in rows] == [(first, "abcde"), (second, "")]
    assert [(row["state"], row["score"]) for row in rows] == [("graded", 1.0), ("pending", None)]
    for row in rows:
        assert [row[name] for name in ("policy", "small_model", "large_model")] == [
            stored[name] for name in ("policy", "small_model", "large_model")
        ]
        assert row["seed"] == stored["config"].get("seed")


def test_subjects_add_up_to_the_scored_samples(connection: Connection) -> None:
    problems = add_problem_set(connection, 4)
    for subject, places in (("algebra", (0, 1)), ("geometry", (2,))):
        connection.execute(
            text("UPDATE problems SET subject = :subject WHERE problem_set_id = :set AND position = ANY(:places)"),
            {"subject": subject, "set": problems, "places": list(places)},
        )
    job = add_job(connection, problems, num_samples=2)
    scores = {0: [1, 1], 1: [1, 0], 2: [0, 0], 3: [1]}
    rows = [
        {"problem": p, "score": float(s), "tokens_small": 6, "tokens_large": 2 * p} for p in scores for s in scores[p]
    ]
    add_samples(connection, job, [*rows, {"problem": 3, "state": "pending"}])
    found = {row["subject"]: row for row in rows_of(connection, "subject_scores", job, "subject")}
    names = ("num_problems", "num_scored", "num_right", "accuracy", "mean_output_tokens", "share_large")
    assert {subject: tuple(row[n] for n in names) for subject, row in found.items()} == {
        "algebra": (2, 4, 3, 0.75, 7.0, pytest.approx(4 / 28)),
        "geometry": (1, 2, 0, 0.0, 10.0, pytest.approx(8 / 20)),
        None: (1, 1, 1, 1.0, 12.0, pytest.approx(6 / 12)),
    }
    z2 = 1.96**2
    assert found["geometry"]["accuracy_high"] == pytest.approx(z2 / (1 + z2))  # Wilson's of none of one
    assert all(row["accuracy_high"] - row["accuracy_low"] > 0.3 for row in found.values())


def test_problem_comparison_adds_up_to_the_jobs(connection: Connection) -> None:
    problems = add_problem_set(connection, 3)
    jobs = [add_job(connection, problems, num_samples=2) for _ in range(2)]
    add_samples(connection, jobs[0], [{"problem": p, "score": s} for p, s in ((0, 1.0), (0, 0.0), (1, 0.0), (2, 1.0))])
    add_samples(connection, jobs[1], [{"problem": p, "score": s} for p, s in ((0, 1.0), (1, 1.0))])
    pair = {"a": jobs[0], "b": jobs[1]}
    rows = every(
        connection, "SELECT * FROM problem_comparison WHERE job_a = :a AND job_b = :b ORDER BY problem", **pair
    )
    names = ("num_scored_a", "num_scored_b", "score_a", "score_b", "difference")
    assert [tuple(row[n] for n in names) for row in rows] == [(2, 1, 0.5, 1.0, 0.5), (1, 1, 0.0, 1.0, 1.0)]
    summed = one(connection, "SELECT * FROM job_comparison WHERE job_a = :a AND job_b = :b", **pair)
    assert summed["difference"] == pytest.approx(sum(row["difference"] for row in rows) / len(rows))
    assert (summed["num_problems"], summed["num_scored_a"], summed["num_scored_b"]) == (2, 3, 2)


def test_throughput_adds_up_to_what_was_written(connection: Connection) -> None:
    job = job_with_asides(connection)
    at = dt.datetime(2026, 1, 1, 12, 0, 30, tzinfo=dt.UTC)
    connection.execute(text("UPDATE segments SET committed_at = :at"), {"at": at})
    connection.execute(text("UPDATE asides SET committed_at = :at"), {"at": at + dt.timedelta(minutes=1)})
    rows = rows_of(connection, "throughput", job, "minute, author")
    start = at.replace(second=0)
    told = [(row["minute"], row["author"], row["num_requests"], row["num_samples"], row["tokens"]) for row in rows]
    assert told == [
        (start, "small", 2, 2, 9),  # four each, one discarded; the head that was taken was written in an aside
        (start + dt.timedelta(minutes=1), "large", 2, 2, 2),
        (start + dt.timedelta(minutes=1), "small", 2, 2, 6),
    ]
    (row,) = rows_of(connection, "job_summary", job, "job_id")
    assert (row["written_small"], row["written_large"]) == (15, 2)
    assert rows[0]["tokens_per_second"] == pytest.approx(9 / 60)


# Cost.


def test_cost_names_jobs_that_ran_at_the_same_time(connection: Connection) -> None:
    problems = add_problem_set(connection)
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    spans = {}
    for since, until in ((0, 10), (5, 15), (10, 20), (30, None), (None, None)):
        job = add_job(connection, problems, state="running" if until is None else "completed")
        instants = [None if at is None else begin + dt.timedelta(minutes=at) for at in (since, until)]
        connection.execute(
            text("UPDATE jobs SET first_claimed_at = :since, finished_at = :until WHERE id = :job"),
            {"since": instants[0], "until": instants[1], "job": job},
        )
        spans[job] = (since, until)
    first, second, third, running, waiting = spans
    found = {row["job_id"]: row["overlapping_jobs"] for row in every(connection, "SELECT * FROM job_cost")}
    assert found == {first: [second], second: [first, third], third: [second], running: [], waiting: []}


def test_time_that_was_a_jobs_own_is_told_from_time_it_shared(connection: Connection) -> None:
    problems = add_problem_set(connection)
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    by = writers(connection)

    def ran(since: int, until: int) -> int:
        """A job whose small model wrote 10 tokens in the first half of this time and 20 in the second."""
        job = add_job(connection, problems, state="completed")
        (sample,) = add_samples(connection, job, [{"problem": 0, "score": 1.0}])
        half = (until - since) / 2
        for index, (ended, written) in enumerate(((since + half, "a" * 10), (until, "b" * 20))):
            add_segment(
                connection, sample, index, "small", written, committed_at=begin + dt.timedelta(seconds=ended),
                write_seconds=half, **by["small"],
            )  # fmt: skip
        instants = {"since": begin + dt.timedelta(seconds=since), "until": begin + dt.timedelta(seconds=until)}
        connection.execute(
            text("UPDATE jobs SET first_claimed_at = :since, finished_at = :until WHERE id = :job"),
            instants | {"job": job},
        )
        return job

    first, second, apart = ran(0, 20), ran(15, 35), ran(100, 120)
    found = {row["job_id"]: row for row in every(connection, "SELECT * FROM engine_time_alone WHERE author = 'small'")}
    numbers = ("engine_seconds", "alone_seconds", "tokens", "tokens_alone", "engine_seconds_if_alone")
    # 10 tokens in 10 s, then 20 in 10 s, of which the last 5 s were shared: 20 tokens in 15 s.
    assert [found[first][name] for name in numbers] == pytest.approx([20, 15, 30, 20, 22.5])
    # 5 of 10 tokens in its first half, 20 in its second: 25 tokens in 15 s.
    assert [found[second][name] for name in numbers] == pytest.approx([20, 15, 30, 25, 18])
    assert [found[apart][name] for name in numbers] == pytest.approx([20, 20, 30, 30, 20])
    assert found[first]["tokens_per_alone_second"] == pytest.approx(20 / 15)


def test_cost_is_money_where_prices_are_set(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    ids = add_samples(connection, job, [{"problem": 0, "score": 1.0}, {"problem": 1, "score": 1.0}])
    by = writers(connection)
    end = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    add_segment(connection, ids[0], 0, "small", "s", committed_at=end, write_seconds=1800.0, **by["small"])
    add_segment(connection, ids[1], 0, "large", "l", committed_at=end, write_seconds=360.0, **by["large"])
    assert [rows_of(connection, "job_cost", job, "job_id")[0][name] for name in ("money", "money_per_right")] == [
        None
    ] * 2
    prices = PriceSettings(small_per_hour=2, large_per_hour=10)
    for name, price in prices.session_values().items():
        connection.execute(text("SELECT set_config(:name, :price, true)"), {"name": name, "price": price})
    (row,) = rows_of(connection, "job_cost", job, "job_id")
    assert (row["money"], row["money_per_right"]) == (pytest.approx(0.5 * 2 + 0.1 * 10), pytest.approx(1.0))


def test_cost_counts_overlapping_requests_of_a_worker_once(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def at(seconds: float) -> dt.datetime:
        return start + dt.timedelta(seconds=seconds)

    ids = add_samples(
        connection,
        job,
        [
            {"problem": 0, "score": 1.0, "admitted_at": at(0), "finished_at": at(10)},
            {"problem": 1, "score": 1.0, "admitted_at": at(0), "finished_at": at(20), "finish_reason": "length"},
            {"problem": 2, "score": 0.0, "admitted_at": at(0), "finished_at": at(30), "finish_reason": "context"},
            {"problem": 3, "score": 0.0, "admitted_at": at(0), "finished_at": at(40), "finish_reason": "length"},
        ],
    )
    by = writers(connection)
    one_more = {**by["small"], "worker_id": add_worker(connection, "small", model="SMALL")}
    # The first small worker writes from 0 to 4, 1 to 3, 2 to 6 and 8 to 9: 7 seconds, 11 of requests.
    for index, (since, until) in enumerate([(0, 4), (1, 3), (2, 6), (8, 9)]):
        add_segment(
            connection, ids[index], 0, "small", "s", committed_at=at(until), write_seconds=until - since,
            wait_seconds=float(index), queue_seconds=0.5, cached_tokens=4, **by["small"],
        )  # fmt: skip
    add_segment(
        connection, ids[0], 1, "small", "s", committed_at=at(3), write_seconds=2.0, wait_seconds=4.0, **one_more
    )
    add_segment(connection, ids[0], 2, "large", "l", committed_at=at(9), write_seconds=3.0, **by["large"])
    (row,) = rows_of(connection, "job_cost", job, "job_id")
    assert (row["engine_seconds_small"], row["engine_seconds_large"]) == (9, 3)
    assert (row["request_seconds_small"], row["request_seconds_large"]) == (13, 3)
    assert (row["num_complete"], row["num_right"], row["seconds_per_right"]) == (4, 2, 6)
    assert (row["small_seconds_per_right"], row["large_seconds_per_right"]) == (4.5, 1.5)
    assert (row["prompt_tokens_small"], row["prompt_tokens_large"]) == (4 * 6 + 10, 10)
    assert (row["p50_wall_seconds"], row["p95_wall_seconds"]) == (25, pytest.approx(38.5))
    assert (row["mean_wait_seconds"], row["mean_queue_seconds"]) == ((4 + 1 + 2 + 3) / 4, 0.5)
    assert (row["share_length"], row["share_context"], row["share_repetition"]) == (0.5, 0.25, 0)


def test_requests_of_a_claim_that_stayed_count_where_they_were_made(connection: Connection) -> None:
    """Three requests one after the other, committed together at second 9: each ended so long before as it was held."""
    job = add_job(connection, add_problem_set(connection))
    end = dt.datetime(2026, 1, 1, 0, 0, 9, tzinfo=dt.UTC)
    (sample,) = add_samples(connection, job, [{"score": 1.0, "num_asides": 1}])
    by: dict[str, Any] = {**writers(connection)["small"], "committed_at": end, "queue_seconds": 0.25}
    add_segment(connection, sample, 0, "small", "s", write_seconds=4.0, held_seconds=5.0, wait_seconds=2.0, **by)
    add_aside(connection, sample, 0, "small", "a", after_segment=1, write_seconds=1.0, held_seconds=3.0, **by)
    add_segment(connection, sample, 1, "small", "s", write_seconds=2.0, held_seconds=0.0, **by)
    add_segment(connection, sample, 2, "small", "a", taken_from=0, tokens_generated=0, prompt_tokens=0, **by)
    (row,) = rows_of(connection, "job_cost", job, "job_id")
    assert (row["engine_seconds_small"], row["request_seconds_small"]) == (7, 7)
    assert (row["prompt_tokens_small"], row["mean_wait_seconds"], row["mean_queue_seconds"]) == (30, 2, 0.75)


# Asides.


def job_with_asides(connection: Connection) -> int:
    """Two samples: small tried three tokens in each, and large rated them; the first took two of its three."""
    job = add_job(connection, add_problem_set(connection, 2), seconds=10)
    counted = {"num_asides": 2, "aside_small": 3, "aside_large": 1}
    ids = add_samples(
        connection,
        job,
        [
            {"problem": 0, "score": 1.0, "tokens_small": 6, "taken_small": 2, "discarded_small": 1, **counted},
            {"problem": 1, "state": "ready", "tokens_small": 4, **counted},
        ],
    )
    by = writers(connection)
    for sample in ids:
        add_segment(connection, sample, 0, "small", "s" * 4, discarded="x" * (sample == ids[0]), **by["small"])
        add_aside(connection, sample, 0, "small", "abc", after_segment=1, purpose="try", **by["small"])
        add_aside(connection, sample, 1, "large", "7", after_segment=1, value=0.7, cached_tokens=5, **by["large"])
    add_segment(connection, ids[0], 1, "small", "ab", trigger="try", taken_from=0, tokens_generated=0, **by["small"])
    return job


def test_summary_counts_each_token_of_asides_once(connection: Connection) -> None:
    job = job_with_asides(connection)
    (row,) = rows_of(connection, "job_summary", job, "job_id")
    names = ("tokens_small", "discarded_small", "aside_small", "taken_small", "written_small")
    assert [row[name] for name in names] == [10, 1, 6, 2, 15]
    assert (row["aside_large"], row["taken_large"], row["written_large"]) == (2, 0, 2)
    assert row["tokens_per_second_small"] == pytest.approx(15 / row["seconds"])
    (progress,) = rows_of(connection, "job_progress", job, "job_id")
    assert (progress["written_small"], progress["written_large"]) == (15, 2)


def test_asides_by_purpose_and_author(connection: Connection) -> None:
    rate, attempt = rows_of(connection, "aside_summary", job_with_asides(connection), "purpose")
    names = ("purpose", "author", "num_asides", "num_samples", "num_taken", "tokens", "tokens_taken")
    assert [rate[name] for name in names] == ["rate", "large", 2, 2, 0, 2, 0]
    assert [attempt[name] for name in names] == ["try", "small", 2, 2, 1, 6, 2]
    assert (rate["mean_value"], rate["share_cached"], attempt["mean_value"]) == (pytest.approx(0.7), 0.5, None)


# Kept totals.


def test_kept_totals_are_what_is_counted(connection: Connection) -> None:
    job = job_with_takeovers(connection)
    connection.execute(
        text("UPDATE samples SET state = 'cancelled', ended_at = now() WHERE job_id = :job AND state = 'ready'"),
        {"job": job},
    )
    queries = [f"SELECT * FROM {view} WHERE job_id = {job}" for view in ("job_summary", "job_progress", "job_cost")]
    assert list(close_jobs(connection)) == count_ended(connection) == [job]
    kept = [one(connection, query) for query in queries]
    assert one(connection, "SELECT samples_total, cancelled FROM job_totals") == {"samples_total": 3, "cancelled": 1}
    connection.execute(text("DELETE FROM job_totals"))
    assert [one(connection, query) for query in queries] == kept


def test_views_of_an_ended_job_read_what_is_kept(connection: Connection) -> None:
    job = job_with_takeovers(connection)
    connection.execute(text("UPDATE samples SET state = 'failed', error = 'e', ended_at = now() WHERE state = 'ready'"))
    close_jobs(connection)
    count_ended(connection)
    connection.execute(
        text("UPDATE job_totals SET num_scored = 77, takeovers = 78, engine_seconds_large = 79 WHERE job_id = :job"),
        {"job": job},
    )
    told = (
        "SELECT s.num_scored, p.takeovers, c.engine_seconds_large FROM job_summary s JOIN job_progress p USING (job_id)"
    )
    assert list(one(connection, f"{told} JOIN job_cost c USING (job_id)").values()) == [77, 78, 79]


def test_job_that_was_cancelled_is_counted_too(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="cancelled")
    add_samples(connection, job, [{"state": "cancelled"}])
    running = add_job(connection, add_problem_set(connection))
    add_samples(connection, running, [{"state": "ready"}])
    assert close_jobs(connection) == {}
    assert count_ended(connection) == [job]
    assert [row["job_id"] for row in every(connection, "SELECT job_id FROM job_totals")] == [job]


def grade(connection: Connection, sample: int, *, version: str, score: float) -> None:
    epoch = connection.execute(text("SELECT epoch FROM samples WHERE id = :id"), {"id": sample}).scalar_one()
    begin_grade(connection, sample_id=sample, epoch=epoch, grader="math", version=version)
    end_grade(
        connection, sample_id=sample, epoch=epoch, grader="math", version=version, status=GradeStatus.DONE,
        score=score, predicted_answer="1", detail=None,
    )  # fmt: skip


def test_grading_again_shows_at_once_and_is_counted_again(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    (sample,) = add_samples(connection, job, [{"state": "finished"}])
    grade(connection, sample, version="1", score=0.0)
    close_jobs(connection)
    count_ended(connection)
    accuracy = f"SELECT accuracy FROM job_summary WHERE job_id = {job}"
    assert one(connection, accuracy) == {"accuracy": 0.0}
    grade(connection, sample, version="2", score=1.0)
    assert one(connection, accuracy) == {"accuracy": 1.0}
    assert one(connection, "SELECT accuracy, stale_at IS NULL AS holds FROM job_totals") == {
        "accuracy": 0.0,
        "holds": False,
    }
    assert count_ended(connection, quiet=dt.timedelta(hours=1)) == []
    assert count_ended(connection) == [job]
    assert one(connection, "SELECT accuracy, stale_at FROM job_totals") == {"accuracy": 1.0, "stale_at": None}


def test_count_waits_for_a_grade_that_is_being_changed(db_engine: Engine, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    (sample,) = add_samples(connection, job, [{"score": 0.0}])
    connection.commit()
    with db_engine.connect() as grader:
        grade(grader, sample, version="2", score=1.0)
        assert count_ended(connection) == []
        connection.commit()
        grader.commit()
    assert count_ended(connection) == [job]
    assert one(connection, "SELECT accuracy FROM job_totals") == {"accuracy": 1.0}


# Statistics together, and speed.


def test_bootstrap_is_there_with_several_samples_per_problem(connection: Connection) -> None:
    problems = add_problem_set(connection, 20)
    for num_samples in (1, 2):
        job = add_job(connection, problems, num_samples=num_samples)
        scores = [{"problem": p, "score": float(p < 10)} for p in range(20) for _ in range(num_samples)]
        add_samples(connection, job, scores)
        bootstrap = get_stats(connection, job).bootstrap
        if num_samples == 1:
            assert bootstrap is None
            continue
        assert bootstrap is not None
        # Twenty problems, all or nothing: the standard error of their mean is sqrt(1/4 / 20).
        assert (bootstrap.low, bootstrap.high) == pytest.approx((0.5 - 0.219, 0.5 + 0.219), abs=0.04)


def add_many_samples(connection: Connection, job: int, num_samples: int) -> None:
    """All graded, num_samples for each problem."""
    connection.execute(
        text("""
            INSERT INTO samples (job_id, problem_id, sample_index, state, finish_reason, score, tokens_small,
                                 tokens_large, num_takeovers, admitted_at, finished_at, ended_at)
            SELECT j.id, p.id, i, 'graded', 'eos', (p.position * 7 + i * 13) % 2, 100 + (p.position * i) % 900, i, i,
                   now() - make_interval(secs => 1 + i), now(), now()
            FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id
            CROSS JOIN generate_series(0, :n - 1) AS i WHERE j.id = :job
        """),
        {"job": job, "n": num_samples},
    )
    connection.execute(text("ANALYZE samples"))


def seconds(connection: Connection, query: str, **params: Any) -> float:
    start = time.perf_counter()
    connection.execute(text(query), params).all()
    return time.perf_counter() - start


def test_summary_of_100_000_samples_answers_in_a_second(connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 5_000), num_samples=20)
    add_many_samples(connection, job, 20)
    connection.execute(text("SELECT create_rollups(:job)"), {"job": job})  # as a submission does
    query = "SELECT * FROM job_summary WHERE job_id = :job"
    assert one(connection, query, job=job)["samples_total"] == 100_000
    for rollup in rollups.refreshable_rollups(connection, quiet=dt.timedelta(0), limit=1000):  # as upkeep does
        assert rollups.refresh_rollup(connection, rollup)
    assert min(seconds(connection, query, job=job) for _ in range(3)) < 1
    assert list(close_jobs(connection)) == count_ended(connection) == [job]
    before = num_scans(connection, "samples")
    assert min(seconds(connection, query, job=job) for _ in range(3)) < 1
    assert num_scans(connection, "samples") == before


def num_scans(connection: Connection, table: str) -> int:
    """How often this transaction has looked into a table."""
    scans = text(
        "SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relname = :table"
    )
    return int(connection.execute(scans, {"table": table}).scalar_one())
