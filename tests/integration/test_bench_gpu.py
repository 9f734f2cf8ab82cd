"""bench-gpu with toy models on the CPU: workers on made models, a job with scheduled takeovers, and its report."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.stack import REPOSITORY


@pytest.mark.timeout(600)
def test_toy_prints_one_line_of_json_and_a_table() -> None:
    command = [sys.executable, "-m", "bench.gpu", "--toy", "--parts", "pipeline"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line, table = done.stdout.split("\n", 1)
    found = json.loads(line)
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    name = "toy-small + toy-large"
    assert figures[f"{name}: small tokens"] > figures[f"{name}: large tokens"] > 0
    assert figures[f"{name}: takeovers"] > 0
    assert 1 <= figures[f"{name}: a takeover"] <= 125
    assert figures["toy-small: pipeline"] > 0
    assert 0 < figures[f"{name}: alone: a hand-over, p50"] <= figures[f"{name}: alone: a hand-over, p99"]
    assert f"{name}: pipeline: no floor: a bare engine was not measured" in found["notes"]
    assert f"{name}: no idle share: no GPU was read" in table
    assert not found["goals"]  # a toy on a CPU has none to meet
