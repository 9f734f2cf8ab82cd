"""Settings from the environment: what is refused, and how it is said."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigurationError
from pipeline.setting_names import misnamed_variables
from pipeline.settings import EngineKind, load_settings, settings_variables


def test_what_only_one_kind_of_engine_is_told_is_in_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_ENGINE__KIND", "vllm")
    monkeypatch.setenv("SPECTHINK_ENGINE__MAX_IN_FLIGHT", "9")
    monkeypatch.setenv("SPECTHINK_ENGINE__VLLM__PROCESS", "separate")
    engine = load_settings().engine
    assert (engine.kind, engine.max_in_flight, engine.vllm.process) == (EngineKind.VLLM, 9, "separate")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("SPECTHINK_ENGINE__KIND", "abacus", "should be 'vllm'"),
        ("SPECTHINK_ENGINE__VLLM__PROCESS", "both", "'inline' or 'separate'"),
        ("SPECTHINK_ENGINE__VLLM__CPU_THREADS", "0", "greater than or equal to 1"),
        ("SPECTHINK_ENGINE__PROCESS", "inline", "not permitted"),  # not a setting of every engine
        ("SPECTHINK_LEASE__TTL_S", "1", "at least 3"),
    ],
)
def test_wrong_setting_is_named_with_what_it_should_be(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    assert reason in str(error.value)
    assert variable.removesuffix("__TTL_S") in str(error.value)


def test_address_of_a_server_that_no_engine_would_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_ENGINE__SERVER__URL", "http://host:8000/v1")
    with pytest.raises(ConfigurationError, match="set SPECTHINK_ENGINE__KIND=server"):
        load_settings()
    monkeypatch.setenv("SPECTHINK_ENGINE__KIND", "vllm")  # said by hand
    assert load_settings().engine.kind is EngineKind.VLLM
    monkeypatch.setenv("SPECTHINK_ENGINE__KIND", "server")
    assert load_settings().engine.server.url == "http://host:8000/v1"


def test_empty_state_folder_is_not_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_STATE_DIR", "")
    with pytest.raises(ConfigurationError, match=r"SPECTHINK_STATE_DIR: .*unset it, or name a folder"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SPECTHINK_VLLM__PROCESS", "SPECTHINK_ENGINE__VLLM__PROCESS"),  # a part left out
        ("SPECTHINK_ENGINES__MAX_IN_FLIGHT", "SPECTHINK_ENGINE__MAX_IN_FLIGHT"),
        ("SPECTHINK_LEASE_TTL_S", "SPECTHINK_LEASE__TTL_S"),  # one underscore
        ("SPECTHINK_GATEWAY_PORT", "SPECTHINK_GATEWAY__PORT"),
        ("SPECTHINK_STATE__DIR", "SPECTHINK_STATE_DIR"),
        ("SPECTHINK_DATABASE_ULR", "SPECTHINK_DATABASE_URL"),
        ("specthink_redis_uri", "SPECTHINK_REDIS_URL"),
        ("SPECTHINK_GPU__COUNT", "unset it"),
    ],
)
def test_variable_that_nobody_would_read_is_refused_with_the_name_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "9")
    with pytest.raises(ConfigurationError, match=f"^{variable}: no such setting; .*{meant}"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SPECTHINK_GATEWAY_PORT", "tcp://10.0.0.7:8080"),  # Kubernetes, of a service named specthink-gateway
        ("SPECTHINK_GATEWAY_SERVICE_HOST", "10.0.0.7"),
        ("SPECTHINK_GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.7"),
        ("SPECTHINK_BASE_URL", "http://127.0.0.1:8080/v1"),  # of our examples
        ("SPECTHINK_READER_PASSWORD", "secret"),  # of compose.yaml
        ("SPECTHINKER_MODE", "x"),
        ("specthink_log_level", "debug"),
        ("SPECTHINK_LEASE", '{"ttl_s": 30}'),
    ],
)
def test_variables_of_others_and_of_other_forms_pass(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    load_settings()


def test_no_setting_is_taken_for_a_mistake() -> None:
    known = settings_variables()
    assert {"SPECTHINK_ENGINE__VLLM__PROCESS", "SPECTHINK_STATE_DIR"} <= set(known)
    for name in known:
        assert misnamed_variables({name: "x"}, known) == []
