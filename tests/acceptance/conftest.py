"""The pipeline as a person has it after `specthink up`: started once, ended with the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.outside import MODELS, START_TIMEOUT_S, CommandLine


@pytest.fixture(scope="module")
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
