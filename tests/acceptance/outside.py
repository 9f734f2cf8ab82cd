"""The command line as other programs use it: run, and looked at, from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

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

    def json(self, *arguments: str, timeout_s: float = 120) -> Any:
        return json.loads(self.ok(*arguments, "--json", timeout_s=timeout_s))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes_of(state_dir: Path) -> list[int]:
    """Ids of the processes that name this state folder on their command line or were started for it."""
    found = []
    for process in psutil.process_iter():
        try:
            mentions = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(state_dir) in text for text in mentions):
            found.append(process.pid)
    return found
