"""The client against a real database, without workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline import Client, ColumnNames, Problem, ProblemSet
from pipeline.db.grants import grant_roles
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import (
    BadProblem,
    ConfigurationError,
    JobError,
    NotComparable,
    NotFound,
    PipelineError,
    ProblemSetError,
    QueryRefused,
    ServiceUnavailable,
)
from pipeline.jobs.config import JobState
from pipeline.jobs.submission import Submission
from pipeline.logins import DatabaseRole
from pipeline.problems import content_sha256
from pipeline.results.jobs import JobChange
from pipeline.samples import Author, ModelRole, SampleState
from pipeline.settings import PriceSettings
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
    every,
    one,
)

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL, LARGE = EXAMPLES / "models" / "demo-small", EXAMPLES / "models" / "demo-large"
PROBLEMS = EXAMPLES / "problems.jsonl"


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


@pytest.fixture
def connection(db_engine: Engine) -> Iterator[Connection]:
    """Its own transaction; commit it to let the client see what was written."""
    with db_engine.connect() as connection:
        yield connection


def small_set(*prompts: str) -> ProblemSet:
    problems = tuple(Problem(external_id=str(i), prompt=prompt, answer="1") for i, prompt in enumerate(prompts))
    return ProblemSet(name="few", content_sha256=content_sha256(problems), problems=problems)


def count(client: Client, table: str) -> int:
    return int(client.sql(f"SELECT count(*) FROM {table}").rows[0][0])


def test_submit_stores_the_job_and_every_sample(client: Client) -> None:
    job = client.submit(PROBLEMS, small=SMALL, large=LARGE, num_samples=3, limit=5, seed=7, max_tokens=100, name="mine")
    assert (job.state, job.name, job.problem_set) == (JobState.RUNNING, "mine", "problems")
    assert (job.num_problems, job.num_samples, job.small_model, job.large_model) == (5, 3, "demo-small", "demo-large")
    assert (job.config.seed, job.config.sampling.max_tokens, job.config.sampling.temperature) == (7, 100, 0.6)
    assert job.config.small is not None
    assert len(job.config.small.fingerprint or "") == 64
    assert job.versions["sqlalchemy"].startswith("2.")
    assert job.versions["prompt template"] == "math/2"
    (progress,) = client.progress(job)
    assert (progress.samples_total, progress.pending) == (15, 15)
    assert count(client, "problems") == 200


def test_several_jobs_are_stored_together_or_not_at_all(client: Client) -> None:
    wanted = [Submission.parse(problems=PROBLEMS, small=SMALL, large=LARGE, limit=n, name=f"of {n}") for n in (3, 2)]
    assert [(job.name, job.num_problems) for job in client.submit_all(wanted)] == [("of 3", 3), ("of 2", 2)]
    bad = Submission.parse(problems=small_set("1?", "again and " * 3000), small=SMALL, large=LARGE)
    with pytest.raises(ProblemSetError):
        client.submit_all([wanted[0], bad])
    assert (count(client, "jobs"), count(client, "samples")) == (2, 5)


def test_jobs_stored_together_have_each_its_own_problems_and_models(client: Client) -> None:
    asked = client.submit(small_set("0?"), small=SMALL, policy="small-only").problem_set_id
    models = {"small": SMALL, "large": LARGE}
    jobs = client.submit_all(
        [
            Submission.parse(problems=small_set("1?", "2?"), **models),
            Submission.parse(problems=small_set("0?"), small=LARGE, policy="small-only"),
            Submission.parse(
                problems=small_set("1?", "2?"), small_asking={"system": "Be brief."}, num_samples=2, **models
            ),
            Submission.parse(problems=asked, large=SMALL, policy="large-only"),
        ]
    )
    assert [(job.small_model, job.large_model) for job in jobs] == [
        ("demo-small", "demo-large"),
        ("demo-large", None),
        ("demo-small", "demo-large"),
        (None, "demo-small"),
    ]
    assert [job.config.small_asking.system for job in jobs] == [None, None, "Be brief.", None]
    assert jobs[1].problem_set_id == jobs[3].problem_set_id == asked
    assert jobs[0].problem_set_id == jobs[2].problem_set_id != asked
    query = """
        SELECT s.job_id, string_agg(p.prompt || s.sample_index, ' ' ORDER BY s.id) AS told
        FROM samples s JOIN problems p ON p.id = s.problem_id GROUP BY s.job_id ORDER BY s.job_id
    """
    told = [row[1] for row in client.sql(query).rows]
    assert told == ["0?0", "1?0 2?0", "0?0", "1?0 1?1 2?0 2?1", "0?0"]
    assert [row[0] for row in client.sql("SELECT count(*) FROM rollups GROUP BY job_id").rows] == [1] * 5


def test_dry_run_stores_nothing_and_says_who_serves_the_models(client: Client, connection: Connection) -> None:
    engine = add_engine(connection, "demo-small")
    connection.execute(
        text("""UPDATE engines SET settings = '{"max_model_len": 512, "argument block_size": "64",
        "accelerate": "ngram", "draft_tokens": 4}'""")
    )
    worker = add_worker(connection, "small", model="demo-small", engine_id=engine)
    tables = connection.execute(
        text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    ).scalars()
    names = sorted(tables)
    connection.commit()
    before = {name: count(client, name) for name in names}
    found = client.dry_run(PROBLEMS, small=SMALL, large=LARGE, num_samples=3, limit=5, max_tokens=1000)
    assert {name: count(client, name) for name in names} == before
    assert (before["workers"], before["jobs"], before["problem_sets"]) == (1, 0, 0)
    small, large = found.models
    assert [(one.id, one.max_model_len) for one in small.workers or ()] == [(worker, 512)]
    assert [(one.id, one.engine_arguments) for one in client.workers()] == [(worker, {"block_size": "64"})]
    [drafting] = client.workers()
    assert (drafting.accelerate, drafting.acceptance) == ("ngram", "ngram, no draft yet")
    assert large.workers == ()
    assert (found.samples_total, found.problems.num_references) == (15, 5)
    stored = client.submit(PROBLEMS, small=SMALL, large=LARGE, limit=5)
    again = client.dry_run(stored.problem_set_id, small=SMALL, large=LARGE)
    assert (again.problems.size, again.problems.num_references) == (200, 200)
    assert again.models[0].prompt == small.prompt


