"""The API against its own OpenAPI document: what schemathesis makes of it, right and wrong, is answered as it says."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import text

from pipeline.db.session import open_database
from pipeline.embedded import Connections
from tests.conftest import TEMPLATE, copy_database, with_database
from tests.integration.gateway_world import serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CHECKS: list[Any] = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip
"""Not that every wrong request is refused: a request without its key is wrong by the document, and while there are no
keys it is right."""


@pytest.fixture(scope="module")
def document(servers: Connections) -> Iterator[Any]:
    name = f"schema_{uuid.uuid4().hex[:8]}"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        copy_database(connection, TEMPLATE, name)
    urls = {role: with_database(url, name) for role, url in servers.role_urls.items()}
    own = Connections(with_database(servers.database_url, name), servers.redis_url, None, urls)
    db_engine = open_database(own.database_url)
    with serving(own, db_engine) as served:
        yield schemathesis.openapi.from_url(f"{served.url.removesuffix('/v1')}/openapi.json")
    db_engine.dispose()
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_what_the_document_says(document: Any, mode: GenerationMode) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        _check(operation.as_strategy(generation_mode=mode))


def _check(cases: Any) -> None:
    @settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def check(case: Any) -> None:
        assume(not _waits(case))
        case.call_and_validate(checks=CHECKS, timeout=30)

    check()


def _waits(case: Any) -> bool:
    """A chat that is to be answered although nobody serves its model."""
    body = case.body if isinstance(case.body, dict) else {}
    ours = body.get("specthink")
    return isinstance(ours, dict) and ours.get("require_workers") is False
