"""What a gateway tells Prometheus: the fleet with the rights of its own login, and its own requests."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.metrics import CONTENT_TYPE
from tests.integration.gateway_world import serving
from tests.integration.rows import add_job, add_problem_set

pytestmark = pytest.mark.integration


def test_gateway_tells_of_the_fleet_and_of_its_requests_without_a_key(
    connections: Connections, db_engine: Engine
) -> None:
    with transaction(db_engine) as connection:
        add_job(connection, add_problem_set(connection))
    with serving(connections, db_engine) as served:
        served.add_key("ann")
        root = served.url.removesuffix("/v1")
        assert httpx.get(f"{served.url}/models").status_code == 401
        first, second = (httpx.get(f"{root}/metrics") for _ in range(2))
    assert (first.status_code, first.headers["content-type"]) == (200, CONTENT_TYPE)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(first.text)
        for sample in family.samples
    }
    assert found["specthink_database_up",] == 1
    assert found["specthink_jobs", "running"] == 1
    assert found["specthink_gateway_requests_total", "models", "4xx"] == 1
    read_at = [line for line in first.text.splitlines() if line.startswith("specthink_refreshed")]
    assert read_at
    assert all(line in second.text for line in read_at), "the database is not asked at each scrape"
