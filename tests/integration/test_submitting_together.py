"""Jobs that are submitted together: stored are the rows that each of them has alone, after the same checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from pipeline import Client, Problem, ProblemSet
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import BadProblem, ConfigurationError, NotFound, PipelineError, ProblemSetError
from pipeline.jobs.submission import Submission
from pipeline.problems import content_sha256
from pipeline.results.jobs import Job
from tests.integration.rows import every

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL, LARGE = EXAMPLES / "models" / "demo-small", EXAMPLES / "models" / "demo-large"
PROBLEMS = EXAMPLES / "problems.jsonl"
CHOICES = {"choices": ["4", "5", "6"]}

_JOBS = """
    SELECT to_jsonb(j) - '{id,problem_set_id,submitted_at}'::text[] AS job,
           to_jsonb(p) - '{id,created_at}'::text[] AS problem_set
    FROM jobs j JOIN problem_sets p ON p.id = j.problem_set_id ORDER BY j.id
"""
_PROBLEMS = """
    SELECT s.content_sha256, to_jsonb(p) - '{id,problem_set_id}'::text[] AS problem,
           to_jsonb(r) - 'problem_id' AS answer, to_jsonb(h) - 'problem_id' AS hidden
    FROM problems p JOIN problem_sets s ON s.id = p.problem_set_id
    LEFT JOIN reference_answers r ON r.problem_id = p.id LEFT JOIN hidden_columns h ON h.problem_id = p.id
    ORDER BY s.content_sha256, p.position
"""
_SAMPLES = """
    SELECT to_jsonb(s) - '{job_id,problem_id}'::text[] AS sample, p.external_id, p.position
    FROM samples s JOIN problems p ON p.id = s.problem_id ORDER BY s.id
"""
_ROLLUPS = """
    SELECT to_jsonb(r) - '{job_id,first_problem,last_problem}'::text[] AS rollup, p.position AS first_position
    FROM rollups r LEFT JOIN problems p ON p.id = r.first_problem ORDER BY r.job_id, r.first_problem
"""


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


def made_set(*prompts: str, **metadata: Any) -> ProblemSet:
    problems = tuple(
        Problem(external_id=f"p{i}", prompt=prompt, answer="A" if metadata else str(i), metadata=dict(metadata))
        for i, prompt in enumerate(prompts)
    )
    return ProblemSet(
        name=f"{len(prompts)} of {prompts[0]}", content_sha256=content_sha256(problems), problems=problems
    )


def submissions(folder: Path, stored: int) -> list[Submission]:
    """Jobs that differ in all that a submission reads, checks and stores; some share pairs, problems or both."""
    columns = folder / "columns.jsonl"
    rows = [{"problem": f"{n}+1?", "answer": n + 1, "topic": "sums", "proof": f"by {n}"} for n in range(4)]
    columns.write_text("\n".join(map(json.dumps, rows)))
    (folder / "topics.txt").write_text("On {{topic}}: {{problem}}")
    pair: dict[str, Any] = {"small": SMALL, "large": LARGE}
    given: list[dict[str, Any]] = [
        {"problems": made_set("1?", "2?"), **pair},
        {"problems": made_set("3?"), **pair, "name": "mine", "max_tokens": 100, "temperature": 0.0},
        {"problems": made_set("1?", "2?"), **pair, "num_samples": 60},
        {"problems": made_set("1?", "2?"), **pair, "small_asking": {"system": "Be brief."}, "stop": ["END"]},
        {"problems": made_set("4?"), **pair, "think_tags": ["<think>", "</think>"], "large_sampling": {"stop": ["X"]}},
        {"problems": made_set("5?"), **pair, "policy": "random", "policy_values": {"rate": 0.3, "tokens": 20}},
        {"problems": made_set("5?"), **pair, "policy": "glimpse", "exit": {"name": "cut", "thinking_tokens": 50}},
        {"problems": made_set("6?"), "small": SMALL, "policy": "small-only", "guard": {}},
        {"problems": made_set("6?"), "large": "org/large-7b", "policy": "large-only", "large_revision": "v2"},
        {"problems": made_set("7?", **CHOICES), **pair},
        {"problems": made_set(*(f"{n} and one?" for n in range(120))), **pair},
        {"problems": PROBLEMS, **pair, "limit": 3, "few_shot": {"file": columns, "count": 2}},
        {"problems": PROBLEMS, **pair, "grader": "none"},
        {"problems": columns, **pair, "prompt_file": folder / "topics.txt"},
        {"problems": stored, **pair, "limit": 1},
    ]
    return [Submission.parse(seed=number, **each) for number, each in enumerate(given)]


def test_jobs_stored_together_have_the_rows_that_each_has_alone(
    client: Client, db_engine: Engine, tmp_path: Path
) -> None:
    def rows() -> list[list[dict[str, Any]]]:
        with transaction(db_engine) as connection:
            return [every(connection, query) for query in (_JOBS, _PROBLEMS, _SAMPLES, _ROLLUPS)]

    def begin() -> list[Submission]:
        with transaction(db_engine) as connection:
            connection.execute(text("TRUNCATE problem_sets, jobs RESTART IDENTITY CASCADE"))
        stored = client.submit(made_set("0?"), small=SMALL, policy="small-only", seed=0)
        return submissions(tmp_path, stored=stored.problem_set_id)

    alone = [client.submit(each) for each in begin()]
    rows_alone = rows()
    together = client.submit_all(begin())
    assert rows() == rows_alone
    assert [len(part) for part in rows_alone[:2]] == [16, 1 + 2 + 1 + 1 + 1 + 1 + 1 + 120 + 200 + 4]
    for jobs in (alone, together):
        assert len(jobs) == 15
    assert together == [client.job(job.id) for job in together]
    assert [described(job) for job in alone] == [described(job) for job in together]


def described(job: Job) -> tuple[Any, ...]:
    return job.id, job.name, job.policy, job.config, job.problem_set, job.num_problems, job.versions


REFUSED: list[tuple[dict[str, Any], type[PipelineError]]] = [
    ({"problems": made_set("1?", "again and " * 3000)}, ProblemSetError),
    ({"problems": made_set("1?", choices="no list")}, BadProblem),
    ({"problems": made_set("1?"), "exit": {"name": "cut", "thinking_tokens": 5}, "think_tags": []}, ConfigurationError),
    ({"problems": made_set("1?"), "template_variables": {"no_such": 1}}, ConfigurationError),
    ({"problems": 4711}, NotFound),
]


def test_what_is_refused_alone_is_refused_among_others_with_the_same_words(client: Client) -> None:
    pair = {"small": SMALL, "large": LARGE}
    for wrong, error in REFUSED:
        bad = Submission.parse(**pair, **wrong)
        with pytest.raises(error) as alone:
            client.submit(bad)
        for place in (0, 2):
            jobs = [Submission.parse(problems=made_set(f"{n}?"), **pair) for n in range(2)]
            jobs.insert(place, bad)
            with pytest.raises(error) as among:
                client.submit_all(jobs)
            assert str(among.value) == str(alone.value)
    assert client.sql("SELECT count(*) FROM jobs").rows == [(0,)]
