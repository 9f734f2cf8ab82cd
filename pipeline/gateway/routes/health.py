"""Whether the process is there, and whether it can work."""

from __future__ import annotations

from fastapi import APIRouter

from pipeline.db.revision import require_current
from pipeline.errors import PipelineError
from pipeline.gateway.errors import ApiError, responses
from pipeline.gateway.objects import Health
from pipeline.gateway.state import TheGateway

router = APIRouter(tags=["health"])


@router.get("/health", responses={})
def health() -> Health:
    """The process answers."""
    return Health()


@router.get("/ready", responses=responses())
def ready(gateway: TheGateway) -> Health:
    """The database answers, and has the schema of this version."""
    try:
        require_current(gateway.db_engine)
    except PipelineError as error:
        told = "The database cannot be reached, or has not the schema of this version."
        raise ApiError(503, told, code="service_unavailable") from error
    return Health()
