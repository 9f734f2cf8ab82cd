"""Who may see Flower."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigurationError
from pipeline.settings import FlowerSettings, Settings
from workers.processes.flower import _environment, _is_loopback, run_flower


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("localhost.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(address: str, expected: bool) -> None:
    assert _is_loopback(address) is expected


def test_flower_that_others_could_reach_wants_a_password() -> None:
    with pytest.raises(ConfigurationError, match="SPECTHINK_FLOWER__BASIC_AUTH"):
        run_flower(Settings(flower=FlowerSettings(address="0.0.0.0")))


def test_password_opens_the_pages_and_closes_the_interface() -> None:
    with_password = _environment(FlowerSettings(basic_auth=SecretStr("me:secret")))
    assert with_password["FLOWER_BASIC_AUTH"] == "me:secret"
    assert "FLOWER_UNAUTHENTICATED_API" not in with_password
    without = _environment(FlowerSettings())
    assert "FLOWER_BASIC_AUTH" not in without
    assert without["FLOWER_UNAUTHENTICATED_API"] == "true"
    assert (without["FLOWER_MAX_TASKS"], without["FLOWER_PURGE_OFFLINE_WORKERS"]) == ("10000", "86400")
    assert with_password["FLOWER_READ_ONLY"] == without["FLOWER_READ_ONLY"] == "true"
