"""A grading worker on texts that were cut: what it stores, by the job's convention."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from pipeline.db.report_queries import get_sample, stream_results
from pipeline.db.session import transaction
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker
from workers.broker.messages import SamplesMessage
from workers.grading.grader import SampleGrader

_THINKS = "UPDATE jobs SET think_start = '<think>', think_end = '</think>', think_opened = true WHERE id = :job"
_CONVENTION = """
    UPDATE jobs SET config = jsonb_set(config, '{cut_samples}', to_jsonb(CAST(:cut AS text))) WHERE id = :job
"""
_CUT = "no answer: the text was cut before it stated an answer (context)"


@pytest.mark.parametrize(
    ("output", "finish_reason", "cut_samples", "score", "detail"),
    [
        ("so a0:1, a4", "length", "wrong", 0.0, "no answer: the text ended inside its think phase (length)"),
        ("so a0:1, a4", "length", "unscored", None, "no answer: the text ended inside its think phase (length)"),
        ("x</think>We get 2+2 = 4", "context", "wrong", 0.0, _CUT),
        ("x</think>\\boxed{4} is", "length", "wrong", 1.0, None),
        ("x</think>We get 2 + 2 = 4", "eos", "wrong", 1.0, "the answer is not boxed"),
    ],
)
def test_cut_text_is_stored_with_the_reason(
    db_engine: Engine, output: str, finish_reason: str, cut_samples: str, score: float | None, detail: str | None
) -> None:
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection))
        connection.execute(text(_THINKS), {"job": job})
        connection.execute(text(_CONVENTION), {"job": job, "cut": cut_samples})
        connection.execute(text("UPDATE reference_answers SET answer = '4'"))
        (sample,) = add_samples(connection, job, [{"state": "finished", "finish_reason": finish_reason}])
        worker, engine = add_worker(connection, "small", model="org/small"), add_engine(connection, "org/small")
        add_segment(connection, sample, 0, "small", output, worker_id=worker, engine_id=engine)
        epoch = connection.execute(text("SELECT epoch FROM samples")).scalar_one()
    message = SamplesMessage(job_id=job, samples=[(sample, epoch)])
    assert SampleGrader(db_engine, time_limit_s=20).grade(message) == "1 of 1 graded"
    with transaction(db_engine) as connection:
        stored = connection.execute(text("SELECT status, score, detail FROM grades")).one()
        shown = connection.execute(text("SELECT score, grade_detail FROM results")).one()
        report = get_sample(connection, sample)
        (result,) = stream_results(connection, job, only_final=True)
    assert tuple(stored) == ("done", score, detail)
    assert tuple(shown) == (score, detail)
    assert report.result.grade_detail == result.grade_detail == detail