def test_submitting_the_same_problems_again_stores_them_once(client: Client) -> None:
    first = client.submit(PROBLEMS, small="S", large="L")
    second = client.submit(PROBLEMS, small="S", large="L", limit=1000)
    assert (count(client, "problem_sets"), count(client, "problems"), count(client, "samples")) == (1, 200, 400)
    assert (first.num_problems, second.num_problems) == (200, 200)
    assert [job.id for job in client.jobs()] == [second.id, first.id]


def test_results_say_what_was_right_to_a_login_that_may_read_it(connections: Connections, tmp_path: Path) -> None:
    file = tmp_path / "set.csv"
    file.write_text("problem,answer,subject,note\n1+1?,2,sums,easy\n")
    with Client(connections.submitter_url, connections.reader_url) as client:
        job = client.submit(file, small="S", policy="small-only", seed=7)
        (shown,) = client.results(job)
        assert client.sample(shown.sample_id).result == shown
    assert (shown.reference, shown.subject, shown.metadata) == ("2", "sums", {"note": "easy"})
    assert (shown.policy, shown.small_model, shown.large_model, shown.seed) == ("small-only", "S", None, 7)
    assert (shown.rendered_prompt or "").startswith("1+1?\n\nPlease reason step by step")
    with Client(connections.submitter_url) as client:
        (hidden,) = client.results(job)
    assert hidden == replace(shown, reference=None, metadata={})


def test_prices_reach_the_views(connections: Connections, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection), state="completed")
    connection.commit()
    prices = PriceSettings(small_per_hour=1)
    url = connections.submitter_url
    for client, money in ((Client(url, prices=prices), 0.0), (Client(url), None)):
        with client:
            assert client.stats(job).cost.money == money
            assert client.sql(f"SELECT money FROM job_cost WHERE job_id = {job}").rows == [(money,)]


@pytest.mark.parametrize(
    ("policy", "role", "small", "large"),
    [
        ("small-only", ModelRole.SMALL, "S", None),
        ("large-only", ModelRole.LARGE, None, "L"),
        ("speculative-thinking", ModelRole.SMALL, "S", "L"),
    ],
)
def test_policy_decides_who_opens_and_which_models_count(
    client: Client, policy: str, role: ModelRole, small: str | None, large: str | None
) -> None:
    job = client.submit(small_set("1?"), small="S", large="L", policy=policy)
    assert (job.small_model, job.large_model) == (small, large)
    assert client.sql("SELECT first_role FROM jobs").rows == [(role.value,)]


