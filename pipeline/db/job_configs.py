"""What a worker reads of a job: its frozen configuration, and how its texts mark the think phase."""

from __future__ import annotations

from sqlalchemy import Connection, text

from pipeline.chat.translation import ThinkPhase
from pipeline.db.readable import read_config, reading
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.samples import ModelRole


def get_job_config(connection: Connection, job_id: int) -> JobConfig:
    """The frozen configuration of a job. Raises DamagedRow."""
    config = connection.execute(text("SELECT config FROM jobs WHERE id = :job"), {"job": job_id}).scalar_one()
    return read_config(job_id, config)


_FIX_IDENTITY = {
    role: text(f"""
        UPDATE jobs SET {role}_identity = CAST(:identity AS jsonb) WHERE id = :job AND {role}_identity IS NULL
    """)
    for role in ModelRole
}


def fix_identity(connection: Connection, job_id: int, role: ModelRole, model: ModelSpec) -> ModelSpec:
    """Which model writes a role of a job: the one that did so first, else from now on this one.

    Its weights and tokenizer say so; the revision is stored beside them for people.
    """
    identity = model.model_dump_json(exclude={"name"})
    connection.execute(_FIX_IDENTITY[role], {"job": job_id, "identity": identity})
    found = connection.execute(text(f"SELECT {role}_identity FROM jobs WHERE id = :job"), {"job": job_id}).scalar_one()
    with reading(f"job {job_id}: which {role} model writes it"):
        return ModelSpec(name=model.name, fingerprint=found["fingerprint"], weights=found["weights"])


_FIX_THINK_PHASE = text("""
    UPDATE jobs SET think_start = :start, think_end = :end, think_opened = :opened
    WHERE id = :job AND think_end IS NULL
""")


def fix_think_phase(connection: Connection, job_id: int, phase: ThinkPhase) -> ThinkPhase:
    """How a job's texts mark the think phase: as was settled before, else from now on as phase says."""
    values = {"job": job_id, "start": phase.start, "end": phase.end, "opened": phase.opened}
    connection.execute(_FIX_THINK_PHASE, values)
    return get_think_phase(connection, job_id)


def get_think_phase(connection: Connection, job_id: int) -> ThinkPhase:
    """How a job's texts mark the think phase, as its first writer settled it. Raises DamagedRow."""
    found = text("SELECT think_start, think_end, think_opened FROM jobs WHERE id = :job")
    row = connection.execute(found, {"job": job_id}).one()
    with reading(f"job {job_id}: how its texts mark the think phase"):
        if None in row:
            raise ValueError("a part of it is missing")
    return ThinkPhase(start=row.think_start, end=row.think_end, opened=row.think_opened)
