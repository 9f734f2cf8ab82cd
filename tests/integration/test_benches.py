"""Each bench at its smallest: it ends, and prints figures that can be measurements. None is held to a value."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from bench.stack import REPOSITORY
from bench.zoo import exit_rows, policy_rows
from pipeline.experiments.controls import is_control_name

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ALWAYS_LARGE = ("large-only", "first-steps", "specreason", "mentor", "relay")
"""Policies whose large model writes something in every text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A bench at its smallest. figures: that must be there, and above zero; all others may be zero. counts: those that
    follow from the options."""

    options: str = ""
    figures: tuple[str, ...]
    counts: Mapping[str, float] = field(default_factory=dict)


SMALL = {
    "chat": Small(
        options="--requests 2 --takeovers 1",
        figures=(
            "request → first piece: p50", "request → end: p95", "→ claimed: p50",
            "first segment → first piece at the client: p50", "first segment → last one: p50", "CPU of the gateway",
        ),
    ),
    "gateway": Small(
        options="--lines 100 --chars 82",
        figures=("2 lines, all of it", "100 lines, all of it", "100 lines, CPU of the gateway", "memory, many to few"),
    ),
    "grading": Small(
        options="--repeats 1 --texts 4",
        figures=(
            "math, pairs, 4 texts: mean", "math, demo problems, 4 texts: p95", "exact, demo problems, 4 texts: p99",
            "choice, demo problems, 4 texts: mean",
        ),
    ),
    "hops": Small(
        options="--samples 12 --repeats 1 --jobs 1",
        figures=(
            "hand-overs", "cores that all of it got", "CPU of all", "CPU of small worker", "CPU of large worker",
            "CPU of database", "in both writers: celery", "alone, small → large → small: p50",
            "alone, small → large → small: p99", "alone, message to large: p50", "alone, large writes: p50",
            "alone, message to small: p50",
        ),
    ),
    "paced": Small(
        options="--samples 16 --in-flight 64 --faster 20 --paces 1.5B+7B --parts pair process",
        figures=(
            "1.5B+7B: pipeline", "1.5B+7B: pipeline ÷ simulator", "1.5B+7B: pipeline ÷ one by one",
            "1.5B+7B: pipeline ÷ lock-step", "1.5B+7B: hand-overs", "1.5B+7B: small, engines step",
            "1.5B+7B: large, engines step", "1.5B+7B: commit to the next claim, median",
            "one worker's Python: tokens", "one worker's Python: tokens per second of its CPU",
        ),
    ),
    "rounds": Small(
        options="--jobs 20 --workers 4 --models 2",
        figures=(
            "submit", "submit_all", "submit, CPU of the client", "submit_all, CPU of Postgres", "round, the first",
            "round, the others",
        ),
    ),
    "scale": Small(
        options="--samples 3200 --left 1600 --run-s 2",
        figures=(
            "submit", "refreshing a rollup", "job_summary, running", "problem_scores, ended",
            "claim of 8 of the first thousand", "claim, last over first", "hand-overs of the first samples",
            "hand-overs of the last samples", "memory of large, late over early", "cancel returns after",
            "totals of the ended job are kept after",
        ),
    ),
    "updates": Small(
        options="--samples 64 --in-flight 32 --rounds 4",
        figures=(
            "updates in place", "logged per hand-over", "CPU of the session per hand-over", "samples' own size",
        ),
        counts={"updates per hand-over": 2 + 1 / 4},  # claim and commit, and one admission for four of them
    ),
    "watcher": Small(figures=("no break", "every 120 tokens", "every 13 tokens: share of a core")),
}  # fmt: skip
"""By name, without vLLM."""
LEFT_OUT = ("cache", "floor", "overhead", "pools", "reference")
"""What they need of vLLM's starts is too much for a test: bench/NOTES.md. ``gpu`` has a test of its own."""


def printed(name: str, options: str) -> str:
    """What a bench prints on stdout, as ``make bench-NAME`` calls it."""
    command = [sys.executable, "-m", f"bench.{name}", *options.split()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def require_figures(name: str, found: dict[str, dict[str, float]], above_zero: tuple[str, ...]) -> None:
    for figure, measured in found.items():
        values = [value for key, value in measured.items() if key not in ("unit", "repeats")]
        assert values, (name, figure)
        assert all(math.isfinite(value) and value >= 0 for value in values), (name, figure, measured)
    for figure in above_zero:
        assert figure in found, (name, figure, sorted(found))
        assert min(value for key, value in found[figure].items() if key != "unit") > 0, (name, figure, found[figure])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_bench_prints_its_figures(name: str) -> None:
    line, table = printed(name, SMALL[name].options).split("\n", 1)
    report = json.loads(line)
    assert report["bench"] == name
    require_figures(name, report["figures"], SMALL[name].figures)
    for figure, wanted in SMALL[name].counts.items():
        assert report["figures"][figure]["value"] == wanted
    assert f"bench {name}" in table
    assert all(math.isfinite(goal["measured"]) for goal in report["goals"])


def tables(text: str) -> list[dict[str, list[float | None]]]:
    """Of Markdown: of each table the rows by name, without the mark of the front, each cell as its first number."""
    found: list[dict[str, list[float | None]]] = []
    for line in text.splitlines():
        if line.startswith("| policy |"):
            found.append({})
        elif line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            numbers = [re.match(r"[+-]?[0-9.]+", cell) for cell in cells]
            found[-1][name.removesuffix(" *")] = [float(number[0]) if number else None for number in numbers]
    return found


def test_zoo_prints_a_row_for_every_policy_and_exit() -> None:
    policies, exits = tables(printed("zoo", "--limit 2 --samples 1 --pilot 10"))
    assert list(policies) == [row.name for row in policy_rows(pilot=1)]
    assert [name for name in exits if not is_control_name(name)] == [row.name for row in exit_rows()]
    for name, (accuracy, large, tokens, takeovers, *_) in (*policies.items(), *exits.items()):
        assert accuracy is not None, name
        assert 0 <= accuracy <= 100, name
        assert large is not None, name
        if name.startswith("small-only"):
            assert large == 0, name
        if name.startswith(ALWAYS_LARGE):
            assert large > 0, name
        assert tokens, name
        assert tokens >= large, name
        assert takeovers is not None, name


def test_no_bench_is_forgotten() -> None:
    folder = REPOSITORY / "bench"
    programs = {path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text()}
    programs |= {path.parent.name for path in folder.glob("*/__main__.py")}
    assert programs == {*SMALL, "zoo", "gpu", *LEFT_OUT}
