"""What a leader of upkeep ends because nothing came of it for too long, told here by the times that are stored."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Connection, text

from pipeline.db.grades import running_grades, time_out_grades
from pipeline.db.upkeep_statements import Settled, current_leases, settle_workers


def settle_lapsed(connection: Connection, *, awake_for: dt.timedelta = dt.timedelta(days=1)) -> Settled | None:
    """Settle those whose leases have run out, as upkeep does that has watched for so long."""
    lapsed = text("SELECT id FROM workers WHERE expires_at < clock_timestamp()")
    past = set(connection.execute(lapsed).scalars())
    silent = [lease for lease in current_leases(connection) if lease.worker_id in past and lease.ttl < awake_for]
    return settle_workers(connection, silent=silent)


def time_out_late(connection: Connection, *, age: dt.timedelta, tries: int = 1) -> list[int]:
    """Time out the gradings that began longer ago than age, as upkeep does that has watched for so long."""
    began = text("SELECT sample_id FROM grades WHERE started_at < clock_timestamp() - :age")
    past = set(connection.execute(began, {"age": age}).scalars())
    running = running_grades(connection, tries=tries)
    return time_out_grades(connection, late=[grade for grade in running if grade.sample_id in past])