def test_columns_can_be_named(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "set.csv"
    file.write_text("what,right\n1+1?,2\n")
    job = client.submit(file, small="S", policy="small-only", columns=ColumnNames(problem="what", answer="right"))
    assert [result.prompt for result in client.results(job)] == ["1+1?"]
    assert client.sql("SELECT answer FROM reference_answers").rows == [("2",)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"small": "S"}, "needs a large model; give --large MODEL"),
        ({"small": "S", "large": "L", "policy": "magic"}, "there is no policy 'magic'"),
        ({"small": "S", "large": "./nowhere"}, "there is no such folder"),
        ({"small": "S", "large": "L", "temperature": 3.0}, "temperature"),
        ({"small": "S", "large": "L", "num_samples": 0}, "num_samples"),
        ({"small": "S", "large": "L", "grader": "guess"}, "no grader 'guess'"),
        ({"small": "S", "large": "L", "prompt_template": "poem"}, "no prompt template 'poem'"),
    ],
)
def test_wrong_option_is_refused_and_nothing_is_stored(client: Client, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        client.submit(PROBLEMS, **options)
    assert (count(client, "jobs"), count(client, "problem_sets")) == (0, 0)


def test_bad_file_is_refused_with_its_lines(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"problem": "1?"}\n{"problem": ""}\n')
    with pytest.raises(ProblemSetError, match="line 2"):
        client.submit(file, small="S", large="L")
    assert count(client, "problem_sets") == 0


def test_prompt_longer_than_the_models_context_is_refused(client: Client) -> None:
    problem_set = small_set("1?", "again and " * 3000)
    with pytest.raises(ProblemSetError, match=r"problem '1'.*tokens"):
        client.submit(problem_set, small=SMALL, policy="small-only")
    client.submit(problem_set, small=SMALL, policy="small-only", limit=1)


def test_problem_set_that_cannot_be_asked_so_is_refused(client: Client) -> None:
    problems = (Problem(external_id="0", prompt="Which?", answer="A", metadata={"choices": "none"}),)
    problem_set = ProblemSet(name="odd", content_sha256=content_sha256(problems), problems=problems)
    with pytest.raises(BadProblem, match=r"problem '0' .*choices"):
        client.submit(problem_set, small="S", large="L", prompt_template="choice")


def test_cancel_ends_open_samples_once(client: Client) -> None:
    job = client.submit(small_set("1?", "2?"), small="S", large="L")
    assert client.cancel(job) == JobChange(job_id=job.id, state=JobState.CANCELLED, is_new=True, num_samples=2)
    assert client.job(job.id).state is JobState.CANCELLED
    assert client.cancel(job) == JobChange(job_id=job.id, state=JobState.CANCELLED, is_new=False, num_samples=2)
    with pytest.raises(NotFound):
        client.cancel(4711)


def test_unknown_ids_are_not_found(client: Client) -> None:
    for ask in (client.job, client.progress, client.summary, client.stats, client.sample):
        with pytest.raises(NotFound, match="4711"):
            ask(4711)
    with pytest.raises(NotFound):
        next(client.results(4711))


def test_compare_refuses_what_cannot_be_paired(client: Client) -> None:
    first = client.submit(small_set("1?"), small="S", large="L")
    other = client.submit(small_set("2?"), small="S", large="L")
    with pytest.raises(NotComparable, match="not on the same problem set"):
        client.compare(first, other)
    with pytest.raises(NotComparable, match="share no scored problem"):
        client.compare(first, other, anyway=True)
    with pytest.raises(NotComparable, match="another job"):
        client.compare(first, first)
    with pytest.raises(NotFound, match="no job 4711"):
        client.compare(first, 4711)


def graded_alike(connection: Connection, samples: list[int], *, version: str) -> None:
    for sample in samples:
        connection.execute(
            text(
                "INSERT INTO grades (sample_id, grader, grader_version, status, graded_at) "
                "VALUES (:sample, 'math', :version, 'done', now())"
            ),
            {"sample": sample, "version": version},
        )


def test_comparison_in_full_agrees_with_the_view_and_names_what_changed_sides(
    client: Client, connection: Connection
) -> None:
    problems = add_problem_set(connection, 6)
    jobs = [add_job(connection, problems, state="completed") for _ in range(2)]
    for job, scores in zip(jobs, [[0, 0, 0, 0, 1, 1], [1, 1, 1, 0, 0, 1]], strict=True):
        samples = [{"problem": p, "score": s, "tokens_small": 10 * (p + 1)} for p, s in enumerate(scores)]
        graded_alike(connection, add_samples(connection, job, samples), version="1")
    connection.commit()
    (found,) = client.compare(*jobs)
    (row,) = client.sql(f"SELECT * FROM job_comparison WHERE job_a = {jobs[0]} AND job_b = {jobs[1]}").as_dicts()
    assert {name: getattr(found, name) for name in row} == pytest.approx(row)
    assert [change.problem for change in found.gained or ()] == ["p0", "p1", "p2"]
    assert [(change.problem, change.score_a, change.score_b) for change in found.lost or ()] == [("p4", 1, 0)]
    assert found.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert (found.cost_a.job_id, found.cost_b.num_right, found.caveats) == (jobs[0], 4, ())


def test_jobs_of_other_grader_versions_or_problem_sets_are_compared_only_when_told(
    client: Client, connection: Connection
) -> None:
    problems = add_problem_set(connection, 2)
    jobs = [
        add_job(connection, problems),
        add_job(connection, problems),
        add_job(connection, add_problem_set(connection, 2)),
    ]
    for job, version in zip(jobs, ["1", "2", "1"], strict=True):
        samples = [{"problem": p, "score": float(p)} for p in range(2)]
        graded_alike(connection, add_samples(connection, job, samples), version=version)
    connection.commit()
    with pytest.raises(NotComparable, match=r"same version \(job .*: math 1, job .*: math 2\); --anyway"):
        client.compare(jobs[0], jobs[1])
    with pytest.raises(NotComparable, match="not on the same problem set"):
        client.compare(jobs[0], jobs[2])
    told = client.compare(jobs[0], jobs[1], jobs[2], anyway=True)
    assert [(row.num_problems, len(row.caveats), row.p_value) for row in told] == [(2, 1, None), (2, 1, None)]


# Controls and recipes


def job_to_match(connection: Connection) -> int:
    """Ended; small wrote three breaks in the think phase, large took over at one of them and in no place after it."""
    job = add_job(connection, add_problem_set(connection), state="completed")
    connection.execute(text("UPDATE jobs SET think_end = '</think>' WHERE id = :job"), {"job": job})
    (sample,) = add_samples(connection, job, [{"score": 1.0, "tokens_small": 24, "tokens_large": 6}])
    by: dict[str, Any] = {
        "worker_id": add_worker(connection, "small", model="S"), "engine_id": add_engine(connection, "S"),
    }  # fmt: skip
    pieces = [("small", "a\n\nb\n\n"), ("large", "LLLL\n\n"), ("small", "c\n\nd</think>\n\ne\n\nf")]
    for index, (author, written) in enumerate(pieces):
        takeover = {"trigger": "reflection", "takes_over": True} if author == "large" else {"trigger": "resume"}
        add_segment(connection, sample, index, author, written, **takeover, **by)
    start = 0
    for index, step in enumerate(["a\n\n", "b\n\n", "LLLL\n\n", "c\n\n", "d</think>\n\n", "e\n\n", "f"]):
        add_step(connection, sample, index, "small", step, start_token=start)
        start += len(step)
    connection.commit()
    return job


def test_random_control_takes_over_as_often_as_the_job_it_is_matched_to(client: Client, connection: Connection) -> None:
    matched = job_to_match(connection)
    job = client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=matched)
    policy = job.config.policy.model_dump()
    assert (policy["name"], policy["rate"], policy["tokens"]) == ("random", pytest.approx(1 / 3), 6)
    assert policy["handback"] == "tokens"
    assert (job.policy, job.name) == ("random", f"few · random matched to job {matched}")


