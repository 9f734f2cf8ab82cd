"""`make demo`'s path with a small limit, and that it leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.outside import plain_environment, processes_of, wait_until

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(450)]


def demo(state_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "--state-dir", str(state_dir), "demo", *arguments]


def test_demo_runs_three_jobs_and_leaves_nothing_running(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    command = demo(state_dir, "--limit", "8", "--samples", "2", "--json", str(tmp_path / "table.json"))
    done = subprocess.run(
        command, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())["table"]
    assert [row["policy"] for row in table] == ["small-only", "large-only", "speculative-thinking:improved"]
    assert [row["share_large"] for row in table[:2]] == [0, 1]
    assert 0 < table[2]["share_large"] < 1
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in table)
    for shown in (
        "48/48 samples",
        "95 % interval",
        "SELECT policy",
        "S small  L large",
        "Flower was at http://127.0.0.1",
    ):
        assert shown in done.stdout
    wait_until(lambda: not processes_of(state_dir))
    printed = done.stdout.partition("Look around:\n")[2]
    looked = subprocess.run(  # what it printed, pasted into a shell
        ["sh", "-ec", printed],
        env=plain_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert looked.returncode == 0, looked.stderr
    assert looked.stdout.count("speculative-thinking:improved") > 2
    assert "stopped:" in looked.stdout
    assert (tmp_path / "report.html").is_file()
    wait_until(lambda: not processes_of(state_dir))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_that_is_ended_early_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    state_dir = tmp_path / "state"
    with subprocess.Popen(
        demo(state_dir), env=plain_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("… waiting for"):
                break
        assert processes_of(state_dir)
        running.send_signal(number)
        running.stderr.read()
        code = running.wait(timeout=120)
    expected = {signal.SIGINT: 130, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
    assert code == expected[number]
    wait_until(lambda: not processes_of(state_dir))
