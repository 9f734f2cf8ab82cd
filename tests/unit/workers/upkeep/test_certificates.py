"""The keeper of the gate's certificate: in time, again and again, and past faults."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import pytest

from pipeline.errors import ServiceUnavailable
from workers.upkeep import certificates
from workers.upkeep.certificates import CertificateKeeper


def test_keeper_looks_at_once_and_goes_on_after_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    enough = threading.Event()

    def renew(state_dir: Path) -> dt.datetime | None:
        asked.append(state_dir)
        if len(asked) == 1:
            raise ServiceUnavailable("held by another")
        enough.set()
        return None

    monkeypatch.setattr(certificates, "renew_gate", renew)
    keeper = CertificateKeeper(tmp_path, every_s=0.01)
    keeper.start()
    assert enough.wait(10)
    keeper.stop()
    assert set(asked) == {tmp_path}
