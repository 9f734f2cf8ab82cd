"""What live workers serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from pipeline.db.report_queries import live_workers
from pipeline.gateway.errors import ApiError
from pipeline.gateway.names import pair_options
from pipeline.jobs.config import ModelSpec
from pipeline.samples import ModelRole

ROLES = tuple(role.value for role in ModelRole)
Served = Mapping[tuple[str, str], int | None]
"""Models by role, each with the shortest context of those workers that serve it; None: it is not known."""


def served_models(connection: Connection) -> Served:
    found: dict[tuple[str, str], int | None] = {}
    for worker in live_workers(connection):
        if worker.kind in ROLES and worker.model is not None:
            key = (str(worker.kind), worker.model)
            lengths = [length for length in (found.get(key), worker.max_model_len) if length is not None]
            found[key] = min(lengths, default=None)
    return found


def require_served(connection: Connection, model: str, saved: Mapping[str, Any] | None) -> None:
    """Raises ApiError for a pair of which some model is served by nobody."""
    options, served = pair_options(model, saved), served_models(connection)
    for role in ROLES:
        spec = options.get(role)
        if isinstance(spec, ModelSpec) and (role, spec.name) not in served:
            told = f"No live worker serves '{spec.name}' as the {role} model; `specthink up --{role} MODEL` starts one."
            raise ApiError(404, told, code="model_not_served", param="model")
