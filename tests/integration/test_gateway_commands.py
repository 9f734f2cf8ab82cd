"""The commands of the gateway, from outside, and a gateway process that is killed in mid-batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import Engine, text

from pipeline.db.session import transaction
from pipeline.embedded import Connections
from tests.integration.gateway_world import ended, line, read_lines, scripted, upload, user, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def environment(connections: Connections) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    return kept | {
        "SPECTHINK_DATABASE_URL": connections.database_url.get_secret_value(),
        "SPECTHINK_REDIS_URL": connections.redis_url.get_secret_value(),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def gateway(environment: dict[str, str], *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway process that needs no Redis, and its address."""
    without = {name: value for name, value in environment.items() if name != "SPECTHINK_REDIS_URL"}
    command = [sys.executable, "-m", "pipeline.cli", "gateway", "--port", "0", *options]
    with subprocess.Popen(command, env=without, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def test_key_is_printed_once_and_opens_the_gateway(environment: dict[str, str], db_engine: Engine) -> None:
    made = run(environment, "key", "add", "ann", "--role", "read", "--requests-per-minute", "60")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    listed = run(environment, "key", "list")
    assert "ann" in listed.stdout
    assert key not in listed.stdout
    with transaction(db_engine) as connection:
        assert key not in str(connection.execute(text("SELECT json_agg(k) FROM api_keys k")).scalar())
    again = run(environment, "key", "add", "ann")
    assert (again.returncode, "a valid key is named 'ann'" in again.stderr) == (2, True)
    with gateway(environment) as (_, url):
        assert openai.OpenAI(base_url=url, api_key=key).models.list().data == []
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="another").models.list()
    assert run(environment, "key", "revoke", "ann").returncode == 0
    assert run(environment, "key", "revoke", "ann").returncode == 3


def test_saved_names_are_checked_listed_and_forgotten(environment: dict[str, str]) -> None:
    pair = ("--small", "s", "--large", "l")
    saved = run(environment, "alias", "save", "mine", *pair, "--set", "temperature=0.2", "--set", 'stop=["\\n\\n"]')
    assert saved.returncode == 0, saved.stderr
    assert "mine" in run(environment, "alias", "list").stdout
    assert '"temperature": 0.2' in run(environment, "alias", "list", "--json").stdout
    for wrong in (("--set", "grader=math"), ("--set", "temperature=9"), ("--policy", "none-such")):
        refused = run(environment, "alias", "save", "other", *pair, *wrong)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert run(environment, "alias", "rm", "mine").returncode == 0
    assert run(environment, "alias", "rm", "mine").returncode == 3


def test_gateway_beyond_loopback_lets_nobody_in_before_there_is_a_key(environment: dict[str, str]) -> None:
    """It starts, so that whoever supervises it sees it healthy, and says what is missing."""
    with gateway(environment, "--address", "0.0.0.0") as (process, url):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("pages at http://0.0.0.0:")
        assert "specthink key add NAME" in process.stdout.readline()
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(url.removesuffix("v1") + "health").status_code == 200
        for headers in ({}, {"authorization": "Bearer guessed"}):
            refused = httpx.get(f"{url}/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "no key yet" in refused.json()["error"]["message"]
        key = run(environment, "key", "add", "ann").stdout.strip()
        assert httpx.get(f"{url}/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert "no key yet" not in httpx.get(f"{url}/models").text


def test_address_that_is_taken_is_named(environment: dict[str, str]) -> None:
    with gateway(environment) as (_, url):
        port = url.split(":")[-1].removesuffix("/v1")
        refused = run(environment, "gateway", "--port", port)
    assert refused.returncode == 2
    assert "SPECTHINK_GATEWAY__PORT" in refused.stderr


def test_gateway_that_is_told_to_stop_ends(environment: dict[str, str]) -> None:
    with gateway(environment) as (process, url):
        openai.OpenAI(base_url=url, api_key="any").models.list()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_batch_outlives_its_gateways(environment: dict[str, str], db_engine: Engine) -> None:
    """Killed before its lines are read, and again while it runs: each line is answered once."""
    asked: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with scripted(db_engine, [user("What is 1+1?")], [user("Twice?")]) as pair:
        with gateway(environment) as (process, url):
            client = openai.OpenAI(base_url=url, api_key="any")
            asked["input_file_id"] = upload(client, [line("a", "What is 1+1?"), line("b", "Twice?", n=2)])
            with transaction(db_engine) as connection:
                # Whoever would read its lines waits for us.
                connection.execute(text("LOCK TABLE problem_sets IN ACCESS EXCLUSIVE MODE"))
                batch = client.batches.create(**asked)
                process.kill()
        with gateway(environment) as (process, url):
            client = openai.OpenAI(base_url=url, api_key="any")
            assert client.batches.create(**asked, extra_headers={"x-stainless-retry-count": "1"}).id == batch.id
            wait_for(lambda: client.batches.retrieve(batch.id).status == "in_progress")
            process.kill()
        pair.work()
        with gateway(environment) as (_, url):
            client = openai.OpenAI(base_url=url, api_key="any")
            lines = read_lines(client, ended(client, batch.id).output_file_id)
    assert sorted(each["custom_id"] for each in lines) == ["a", "b"]
    with transaction(db_engine) as connection:
        counts = "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM samples), (SELECT count(*) FROM batches)"
        assert tuple(connection.execute(text(counts)).one()) == (2, 3, 1)
