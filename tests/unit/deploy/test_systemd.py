"""The units without a running systemd: what it says of them, commands, settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.command_lines import parse
from tests.deployed import DEPLOY, LEAST_STOP_S, require_setting

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def read_unit(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, setting = line.partition("=")
            found.setdefault(name, []).append(setting)
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_unit_runs_a_command_of_specthink_and_stops_it_in_time(path: Path) -> None:
    unit = read_unit(path)
    (command,) = unit["ExecStart"]
    line = command.replace("/opt/specthink/bin/", "").replace("${ROLE}", "small").replace("${MODEL}", "org/small-1b")
    assert int(unit["TimeoutStopSec"][0]) >= LEAST_STOP_S
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert unit["EnvironmentFile"][0].startswith("/etc/specthink/"), "no password stands in a unit"
    parse(line)


def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    program = tmp_path / "specthink"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "specthink.target").write_text((DEPLOY / "systemd" / "specthink.target").read_text())
    for path in UNITS:
        text = path.read_text().replace("/opt/specthink/bin/specthink", str(program))
        (tmp_path / path.name).write_text(text)
    names = [path.name.replace("@.", "@small-0.") for path in UNITS]
    command = [
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=no",
        *(str(tmp_path / name) for name in names),
    ]
    shutil.copy(tmp_path / "specthink-worker@.service", tmp_path / "specthink-worker@small-0.service")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "specthink-upkeep.service").write_text("[Service]\nExecStrat=/bin/true\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "ExecStrat" in done.stderr, "it sees a wrong line"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_settings_that_a_unit_names_are_settings(path: Path) -> None:
    for variable in re.findall(r"SPECTHINK_[A-Z_]+", path.read_text()):
        require_setting(variable)