def test_samples_without_their_end_do_not_count_for_the_control(client: Client, connection: Connection) -> None:
    matched = job_to_match(connection)
    (failed,) = add_samples(connection, matched, [{"problem": 1, "state": "failed", "tokens_large": 2}])
    by = one(connection, "SELECT worker_id, engine_id FROM segments LIMIT 1")
    add_segment(connection, failed, 0, "large", "LL", trigger="reflection", takes_over=True, **by)
    connection.commit()
    policy = client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=matched).config.policy
    assert policy.model_dump()["rate"] == pytest.approx(1 / 3)


def test_takeovers_are_as_long_as_they_were_written_not_as_allowed(client: Client, connection: Connection) -> None:
    """As in the preset ``code``, whose takeover goes on after its first n1 tokens."""
    matched = job_to_match(connection)
    by = one(connection, "SELECT worker_id, engine_id, sample_id FROM segments WHERE author = 'large'")
    add_segment(connection, by.pop("sample_id"), 3, "large", "L" * 30, trigger="verify", **by)
    connection.commit()
    policy = client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=matched).config.policy
    assert policy.model_dump()["tokens"] == 36


def test_control_of_takeovers_at_every_break_draws_tokens_and_opens_as_they_did(
    client: Client, connection: Connection
) -> None:
    matched = job_to_match(connection)
    (sample,) = add_samples(connection, matched, [{"problem": 1, "tokens_small": 8, "tokens_large": 9}])
    by = one(connection, "SELECT worker_id, engine_id FROM segments WHERE author = 'large'")
    pieces = [("opening", "OOO"), ("resume", "a\n\nb\n\n"), ("every_break", "LLL"), ("every_break", "MMM")]
    start = 0
    for index, (trigger, written) in enumerate(pieces):
        author = "small" if trigger == "resume" else "large"
        taking: dict[str, Any] = {"trigger": trigger, "takes_over": trigger == "every_break"}
        add_segment(connection, sample, index, author, written, **taking, **by)
        add_step(connection, sample, index, author, written, start_token=start)
        start += len(written)
    connection.commit()
    policy = client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=matched).config.policy
    values = policy.model_dump()
    # small wrote 3 breaks in the first sample and 1 in the second
    assert (values["at"], values["rate"]) == ("break", pytest.approx(3 / 4))
    assert (values["tokens"], values["opening_tokens"]) == (pytest.approx((6 + 3 + 3) / 3), 3)
    connection.execute(text("DELETE FROM steps WHERE sample_id <> :sample"), {"sample": sample})
    connection.commit()
    policy = client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=matched).config.policy
    values = policy.model_dump()
    assert (values["at"], values["rate"]) == ("token", pytest.approx(3 / 6))


