"""Settings from the environment: what is refused, and how it is said."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import EngineKind, load_settings


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
