"""Metrics for Prometheus: of all jobs and workers, as `specthink metrics` has them, and of this gateway's requests."""

from __future__ import annotations

from fastapi import APIRouter, Response

from pipeline.gateway.state import TheGateway
from pipeline.metrics import CONTENT_TYPE, render

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def metrics(gateway: TheGateway) -> Response:
    """Answered from what was last read of the database, however often it is asked."""
    return Response(render(gateway.registry), headers={"content-type": CONTENT_TYPE})