def test_numbers_that_are_given_win_over_the_matched_ones(client: Client, connection: Connection) -> None:
    job = client.submit(
        small_set("1?"), small="S", large="L", policy="random", matched_to=job_to_match(connection),
        policy_values={"handback": "break", "tokens": 512},
    )  # fmt: skip
    policy = job.config.policy.model_dump()
    assert (policy["rate"], policy["tokens"], policy["handback"]) == (pytest.approx(1 / 3), 512, "break")


def test_only_the_random_policy_is_matched_and_only_to_an_ended_job(client: Client, connection: Connection) -> None:
    matched = job_to_match(connection)
    with pytest.raises(ConfigurationError, match="only the policy 'random'"):
        client.submit(small_set("1?"), small="S", large="L", matched_to=matched)
    running = client.submit(small_set("1?"), small="S", large="L")
    with pytest.raises(JobError, match="still runs"):
        client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=running)
    client.cancel(running)
    with pytest.raises(ConfigurationError, match="0 takeovers at 0 breaks"):
        client.submit(small_set("1?"), small="S", large="L", policy="random", matched_to=running)


RECIPES = Path(__file__).parents[1] / "unit" / "jobs" / "data" / "recipes"


def test_recipe_sets_what_the_paper_did_and_options_win(client: Client) -> None:
    file = RECIPES / "gpqa_diamond.csv"
    job = client.submit(file, recipe="gpqa-diamond", small="S", large="L")
    assert (job.problem_set, job.config.prompt_template, job.config.grader) == (
        "gpqa-diamond", "paper-choice", "choice",
    )  # fmt: skip
    assert (job.config.sampling.max_tokens, job.config.sampling.top_k, job.num_problems) == (32_768, 50, 3)
    (row,) = client.sql(
        "SELECT p.shown->'choices'->>(ascii(r.answer) - 65), h.columns->>'Incorrect Answer 1' FROM problems p "
        "JOIN reference_answers r ON r.problem_id = p.id JOIN hidden_columns h ON h.problem_id = p.id "
        "WHERE external_id = 'recBBB'"
    ).rows
    assert row == ("Argon", None)
    again = client.submit(file, recipe="gpqa-diamond", small="S", large="L", max_tokens=99, prompt_template="choice")
    assert (again.config.sampling.max_tokens, again.config.prompt_template) == (99, "choice")
    assert again.problem_set_id == job.problem_set_id


