"""Tables of the log: changes of state, and the applied SQL of record."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Index,
    String,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Id, Instant


class EventRow(Base):
    """Append-only: one row per change of a sample's or a job's state, written by a trigger."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id", "job_id", "sample_id"),)

    id: Mapped[Id] = mapped_column(comment="given by the database")
    job_id: Mapped[int] = mapped_column(BigInteger, comment="the job")
    sample_id: Mapped[int | None] = mapped_column(BigInteger, comment="null: the job itself changed")
    from_state: Mapped[str] = mapped_column(comment="before")
    to_state: Mapped[str] = mapped_column(comment="after")
    epoch: Mapped[int | None] = mapped_column(comment="of the sample, after the change")
    worker_id: Mapped[int | None] = mapped_column(
        BigInteger, comment="who holds it after the change, or held it before"
    )
    at: Mapped[Instant] = mapped_column(
        server_default=func.clock_timestamp(), comment="when it happened; ids may be in another order"
    )


class SchemaObjectsRow(Base):
    """The views, functions and triggers that the database was given (pipeline.db.schema_objects); one row."""

    __tablename__ = "schema_objects"

    sha256: Mapped[str] = mapped_column(primary_key=True, comment="of the files that create them")
    names: Mapped[list[str]] = mapped_column(ARRAY(String), comment="in the order of creation, as DROP names them")
    applied_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when they were created")
