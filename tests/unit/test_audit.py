"""The dependency audit's judgement of what a vulnerability service answered, and of no answer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "audit.py"


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


FAULT = {"id": "PYSEC-1", "aliases": ["CVE-7"], "fix_versions": ["2.1"], "description": "…"}
CLEAN: dict[str, Any] = {"name": "clean", "version": "1", "vulns": []}
FAULTY: dict[str, Any] = {"name": "faulty", "version": "2.0", "vulns": [FAULT]}
UNKNOWN: dict[str, Any] = {"name": "unknown", "skip_reason": "not found"}


def run(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: object) -> int:
    monkeypatch.setattr(audit, "install", lambda deadline: None)
    monkeypatch.setattr(audit, "ask", lambda lock, service, left_s: answer)
    return int(audit.main())


def test_known_vulnerability_fails(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(audit, monkeypatch, {"dependencies": [CLEAN, FAULTY, UNKNOWN]}) == 1
    assert "faulty 2.0: PYSEC-1, mended in 2.1" in capsys.readouterr().out


def test_packages_without_one_pass(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(audit, monkeypatch, {"dependencies": [CLEAN, UNKNOWN]}) == 0
    assert "1 packages asked of osv, 1 it does not know, 0 known vulnerabilities" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["no answer in time", {"dependencies": [UNKNOWN]}])
def test_no_answer_passes_and_says_that_nothing_is_known(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: object
) -> None:
    assert run(audit, monkeypatch, answer) == 0
    out = capsys.readouterr().out
    assert out.count("NOT DONE, no vulnerability service answers here") == 1


def test_ignored_one_is_named_with_its_reason(audit: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "ignored.txt").write_text("# by id or alias\n\nCVE-7  only in a part that is not used\n")
    ignored = audit.read_ignored(tmp_path / "ignored.txt")
    assert audit.judge({"dependencies": [FAULTY]}, ignored).faults == ()
    assert audit.judge({"dependencies": [FAULTY]}, audit.read_ignored(tmp_path / "none.txt")).faults