def test_recipe_takes_no_columns_and_no_made_set(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="knows its columns"):
        client.submit(RECIPES / "aime.csv", recipe="aime", small="S", large="L", columns=ColumnNames(problem="x"))
    with pytest.raises(ConfigurationError, match="reads a file"):
        client.submit(small_set("1?"), recipe="aime", small="S", large="L")


def test_page_has_the_jobs_their_comparison_and_samples_to_read(client: Client, connection: Connection) -> None:
    matched = job_to_match(connection)
    other = client.submit(small_set("1?"), small="S", large="L")
    page = client.page(matched, other)
    assert "LLLL" in page
    assert 'class="trigger">reflection<' in page
    assert "1 · speculative-thinking:improved" in page
    assert "Compared with" not in page  # they have no problem in common
    with pytest.raises(NotFound):
        client.page(4711)


def test_wait_returns_when_the_job_has_ended(client: Client) -> None:
    job = client.submit(small_set("1?"), small="S", large="L")
    seen: list[JobState] = []
    waiting = threading.Event()

    def cancel_once_waiting() -> None:
        waiting.wait(30)
        client.cancel(job)

    canceller = threading.Thread(target=cancel_once_waiting)
    canceller.start()

    def on_progress(jobs: list[object]) -> None:
        seen.append(jobs[0].state)  # type: ignore[attr-defined]
        waiting.set()

    (ended,) = client.wait(job, on_progress=on_progress, interval_s=0.01, timeout_s=30)  # type: ignore[arg-type]
    canceller.join()
    assert ended.state is JobState.CANCELLED
    assert (seen[0], seen[-1]) == (JobState.RUNNING, JobState.CANCELLED)
    with pytest.raises(TimeoutError):
        client.wait(client.submit(small_set("1?"), small="S", large="L"), interval_s=0.01, timeout_s=0.05)


def test_waiting_reads_no_progress_that_nobody_asks_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.submit(small_set("1?"), small="S", large="L")
    progress = Mock(wraps=client.progress)
    monkeypatch.setattr(client, "progress", progress)
    with pytest.raises(TimeoutError, match=rf"jobs \[{job.id}\] did not end"):
        client.wait(job, interval_s=0.01, timeout_s=0.1)
    assert progress.call_count == 0
    client.cancel(job)
    (ended,) = client.wait(job, interval_s=0.01, timeout_s=30)
    assert (ended.state, progress.call_count) == (JobState.CANCELLED, 1)
    with pytest.raises(NotFound):
        client.wait(10**6, interval_s=0.01, timeout_s=5)


def test_results_stream_in_the_order_of_the_problems(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 300))
    add_samples(connection, job, [{"problem": p} for p in (2, 1, 0, 1)])
    add_samples(connection, job, [{"problem": p, "state": "pending"} for p in range(3, 300)])
    connection.commit()
    results = client.results(job, batch=10)
    assert [(next(results).problem, next(results).sample_index) for _ in range(2)] == [("p0", 0), ("p1", 0)]
    assert len(list(results)) == 297
    assert {result.state for result in client.results(job, only_final=True)} == {SampleState.GRADED}


def test_results_are_of_one_moment_and_leave_no_transaction_open(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection, 50))
    add_samples(connection, job, [{"problem": p, "state": "pending"} for p in range(50)])
    connection.commit()
    results = client.results(job, batch=5)
    next(results)
    client.cancel(job)
    assert {result.state for result in results} == {SampleState.PENDING}
    busy = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"
    assert every(connection, f"{busy} AND datname = current_database()") == []


