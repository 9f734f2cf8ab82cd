"""What submit and model take about how models are asked, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from pipeline.cli import main
from pipeline.cli.asking import asking, stop_strings

MODELS = Path(__file__).parents[3] / "examples" / "models"


def test_options_become_fields(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Think\nin detail.\n", encoding="utf-8")
    assert asking(f"@{tmp_path}/system.txt", ["a=true", "b=high", "c=[1]", "d="], "<t>,</t>") == {
        "system": "Think\nin detail.\n",
        "template_variables": {"a": True, "b": "high", "c": [1], "d": ""},
        "think_tags": ("<t>", "</t>"),
    }
    assert asking(None, None, "none") == {"think_tags": ()}
    assert asking("", None, None) == {"system": ""}, "an empty message is one"
    assert asking(None, None, None) == {}


def test_byte_order_mark_of_a_file_is_no_part_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Think.", encoding="utf-8-sig")
    assert asking(f"@{tmp_path}/system.txt", None, None) == {"system": "Think."}


@pytest.mark.parametrize(
    ("system", "variables", "tags", "told"),
    [
        ("@/no/such/file", None, None, "cannot be read"),
        (None, ["thinking"], None, "write NAME=VALUE"),
        (None, ["=1"], None, "write NAME=VALUE"),
        (None, ["a=1", "a=2"], None, "a is given twice"),
        (None, None, "<t>", "write OPEN,CLOSE"),
        (None, None, ",</t>", "write OPEN,CLOSE"),
    ],
)
def test_what_is_wrong_is_said(system: str | None, variables: list[str] | None, tags: str | None, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        asking(system, variables, tags)


def test_stop_strings_in_quotes_are_json() -> None:
    assert stop_strings(["Q:", r'"\n\nQ:"', "[1]", ""]) == ("Q:", "\n\nQ:", "[1]", "")
    assert stop_strings(None) is None
    with pytest.raises(typer.BadParameter, match="not JSON"):
        stop_strings(['"Q'])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["specthink", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_model_shows_what_is_made_of_a_pair(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(monkeypatch, "model", str(MODELS / "demo-small"), str(MODELS / "demo-large"), "--json") == 0
    small, large, pair = json.loads(capsys.readouterr().out)
    assert small["prompt"].endswith("<|assistant|><think>\n")
    assert small["ends of a turn"] == ["<|end|>"]
    assert small["weights"] != large["weights"]
    assert pair["handed over as"] == "token ids: one vocabulary"
    assert pair["think phase of their texts"] == "<think> … </think>"


def test_model_takes_a_system_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(monkeypatch, "model", str(MODELS / "demo-small"), "--system", "Be brief.") == 0
    assert "<|system|>Be brief.<|end|><|user|>" in capsys.readouterr().out


def test_model_refuses_a_variable_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "model", str(MODELS / "demo-small"), "--template-var", "thinking=true") == 2
    assert "has no variable thinking; it has none that can be set" in capsys.readouterr().err
