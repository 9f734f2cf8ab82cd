"""The declarative base of all tables: names of constraints, and types for choices and instants."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import BigInteger, DateTime, Double, Enum, Identity, MetaData
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER, JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Id = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
Instant = Annotated[dt.datetime, mapped_column(DateTime(timezone=True))]
Ids = Annotated[list[int], mapped_column(ARRAY(INTEGER))]
Rows = Annotated[list[dict[str, Any]], mapped_column(JSONB)]
Floats = Annotated[list[float], mapped_column(ARRAY(Double))]


class Base(DeclarativeBase):
    """Declarative base; rows never leave pipeline.db."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {dict[str, Any]: JSONB}  # noqa: RUF012  (SQLAlchemy's own protocol)


def choice(enum: type[StrEnum], name: str) -> Enum:
    """A text column that takes the values of a StrEnum only; name: of its CHECK constraint."""
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=24,
        values_callable=lambda members: [member.value for member in members],
    )
