"""Results pushed to a hub on this machine by the official library: private, and without what is right."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from pyarrow import parquet
from sqlalchemy import Engine

from pipeline import Client
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.results.reports import JobSummary
from tests.hub_server import Hub, Repo, running_hub
from tests.integration.rows import add_engine, add_job, add_problem_set, add_samples, add_segment, add_worker

pytestmark = pytest.mark.integration


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


@pytest.fixture
def job_id(db_engine: Engine) -> int:
    with transaction(db_engine) as connection:
        job = add_job(connection, add_problem_set(connection, 2), name="<img> | mine", state="completed", seconds=2)
        worker, engine = add_worker(connection, "small", model="S"), add_engine(connection, "S")
        few = {"tokens_small": 2, "discarded_small": 3, "num_segments": 1, "score": 1.0}
        for number, sample in enumerate(add_samples(connection, job, [{"problem": 0, **few}, {"problem": 1, **few}])):
            add_segment(
                connection, sample, 0, "small", "ok", discarded=" no", worker_id=worker, engine_id=engine,
                finish="eos" if number else "length",
            )  # fmt: skip
    return job


def test_a_job_is_pushed_privately_without_answers(hub: Hub, client: Client, job_id: int) -> None:
    url, count = client.push(job_id, "me/run")
    assert (url, count) == (f"{hub.url}/datasets/me/run", 2)
    repo = hub.repos["me/run"]
    assert repo.private
    assert sorted(repo.files) == ["README.md", "samples/train-00000.parquet", "segments/train-00000.parquet"]
    samples = parquet.read_table(io.BytesIO(repo.files["samples/train-00000.parquet"]))
    assert {"reference", "also_accepted", "grade_detail"}.isdisjoint(samples.column_names)
    assert samples.column("score").to_pylist() == [1.0, 1.0]
    assert not any(b"sums" in str(value).encode() for value in samples.column("metadata").to_pylist())
    segments = parquet.read_table(io.BytesIO(repo.files["segments/train-00000.parquet"]))
    assert segments.column("author").to_pylist() == ["small", "small"]
    [summary] = client.summary(job_id)
    assert isinstance(summary, JobSummary)
    written = segments.column("tokens").to_pylist() + segments.column("tokens_discarded").to_pylist()
    assert sum(written) == summary.written_small
    assert str(segments.schema.field("ended_at").type) == "timestamp[us, tz=UTC]"
    readme = repo.files["README.md"].decode()
    assert "<img>" not in readme.replace("\\<img\\>", "")
    assert "| written by small, tokens | 10 |" in readme


def test_answers_and_the_public_are_asked_for(hub: Hub, client: Client, job_id: int) -> None:
    client.push(job_id, "me/open", public=True, with_answers=True)
    repo = hub.repos["me/open"]
    assert not repo.private
    samples = parquet.read_table(io.BytesIO(repo.files["samples/train-00000.parquet"]))
    assert samples.column("reference").to_pylist() == ["0", "1"]
    assert '"sums"' in samples.column("metadata").to_pylist()[0]


def test_a_public_data_set_gets_nothing_that_was_not_meant_for_it(hub: Hub, client: Client, job_id: int) -> None:
    hub.repos["me/known"] = Repo(private=False)
    with pytest.raises(ConfigurationError, match="me/known is public: push it --public, or under another name"):
        client.push(job_id, "me/known")
    assert hub.repos["me/known"].files == {}


def test_answers_are_refused_to_a_login_that_may_not_read_them(hub: Hub, connections: Connections, job_id: int) -> None:
    with (
        Client(connections.submitter_url) as client,
        pytest.raises(ConfigurationError, match="may not read reference answers"),
    ):
        client.push(job_id, "me/run", with_answers=True)
    assert hub.asked == []


def test_a_judge_whose_prompts_tell_is_pushed_with_answers_only(
    hub: Hub, client: Client, job_id: int, db_engine: Engine
) -> None:
    with transaction(db_engine) as connection:
        connection.exec_driver_sql("UPDATE problem_sets SET tells_answers_of = id")
    with pytest.raises(ConfigurationError, match="a judge whose prompts show reference answers"):
        client.push(job_id, "me/run")
    assert hub.asked == []


def test_what_the_hub_refuses_is_one_line(
    hub: Hub, client: Client, job_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"a name with spaces|Repo id"):
        client.push(job_id, "a name with spaces")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match="the hub cannot be reached"):
        client.push(job_id, "me/run")
