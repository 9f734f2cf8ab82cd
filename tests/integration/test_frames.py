"""Frames of a real database, and how a job shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from pipeline import Client
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import QueryRefused
from pipeline.results.reports import plain
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker

pytestmark = pytest.mark.integration


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


@pytest.fixture
def job_id(db_engine: Engine) -> int:
    """Three samples: right, wrong, failed."""
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection), name="<b>mine</b>", seconds=4)
        worker, engine = add_worker(connection, "small", model="S"), add_engine(connection, "S")
        samples = add_samples(
            connection,
            job,
            [
                {"problem": 0, "score": 1.0, "predicted_answer": "0", "tokens_small": 2, "num_segments": 1},
                {"problem": 1, "score": 0.0, "predicted_answer": "7", "tokens_small": 2, "num_segments": 1},
                {"problem": 2, "state": "failed"},
            ],
        )
        for sample in samples[:2]:
            add_segment(connection, sample, 0, "small", "ok", worker_id=worker, engine_id=engine, finish="eos")
    return job


def test_a_query_becomes_a_frame_with_postgres_types(client: Client, job_id: int) -> None:
    frame = client.frame(f"SELECT job_id, accuracy, submitted_at FROM job_summary WHERE job_id = {job_id}").to_pandas()
    assert frame["accuracy"].tolist() == [0.5]
    assert [str(kind) for kind in frame.dtypes] == ["int64", "float64", "datetime64[us, UTC]"]
    empty = client.frame("SELECT job_id, accuracy, submitted_at FROM job_summary WHERE false").to_pandas()
    assert empty.dtypes.tolist() == frame.dtypes.tolist()
    summed = client.frame("SELECT sum(id) AS n, array_agg(id) AS ids, jsonb_agg(id) AS listed FROM jobs").to_arrow()
    assert summed.to_pylist() == [{"n": float(job_id), "ids": [job_id], "listed": f"[{job_id}]"}]
    with pytest.raises(QueryRefused, match="max_rows"):
        client.frame("SELECT generate_series(1, 9)", max_rows=5)


def test_samples_are_a_frame_of_what_results_are(client: Client, job_id: int) -> None:
    frame = client.samples(job_id).to_pandas()
    results = [plain(result) for result in client.results(job_id)]
    assert list(frame.columns) == list(results[0])
    for name in ("sample_id", "output", "problem", "state", "reference"):
        assert frame[name].tolist() == [row[name] for row in results], name
    assert frame["score"].mean() == 0.5
    assert len(client.samples(job_id, only_final=True)) == 3


def test_a_job_shows_itself_as_a_bar_and_a_table(client: Client, job_id: int) -> None:
    job = client.job(job_id)
    shown = job._repr_html_()  # type: ignore[attr-defined]  # only Jupyter calls it
    assert "<progress value='3' max='3'" in shown
    assert "50.0%" in shown
    assert "speculative-thinking:improved" in shown
    assert "&lt;b&gt;mine" in shown
    assert "<b>mine" not in shown
    assert job == client.jobs()[0]
    assert "_read" not in plain(job)
    client.close()
    assert "job" in job._repr_html_()  # type: ignore[attr-defined]
