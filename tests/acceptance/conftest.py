"""The pipeline as a person has it after `specthink up`: started once, ended with the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]
MODELS = CHECKOUT / "examples" / "models"
START_TIMEOUT_S = 280


def plain_environment() -> dict[str, str]:
    """This process's environment without settings; the checkout's packages are found wherever a command runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    return {**kept, "PYTHONPATH": str(CHECKOUT)}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs specthink on one state folder, from an empty folder as its working directory."""

    state_dir: Path
    cwd: Path

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", "--state-dir", str(self.state_dir), *arguments]

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            cwd=self.cwd, env=plain_environment(), capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def ok(self, *arguments: str, timeout_s: float = 120) -> str:
        """What it printed; fails with its complaint where it failed."""
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))


@pytest.fixture(scope="session")
def specthink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Servers, grading, upkeep, Flower and the demo pair's workers are up."""
    folder = tmp_path_factory.mktemp("acceptance")
    command = CommandLine(folder / "state", folder)
    try:
        models = ["--small", str(MODELS / "demo-small"), "--large", str(MODELS / "demo-large")]
        command.ok("up", *models, timeout_s=START_TIMEOUT_S)
        yield command
    finally:
        command.run("down", timeout_s=120)
