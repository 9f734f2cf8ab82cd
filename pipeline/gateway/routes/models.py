"""The names that requests may give as their model."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from pipeline.db.gateway import keys
from pipeline.gateway.errors import responses
from pipeline.gateway.names import pair_options, served_names
from pipeline.gateway.objects import ModelList, ModelObject
from pipeline.gateway.served import Served, served_models
from pipeline.gateway.state import TheCaller, TheGateway
from pipeline.jobs.config import ModelSpec

router = APIRouter(prefix="/v1/models", tags=["models"])

_STARTED_AT = int(time.time())


@router.get("", responses=responses())
def list_models(gateway: TheGateway, _: TheCaller) -> ModelList:
    """Saved names, and those of what live workers serve."""
    with gateway.transaction() as connection:
        saved, lengths = keys.list_aliases(connection), served_models(connection)
    served = served_names(
        (model for kind, model in lengths if kind == "small"), (model for kind, model in lengths if kind == "large")
    )
    made = [_object(name, options, lengths) for name, options in saved.items()]
    return ModelList(data=[*made, *(_object(name, None, lengths) for name in served if name not in saved)])


@router.get("/{model:path}", responses=responses())
def get_model(model: str, gateway: TheGateway, _: TheCaller) -> ModelObject:
    """A name that can be asked, whether or not its models are served now."""
    with gateway.transaction() as connection:
        saved, lengths = keys.find_alias(connection, model), served_models(connection)
    return _object(model, saved, lengths)


def _object(name: str, saved: dict[str, Any] | None, lengths: Served) -> ModelObject:
    options = pair_options(name, saved)
    models = {role: options[role] for role in ("small", "large") if isinstance(options.get(role), ModelSpec)}
    known = [lengths.get((role, model.name)) for role, model in models.items()]
    return ModelObject(
        id=name,
        created=_STARTED_AT,
        root=models["small"].name if "small" in models else models["large"].name,
        max_model_len=min((length for length in known if length is not None), default=None),
    )
