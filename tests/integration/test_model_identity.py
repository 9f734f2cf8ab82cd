"""Two models of one name: told apart by their weights, and never served side by side."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db.session import transaction
from pipeline.db.worker_leases import (
    Registration,
    WorkerCounters,
    end_worker,
    put_engine,
    refuse_second_identity,
    register_worker,
)
from pipeline.errors import ConfigurationError
from pipeline.jobs.pair import load_chat_model, model_spec
from pipeline.workforce import WorkerKind

SMALL = Path(__file__).parents[2] / "examples" / "models" / "demo-small"


def other_run(folder: Path) -> Path:
    """The demo's small model with one number of its weights changed."""
    shutil.copytree(SMALL, folder)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    return folder


def test_a_job_tells_two_runs_of_one_name_apart(tmp_path: Path) -> None:
    one = shutil.copytree(SMALL, tmp_path / "a" / "checkpoint-500")
    other = other_run(tmp_path / "b" / "checkpoint-500")
    specs = [model_spec(folder, load_chat_model(folder)) for folder in (one, other)]
    assert specs[0].name == specs[1].name == "checkpoint-500"
    assert specs[0].fingerprint == specs[1].fingerprint
    assert specs[0].weights != specs[1].weights


def serve(connection: Connection, *, weights: str | None, fingerprint: str = "f", model: str = "m") -> int:
    engine_id = put_engine(
        connection,
        kind="scripted",
        version="1",
        model=model,
        model_fingerprint=fingerprint,
        vocabulary_sha256="v",
        settings={},
        weights_sha256=weights,
    )
    registration = Registration(
        kind=WorkerKind.SMALL,
        model=model,
        engine_id=engine_id,
        host="there",
        pid=1,
        queue="q",
        max_in_flight=1,
        ttl=dt.timedelta(minutes=1),
    )
    return register_worker(connection, registration)


@pytest.mark.parametrize(
    ("fingerprint", "weights", "refused"),
    [("f", "w", False), ("f", None, False), ("f", "x", True), ("g", "w", True), ("g", None, True)],
)
def test_a_second_identity_of_a_name_is_refused(
    db_engine: Engine, fingerprint: str, weights: str | None, refused: bool
) -> None:
    with transaction(db_engine) as connection:
        worker = serve(connection, weights="w")

        def ask(model: str = "m") -> None:
            refuse_second_identity(connection, model=model, model_fingerprint=fingerprint, weights_sha256=weights)

        if refused:
            with pytest.raises(ConfigurationError, match=f"worker {worker} on there serves another model as 'm'"):
                ask()
        else:
            ask()
        ask("n")
        end_worker(connection, worker, WorkerCounters())
        ask()


def test_a_lapsed_lease_serves_nothing(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        serve(connection, weights="w")
        connection.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s'"))
        refuse_second_identity(connection, model="m", model_fingerprint="f", weights_sha256="x")


def test_engines_of_other_weights_are_other_engines(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        serve(connection, weights="w")
        serve(connection, weights="w")
        serve(connection, weights="x")
        weights = connection.execute(text("SELECT weights_sha256 FROM engines ORDER BY id")).scalars().all()
        assert weights == ["w", "x"]
