"""Passwords in addresses, when something is wrong with the address, the server or the password: nobody prints them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, PipelineError, ServiceUnavailable
from pipeline.settings import load_settings

SECRET = "sEcReT7x"
PARTS = (SECRET, "sEcReT", "ReT7x")
BROKEN_DATABASES = [
    f"mysql://u:{SECRET}@h/db",
    f"postgresql://u:{SECRET}@h:port/db",
    f"postgresql://u:{SECRET[:6]}/{SECRET[3:]}@h/db",
    f"postgresql://u:{SECRET}@[h/db",
    SECRET,
]
BROKEN_BROKERS = [
    f"http://:{SECRET}@h",
    f"redis://:{SECRET}@h:port/0",
    f"redis://:{SECRET[:6]}/{SECRET[3:]}@h/0",
    SECRET,
]


def assert_hidden(shown: str) -> None:
    assert shown
    assert not [part for part in PARTS if part in shown]


@pytest.mark.parametrize(
    ("variable", "url"),
    [("SPECTHINK_DATABASE_URL", url) for url in BROKEN_DATABASES]
    + [("SPECTHINK_REDIS_URL", url) for url in BROKEN_BROKERS],
)
def test_address_that_is_none_is_refused_without_a_word_of_it(
    variable: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(ConfigurationError, match=rf"{variable}: .*must be (postgresql|redis)://") as refused:
        load_settings()
    assert_hidden(str(refused.value))


@pytest.mark.parametrize("url", BROKEN_DATABASES[1:])
def test_address_of_a_database_that_is_none_is_refused_wherever_it_comes_from(url: str) -> None:
    with pytest.raises(PipelineError) as refused, transaction(open_database(SecretStr(url))):
        pass
    assert_hidden(str(refused.value))


def test_wrong_password_is_not_repeated(servers: Connections) -> None:
    url = servers.database_url.get_secret_value()
    owner, _, rest = url.removeprefix("postgresql://").partition(":")
    wrong = SecretStr(f"postgresql://{owner}:{SECRET}@{rest.partition('@')[2]}")
    refusal = pytest.raises(ServiceUnavailable, match="password authentication failed")
    with refusal as refused, transaction(open_database(wrong)):
        pass
    assert_hidden(str(refused.value))


def test_refused_values_are_not_in_an_error(servers: Connections) -> None:
    db_engine = open_database(servers.database_url)
    with pytest.raises(Exception, match="invalid input syntax") as refused, transaction(db_engine) as connection:
        connection.exec_driver_sql("SELECT %s::text, 'x'::integer", (SECRET,))
    db_engine.dispose()
    assert_hidden(str(refused.value))


@pytest.mark.parametrize("broker", ["another password", "nobody there"])
def test_worker_without_a_broker_keeps_the_password_to_itself(
    servers: Connections, connections: Connections, broker: str, tmp_path: Path
) -> None:
    place = servers.redis_url.get_secret_value().rpartition("@")[2] if broker == "another password" else "127.0.0.1:1/0"
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "SPECTHINK_DATABASE_URL": connections.database_url.get_secret_value(),
        "SPECTHINK_REDIS_URL": f"redis://:{SECRET}@{place}",
        "SPECTHINK_LOG_LEVEL": "debug",
    }
    command = [sys.executable, "-m", "workers", "upkeep"]
    expected = {"another password": "invalid username-password", "nobody there": "Cannot connect to redis://:**@"}
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as worker:
        deadline = time.monotonic() + 60
        while expected[broker] not in log.read_text() and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        worker.kill()
    assert expected[broker] in log.read_text()
    assert_hidden(log.read_text())
