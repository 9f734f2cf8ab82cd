"""Whether a job is one that whoever asks may see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from pipeline.batches import Caller
from pipeline.db.gateway import pages
from pipeline.gateway.errors import missing
from pipeline.gateway.state import Gateway

MOST = 2**63 - 1
"""No job or sample has a higher number."""
JobId = Annotated[int, Path(ge=1, le=MOST)]


def require_job(gateway: Gateway, caller: Caller, *job_ids: int) -> None:
    """Raises ApiError for a job that there is not, or that is somebody else's."""
    with gateway.transaction() as connection:
        seen = pages.seen_jobs(connection, caller, job_ids)
    for job_id in job_ids:
        if job_id not in seen:
            raise missing("job", str(job_id))
