"""Makes the application: routes, the gate before them, and errors in the one shape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response
from starlette.types import Scope

from pipeline.gateway import errors
from pipeline.gateway.browsers import is_page
from pipeline.gateway.errors import ApiError
from pipeline.gateway.gate import Gate
from pipeline.gateway.housekeeping import Housekeeper
from pipeline.gateway.pages import changes, looks
from pipeline.gateway.pages.rendering import refusal
from pipeline.gateway.preparing import Limits
from pipeline.gateway.routes import batches, chat, files, health, metrics, models
from pipeline.gateway.state import Gateway

ROUTERS = (health.router, metrics.router, models.router, files.router, batches.router, chat.router)
PAGES = (looks.router, changes.router)


def make_app(gateway: Gateway, *, is_local: bool) -> FastAPI:
    """The application of one process. is_local: only programs of this machine connect.

    What works beside the requests begins with the application, and
    ends with it.
    """
    settings = gateway.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        limits = Limits(max_lines=settings.max_lines, max_line_bytes=settings.max_body_bytes)
        keeper = Housekeeper(gateway.db_engine, gateway.client, limits, gateway.woken)
        keeper.start()
        gateway.desk.start()
        yield
        gateway.live.stop()
        gateway.desk.stop()
        keeper.stop()
        gateway.close()

    app = FastAPI(
        title="specthink", version=metadata.version("specthink"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.gateway = gateway
    for router in ROUTERS:
        app.include_router(router)
    for router in PAGES:
        app.include_router(router, include_in_schema=False)
    errors.install(app, _respond)
    app.add_middleware(
        Gate,
        keys=gateway.keys,
        measures=gateway.measures,
        respond=_respond,
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
        is_local=is_local,
    )
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


def _respond(scope: Scope, error: ApiError) -> Response:
    """What went wrong, for a person or for a program."""
    if is_page(scope["path"]):
        return refusal(scope["path"], error, is_look=scope["method"] in ("GET", "HEAD"))
    return error.response()


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the answer 422: what is wrong in a request is a 400 here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        components = schema["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