def test_sample_shows_segments_and_steps(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    (sample,) = add_samples(
        connection, job, [{"score": 1.0, "predicted_answer": "0", "tokens_small": 2, "tokens_large": 3}]
    )
    worker = add_worker(connection, "small", model="S")
    engine = add_engine(connection, "org/S")
    add_segment(connection, sample, 0, "small", "so", discarded="Wait", worker_id=worker, engine_id=engine)
    add_segment(connection, sample, 1, "large", ", 0", trigger="reflection", worker_id=worker, engine_id=engine)
    add_step(connection, sample, 0, "large", "so, 0", tokens_small=2, tokens_large=3, trigger="reflection")
    connection.commit()
    report = client.sample(sample)
    assert (report.result.output, report.result.predicted_answer, report.result.output_tokens) == ("so, 0", "0", 5)
    first, second = report.segments
    assert (first.author, first.tokens, first.tokens_discarded, first.discarded_text) == (Author.SMALL, 2, 4, "Wait")
    assert (second.author, second.trigger, second.model) == (Author.LARGE, "reflection", "org/S")
    assert [(step.text, step.author, step.trigger) for step in report.steps] == [("so, 0", Author.LARGE, "reflection")]


def test_stats_gather_the_views(client: Client, connection: Connection) -> None:
    job = add_job(connection, add_problem_set(connection))
    add_samples(connection, job, [{"problem": 0, "score": 1.0, "tokens_small": 9}, {"problem": 1, "state": "failed"}])
    connection.commit()
    stats = client.stats(job)
    assert (stats.summary.accuracy, stats.summary.samples_failed) == (1.0, 1)
    first = stats.token_lengths[0]
    assert (first.author, first.finish_reason, first.verdict, first.mean) == ("all", "all", "all", 9)
    assert [(row.k, row.pass_at_k) for row in stats.pass_at_k] == [(1, 1.0)]
    assert [(error.stage, error.num_samples) for error in stats.errors] == [("generation", 1)]
    assert stats.truncation is not None
    assert stats.truncation.num_truncated == 0


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "CREATE TABLE mine (id int)",
        "SELECT 1; COMMIT; DROP VIEW job_summary",
        "WITH gone AS (DELETE FROM jobs RETURNING id) SELECT * FROM gone",
        "SELECT setval(pg_get_serial_sequence('jobs', 'id'), 1)",
        "DO $$ BEGIN COMMIT; DELETE FROM jobs; END $$",
    ],
)
def test_sql_cannot_write(client: Client, statement: str) -> None:
    job = client.submit(small_set("1?"), small="S", large="L")
    with pytest.raises(QueryRefused):
        client.sql(statement)
    assert client.job(job.id).state is JobState.RUNNING
    assert client.submit(small_set("1?"), small="S", large="L").id == job.id + 1


def test_sql_gives_columns_and_rows(client: Client) -> None:
    table = client.sql("SELECT 1 AS n, 'a%s' AS t, 2 AS n;")
    assert table.rows == [(1, "a%s", 2)]
    assert table.as_dicts() == [{"n": 1, "t": "a%s", "n_2": 2}]
    assert client.sql("EXPLAIN SELECT 1").columns == ("QUERY PLAN",)


def test_sql_tells_what_is_wrong_with_a_query(client: Client) -> None:
    with pytest.raises(QueryRefused, match='column "nothing" does not exist'):
        client.sql("SELECT nothing FROM jobs")
    with pytest.raises(PipelineError, match=r"ran longer than 0\.1 s"):
        client.sql("SELECT pg_sleep(60)", timeout_s=0.1)


def test_reader_sees_every_view_and_changes_nothing(connections: Connections, db_engine: Engine) -> None:
    role = "specthink_reader"
    with transaction(db_engine) as connection:
        grant_roles(connection, {DatabaseRole.READER: role})
        grant_roles(connection, {DatabaseRole.READER: role})
    with Client(connections.database_url, connections.reader_url) as client:
        assert client.sql("SELECT current_user").rows == [(role,)]
        assert client.sql("SELECT count(*) FROM job_summary").rows == [(0,)]
        with pytest.raises(QueryRefused, match="only reads"):
            client.sql("DELETE FROM jobs")


def test_missing_server_and_missing_schema_have_their_remedies(servers: Connections) -> None:
    with pytest.raises(ServiceUnavailable, match="Postgres cannot be reached"):
        Client.connect(database_url="postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(ConfigurationError, match="run specthink migrate"):
        Client.connect(database_url=servers.database_url.get_secret_value())


def test_config_is_stored_with_every_value(client: Client) -> None:
    job = client.submit(small_set("1?"), small="S", large="L")
    (stored,) = client.sql("SELECT config FROM jobs").rows[0]
    assert stored == json.loads(job.config.model_dump_json())
    assert stored["sampling"] == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 50, "max_tokens": 32768, "min_p": 0.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "stop": [],
    }  # fmt: skip
