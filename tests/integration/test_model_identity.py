"""Two models of one name: told apart by their weights, and never served side by side."""

from __future__ import annotations

import datetime as dt
import itertools
import shutil
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from pipeline.db.claims import claim_samples, find_fitting_queue, find_misfit
from pipeline.db.job_configs import fix_identity
from pipeline.db.session import transaction
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.db.upkeep_statements import admit_samples
from pipeline.db.worker_leases import (
    Registration,
    WorkerCounters,
    end_worker,
    put_engine,
    refuse_second_identity,
    register_worker,
)
from pipeline.errors import ConfigurationError
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.jobs.pair import load_chat_model, model_spec
from pipeline.policies import parse_policy
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import ModelRole
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


def serve(
    connection: Connection, *, weights: str | None, fingerprint: str = "f", model: str = "m", queue: str = "q"
) -> int:
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
        queue=queue,
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


KNOWN: list[str | None] = [None, "a", "b"]


def test_database_and_worker_tell_the_same_models_apart(db_engine: Engine) -> None:
    query = text(
        "SELECT why_not_served(CAST(:wanted AS jsonb), CAST(:fixed AS jsonb), :fingerprint, :weights, :revision)"
    )
    with db_engine.connect() as connection:
        for wanted, own in itertools.product(itertools.product(KNOWN, repeat=3), repeat=2):
            spec = ModelSpec(name="m", **dict(zip(("fingerprint", "weights", "revision"), wanted, strict=True)))
            values = dict(zip(("fingerprint", "weights", "revision"), own, strict=True))
            said = spec.why_not(**values)
            asked = connection.execute(query, values | {"wanted": spec.model_dump_json(), "fixed": None}).scalar()
            assert asked == said
            fixed = connection.execute(query, values | {"wanted": None, "fixed": spec.model_dump_json()}).scalar()
            assert fixed == spec.model_copy(update={"revision": None}).why_not(**values), "the revision is for people"


def submit(connection: Connection, *, weights: str | None, num_samples: int = 1) -> int:
    problems = (Problem(external_id="1", prompt="1+1?", answer="2"),)
    problem_set = ProblemSet(name="sums", content_sha256=content_sha256(problems), problems=problems)
    config = JobConfig(
        small=ModelSpec(name="m", weights=weights), policy=parse_policy("small-only"), num_samples=num_samples
    )
    return insert_job(
        connection, name="job", policy="small-only", problem_set_id=put_problem_set(connection, problem_set),
        num_problems=1, config=config, first_role=ModelRole.SMALL, versions={},
    )  # fmt: skip


def test_a_worker_never_has_the_samples_of_another_model(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        wrong, right = serve(connection, weights="x"), serve(connection, weights="w", queue="q.right")
        submit(connection, weights="w")
        [sample] = admit_samples(connection, ahead=1.0)
        epochs = {sample.sample_id: sample.epoch}
        assert claim_samples(connection, worker_id=wrong, role=ModelRole.SMALL, epochs=epochs) == []
        reason = find_misfit(connection, worker_id=wrong, job_id=sample.job_id)
        assert reason == "this worker's model has other weights than the job's"
        assert find_fitting_queue(connection, worker_id=wrong, role=ModelRole.SMALL, job_id=sample.job_id) == "q.right"
        assert find_misfit(connection, worker_id=right, job_id=sample.job_id) is None
        assert len(claim_samples(connection, worker_id=right, role=ModelRole.SMALL, epochs=epochs)) == 1


def test_the_first_claim_of_two_models_settles_the_job(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        first, second = serve(connection, weights="w"), serve(connection, weights="x")
        submit(connection, weights=None, num_samples=2)
        one, other = admit_samples(connection, ahead=2.0)
        assert claim_samples(connection, worker_id=first, role=ModelRole.SMALL, epochs={one.sample_id: one.epoch})
        fix_identity(connection, one.job_id, ModelRole.SMALL, ModelSpec(name="m", fingerprint="f", weights="w"))
        epochs = {other.sample_id: other.epoch}
        assert claim_samples(connection, worker_id=second, role=ModelRole.SMALL, epochs=epochs) == []
        assert len(claim_samples(connection, worker_id=first, role=ModelRole.SMALL, epochs=epochs)) == 1


def test_samples_that_wait_for_another_model_say_so_and_take_no_room(db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        worker = serve(connection, weights="x" * 64)
        stuck = submit(connection, weights="w" * 64, num_samples=3)
        job = submit(connection, weights=None)
        assert [sample.job_id for sample in admit_samples(connection, ahead=1.0)] == [job]
        register_worker(
            connection,
            Registration(
                kind=WorkerKind.UPKEEP, model=None, engine_id=None, host="there", pid=1, queue="q", max_in_flight=0,
                ttl=dt.timedelta(minutes=1),
            ),
        )  # fmt: skip
        query = text("SELECT waiting_for, live_small_workers FROM job_progress WHERE job_id = :job")
        assert tuple(connection.execute(query, {"job": stuck}).one()) == (
            "no live small worker serves m as the job has it (weights wwwwwwwwwwww); "
            f"worker {worker} on there: this worker's model has other weights than the job's",
            0,
        )
