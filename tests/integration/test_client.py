"""The client against a real database, without workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline import Client, ColumnNames, Problem, ProblemSet
from pipeline.db.grants import grant_reading
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, JobError, NotFound, PipelineError, ProblemSetError, ServiceUnavailable
from pipeline.jobs import JobState
from pipeline.problems import content_sha256
from pipeline.samples import Author, ModelRole, SampleState
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
    every,
)

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL, LARGE = EXAMPLES / "models" / "demo-small", EXAMPLES / "models" / "demo-large"
PROBLEMS = EXAMPLES / "problems.jsonl"


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client.connect(database_url=connections.database_url.get_secret_value()) as client:
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
    (progress,) = client.progress(job)
    assert (progress.samples_total, progress.pending) == (15, 15)
    assert count(client, "problems") == 200


def test_submitting_the_same_problems_again_stores_them_once(client: Client) -> None:
    first = client.submit(PROBLEMS, small="S", large="L")
    second = client.submit(PROBLEMS, small="S", large="L", limit=1000)
    assert (count(client, "problem_sets"), count(client, "problems"), count(client, "samples")) == (1, 200, 400)
    assert (first.num_problems, second.num_problems) == (200, 200)
    assert [job.id for job in client.jobs()] == [second.id, first.id]


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
def test_wrong_option_is_refused_and_nothing_is_stored(client: Client, options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        client.submit(PROBLEMS, **options)  # type: ignore[arg-type]
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
    with pytest.raises(ConfigurationError, match="choices"):
        client.submit(problem_set, small="S", large="L", prompt_template="choice")


def test_cancel_ends_open_samples_once(client: Client) -> None:
    job = client.submit(small_set("1?", "2?"), small="S", large="L")
    assert client.cancel(job) == 2
    assert client.job(job.id).state is JobState.CANCELLED
    with pytest.raises(JobError, match="it is cancelled"):
        client.cancel(job)
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
    with pytest.raises(NotFound, match="not on the same problem set"):
        client.compare(first, other)
    with pytest.raises(NotFound, match="another job"):
        client.compare(first, first)


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
    with pytest.raises(ConfigurationError):
        client.sql(statement)
    assert client.job(job.id).state is JobState.RUNNING
    assert client.submit(small_set("1?"), small="S", large="L").id == job.id + 1


def test_sql_gives_columns_and_rows(client: Client) -> None:
    table = client.sql("SELECT 1 AS n, 'a%s' AS t, 2 AS n;")
    assert table.rows == [(1, "a%s", 2)]
    assert table.as_dicts() == [{"n": 1, "t": "a%s", "n_2": 2}]
    assert client.sql("EXPLAIN SELECT 1").columns == ("QUERY PLAN",)


def test_sql_tells_what_is_wrong_with_a_query(client: Client) -> None:
    with pytest.raises(ConfigurationError, match='column "nothing" does not exist'):
        client.sql("SELECT nothing FROM jobs")
    with pytest.raises(PipelineError, match=r"ran longer than 0\.1 s"):
        client.sql("SELECT pg_sleep(60)", timeout_s=0.1)


def test_reader_sees_every_view_and_changes_nothing(connections: Connections, db_engine: Engine) -> None:
    assert connections.reader_url is not None
    with transaction(db_engine) as connection:
        grant_reading(connection, connections.reader_url)
        grant_reading(connection, connections.reader_url)
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        role = every(connection, "SELECT rolname FROM pg_roles WHERE rolname LIKE '%reader'")[0]["rolname"]
        connection.execute(text(f'GRANT CONNECT ON DATABASE "{name}" TO {role}'))
    with Client(connections.database_url, connections.reader_url) as client:
        assert client.sql("SELECT current_user").rows == [(role,)]
        assert client.sql("SELECT count(*) FROM job_summary").rows == [(0,)]
        with pytest.raises(ConfigurationError, match="only reads"):
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
    assert stored["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 50, "max_tokens": 32768}
