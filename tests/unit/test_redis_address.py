"""Addresses of Redis: what each part of the program is told, and what is refused without a word of the password."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigurationError
from pipeline.redis_address import RedisAddress
from pipeline.settings import load_settings
from workers.broker.app import CONFIG, make_app


def parse(url: str) -> RedisAddress:
    return RedisAddress.parse(SecretStr(url))


@pytest.mark.parametrize(
    ("url", "broker_url"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://:p%40ss@host:7000/3", "redis://:p%40ss@host:7000/3"),
        ("redis://user:p%2Fss@[::1]:7000/0", "redis://user:p%2Fss@[::1]:7000/0"),
        ("rediss://:pass@host/0?ssl_ca_certs=/ca.pem", "rediss://:pass@host:6379/0"),
        (
            "sentinel://:pass@one:1,two/2?master_name=main",
            "sentinel://:pass@one:1/2;sentinel://:pass@two:26379/2",
        ),
    ],
)
def test_broker_is_told_the_server_without_options(url: str, broker_url: str) -> None:
    assert parse(url).broker_url == broker_url


def test_server_must_prove_who_it_is_unless_the_address_says_otherwise() -> None:
    assert parse("redis://host").tls is None
    strict = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert parse("rediss://host").tls == strict
    assert parse("rediss://host?ssl_ca_certs=%2Fmy+ca.pem").tls == strict | {"ssl_ca_certs": "/my ca.pem"}
    assert parse("rediss://host?ssl_check_hostname=False").tls == strict | {"ssl_check_hostname": False}
    assert parse("rediss://host?ssl_cert_reqs=none").tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


def test_celery_is_told_of_tls_and_of_sentinels_beside_the_usual_options() -> None:
    assert not make_app(SecretStr("redis://host")).conf.broker_use_ssl
    app = make_app(SecretStr("rediss://host?ssl_ca_certs=/ca.pem"))
    assert app.conf.broker_use_ssl["ssl_ca_certs"] == "/ca.pem"
    app = make_app(SecretStr("sentinel://one,two?master_name=main&sentinel_password=other"))
    options = app.conf.broker_transport_options
    assert options["master_name"] == "main"
    assert options["sentinel_kwargs"]["password"] == "other"
    assert options.items() >= CONFIG["broker_transport_options"].items()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:secret@host", "must be redis://"),
        ("host:6379", "must be redis://"),
        ("redis://:sec/ret@host:6379/0", "written like %40"),
        ("redis://:sec@ret@host:port/0", "written like %40"),
        ("redis://:secret#@host/0", "written like %40"),
        ("redis://:secret@host:99999/0", "written like %40"),
        ("redis://:secret@host/zero", "written like %40"),
        ("redis://:secret@one,two/0", "names several servers"),
        ("redis://:secret@host/0?ssl_ca_certs=/ca.pem", "written rediss://"),
        ("redis://:secret@host/0?protocol=3", "does not know"),
        ("rediss://:secret@host/0?ssl_cert_reqs=maybe", "must be one of required"),
        ("sentinel://:secret@host/0", "how the Sentinels call the server"),
        ("sentinel://:secret@host/0?master_name=main&ssl_ca_certs=/ca.pem", "by rediss://"),
    ],
)
def test_address_that_would_be_misread_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    monkeypatch.setenv("SPECTHINK_REDIS_URL", url)
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    said = str(error.value)
    assert reason in said
    assert said.startswith("SPECTHINK_REDIS_URL: ")
    assert "secret" not in said
    assert "sec/" not in said
    assert "\n" not in said
