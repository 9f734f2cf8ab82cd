"""The README's commands, run as they stand there, in their order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.settings import Settings
from tests.command_lines import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LANGUAGES_RUN = ("bash", "python", "sql")


class Block(NamedTuple):
    language: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def environment(state_dir: Path) -> dict[str, str]:
    return os.environ | {
        "SPECTHINK_STATE_DIR": str(state_dir),
        "SPECTHINK_ENGINE__MAX_IN_FLIGHT": "32",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def run(block: Block, *, cwd: Path, env: dict[str, str]) -> None:
    match block.language:
        case "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
        case "python":
            command = [sys.executable, "-c", block.text]
        case "sql":
            command = ["specthink", "sql", block.text]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(700)
def test_commands_do_what_the_readme_says(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # results are written beside it, not into the checkout
    env = environment(tmp_path / "state")
    wanted = [block for block in blocks() if block.language in LANGUAGES_RUN]
    last = [block for block in wanted if "specthink down" in block.text]
    try:
        for block in [block for block in wanted if block not in last]:
            run(block, cwd=tmp_path, env=env)
    finally:
        for block in last:
            run(block, cwd=tmp_path, env=env)
    assert (tmp_path / "results.csv").stat().st_size > 1000
    assert "takeover" in (tmp_path / "report.html").read_text()
    assert {block.language for block in wanted} == set(LANGUAGES_RUN)


SHOWN = [
    line.split("#")[0].strip()
    for block in blocks()
    if block.language == ""
    for line in block.text.splitlines()
    if line.startswith("specthink ")
]


@pytest.mark.parametrize("line", SHOWN)
def test_commands_for_other_machines_are_ones_that_specthink_parses(line: str) -> None:
    parse(line)


def test_make_targets_exist() -> None:
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"make {target}: {done.stderr}"


def test_settings_table_names_settings_that_exist() -> None:
    variables = re.findall(r"`SPECTHINK_(\w+)`", README)
    assert len(variables) > 10
    for variable in variables:
        part: Any = Settings
        for name in variable.lower().split("__"):
            assert name in part.model_fields, variable
            part = part.model_fields[name].annotation


def test_files_that_are_linked_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
