"""A grading worker on what it knows of a problem: the choices of a multiple choice, the tests of a function."""

from __future__ import annotations

import os

import pytest
from sqlalchemy import Engine, text

from pipeline.db.session import transaction
from pipeline.grading.code import CodeReference
from pipeline.grading.code.sandbox import find_fault
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker
from workers.broker.messages import SamplesMessage
from workers.grading.grader import SampleGrader

_GRADER = "UPDATE jobs SET config = jsonb_set(config, '{grader}', to_jsonb(CAST(:grader AS text)))"
CODE = CodeReference(tests="assert half(5) == 2", entry_point="half").model_dump_json()


def graded(db_engine: Engine, output: str, *, grader: str, reference: str, shown: str = "{}") -> tuple[object, ...]:
    """What is stored of a text: status, score, predicted answer, detail."""
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection))
        connection.execute(text(_GRADER), {"grader": grader})
        connection.execute(text("UPDATE reference_answers SET answer = :answer"), {"answer": reference})
        connection.execute(text("UPDATE problems SET shown = CAST(:shown AS jsonb)"), {"shown": shown})
        (sample,) = add_samples(connection, job, [{"state": "finished", "finish_reason": "eos"}])
        worker, engine = add_worker(connection, "small", model="org/small"), add_engine(connection, "org/small")
        add_segment(connection, sample, 0, "small", output, worker_id=worker, engine_id=engine)
        epoch = connection.execute(text("SELECT epoch FROM samples")).scalar_one()
    message = SamplesMessage(job_id=job, samples=[(sample, epoch)])
    assert SampleGrader(db_engine, time_limit_s=20).grade(message) == "1 of 1 graded"
    with transaction(db_engine) as connection:
        return tuple(
            connection.execute(
                text(
                    "SELECT g.status, s.score, s.predicted_answer, g.detail "
                    "FROM grades g JOIN samples s ON s.id = g.sample_id"
                )
            ).one()
        )


def test_choice_is_graded_by_its_text(db_engine: Engine) -> None:
    stored = graded(
        db_engine, r"It is \boxed{dark blue}", grader="choice", reference="B", shown='{"choices": ["red", "dark blue"]}'
    )
    assert stored == ("done", 1.0, "B", None)


@pytest.mark.parametrize(
    ("code", "score", "detail"),
    [
        ("def half(x):\n    return x // 2\n", 1.0, None),
        ("def half(x):\n    return x / 2\n", 0.0, "the tests raised AssertionError"),
        ("import os\nos._exit(0)\n", 0.0, "the process ended before the tests were through"),
    ],
)
def test_code_is_graded_by_its_tests(db_engine: Engine, code: str, score: float, detail: str | None) -> None:
    if (fault := find_fault()) is not None:
        assert "CI" not in os.environ, fault
        pytest.skip(fault)
    stored = graded(db_engine, f"```python\n{code}```", grader="code", reference=CODE)
    assert stored == ("done", score, code, detail)
