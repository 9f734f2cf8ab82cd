"""The commands and queries of README.md and docs/, run as they stand there, in their order, on one finished demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.blocks import ROOT, Block, blocks
from pipeline import Client, load_settings
from tests.acceptance.outside import MODELS, plain_environment

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]

BLOCKS = blocks()
COMMANDS = [block for block in BLOCKS if block.language in ("bash", "python") and not block.not_run]
LAST = [block for block in COMMANDS if re.search(r"^specthink down$", block.text, re.MULTILINE)]
QUERIES = [block for block in BLOCKS if block.language == "sql"]
EXAMPLE_POLICY = f"{ROOT / 'docs' / 'examples' / 'my_policy.py'}:LongStepSpec"


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that has ended and was kept running. Commands run in a folder of their own, beside the examples."""

    folder: Path
    env: Mapping[str, str]

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def run(self, *command: str) -> str:
        """What it printed; fails with its complaint where it failed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "examples").symlink_to(ROOT / "examples")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"SPECTHINK_STATE_DIR": str(folder / "state"), "SPECTHINK_ENGINE__MAX_IN_FLIGHT": "32"}
    made = Demo(folder, plain_environment() | settings | {"PATH": programs})
    small = ["--state-dir", str(made.state_dir), "--limit", "12", "--samples", "4"]
    try:
        made.run("specthink", "demo", "--keep", *small)
        yield made
    finally:
        made.run("specthink", "down")


@pytest.mark.parametrize("block", [block for block in COMMANDS if block not in LAST], ids=str)
def test_command_does_what_the_page_says(demo: Demo, block: Block) -> None:
    interpreter = ["bash", "-euo", "pipefail"] if block.language == "bash" else [sys.executable]
    demo.run(*interpreter, "-c", block.text)


def test_commands_leave_the_files_that_they_name(demo: Demo) -> None:
    assert (demo.folder / "results.csv").stat().st_size > 1000
    assert "takeover" in (demo.folder / "report.html").read_text()


@pytest.mark.parametrize("block", QUERIES, ids=str)
def test_query_gives_rows_in_the_columns_that_the_page_shows(demo: Demo, block: Block) -> None:
    with Client.connect(load_settings(state_dir=demo.state_dir)) as client:
        found = client.sql(block.text)
    assert found.rows
    if block.answer:
        assert block.answer.splitlines()[0].split() == list(found.columns)


def test_example_policy_is_taken_from_its_file_and_replays(demo: Demo) -> None:
    models = ["--small", str(MODELS / "demo-small"), "--large", str(MODELS / "demo-large")]
    options = ["--policy", EXAMPLE_POLICY, "--max-tokens", "384", "--limit", "3", "--wait"]
    job = demo.run("specthink", "submit", "examples/problems.jsonl", *models, *options).strip()
    short_steps = demo.run("specthink", "clone", job, "--set", "policy.step_tokens=10", "--wait").strip()
    with Client.connect(load_settings(state_dir=demo.state_dir)) as client:
        takeovers = client.sql(
            f"SELECT takeovers FROM job_summary WHERE job_id IN ({job}, {short_steps}) ORDER BY job_id"
        )
    never, often = (row[0] for row in takeovers.rows)
    assert never == 0
    assert often >= 3
    assert "3 of 3 samples are what the policy decides" in demo.run("specthink", "replay", "--job", short_steps)


@pytest.mark.parametrize("block", LAST, ids=str)
def test_down_ends_what_the_demo_started(demo: Demo, block: Block) -> None:
    assert re.search("stopped: .*postgres", demo.run("bash", "-euo", "pipefail", "-c", block.text))
