"""``python -m tests.chaos``: break everything, many times, and print what came of it as a table."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos.field import SETTINGS
from tests.chaos.matrix import SKIPPED, Plan, Run, find_faults, run_matrix
from tests.chaos.texts import NUM_CUES, NUM_PROBLEMS, NUM_SAMPLES


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of the finally that ends the lanes
    plan = Plan(
        runs=arguments.runs,
        only=arguments.only,
        seed=arguments.seed,
        lanes=arguments.lanes,
        out=arguments.out.resolve(),
    )
    faults = find_faults(plan.only)
    if arguments.list:
        print("\n".join(map(str, faults)))
        return 0
    if not faults:
        print(f"no fault is called {plan.only!r}; --list shows them", file=sys.stderr)
        return 2
    began = time.monotonic()
    runs: list[Run] = []
    total = sum(fault.num_runs(plan.runs) for fault in faults)
    for run in run_matrix(plan):
        runs.append(run)
        print(_line(run, done=len(runs), total=total), flush=True)
    print()
    print(table(runs))
    print(_footer(plan, runs, time.monotonic() - began))
    for fault, reason in SKIPPED.items():
        print(f"left out: {fault}: {reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1, ensure_ascii=False))
    complete = len(runs) == total
    return 0 if complete and all(run.is_good for run in runs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of each cell")
    parser.add_argument("--only", help="regular expression on 'component: fault'")
    parser.add_argument("--seed", type=int, default=0, help="each run's seed is made of it, the cell and its number")
    parser.add_argument("--lanes", type=int, default=2, help="pipelines beside each other")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="folder for what failed runs leave")
    parser.add_argument("--json", type=Path, help="file for all runs")
    parser.add_argument("--list", action="store_true", help="show the faults and end")
    return parser


def _line(run: Run, *, done: int, total: int) -> str:
    verdict = run.verdict
    recovery = "-" if verdict.recovery_s is None else f"{verdict.recovery_s:.1f} s"
    word = "ok    " if run.is_good else "FAILED"
    line = (
        f"{done:4}/{total} {word} {run.component}: {run.fault} #{run.run}  lost {verdict.lost} "
        f"doubled {verdict.doubled} again {verdict.again} recovery {recovery}  ({run.seconds:.1f} s) {run.note}"
    )
    return "\n".join([line.rstrip(), *(f"          {text}" for text in verdict.violations[:8])])


HEAD = ("fault", "component", "runs", "failed", "lost", "doubled", "again", "max", "recovery s", "max")


def table(runs: Sequence[Run]) -> str:
    """A line for each cell, in Markdown; again and recovery as median and maximum over the runs."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.component, run.fault), []).append(run)
    rows = [HEAD, *(_row(cells[cell]) for cell in sorted(cells))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in rows]
    rule = (
        "|"
        + "|".join("-" * (width + 2) if column < 2 else "-" * (width + 1) + ":" for column, width in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _row(runs: Sequence[Run]) -> tuple[str, ...]:
    verdicts = [run.verdict for run in runs]
    again = [verdict.again for verdict in verdicts]
    recoveries = [verdict.recovery_s for verdict in verdicts if verdict.recovery_s is not None]
    return (
        runs[0].fault,
        runs[0].component,
        str(len(runs)),
        str(sum(not run.is_good for run in runs)),
        str(sum(verdict.lost for verdict in verdicts)),
        str(sum(verdict.doubled for verdict in verdicts)),
        f"{statistics.median(again):g}",
        str(max(again)),
        f"{statistics.median(recoveries):.1f}" if recoveries else "-",
        f"{max(recoveries):.1f}" if recoveries else "-",
    )


def _footer(plan: Plan, runs: Sequence[Run], seconds: float) -> str:
    settings = ", ".join(f"{name.removeprefix('SPECTHINK_').lower()} {value}" for name, value in SETTINGS.items())
    return (
        f"{len(runs)} runs in {seconds / 60:.1f} min, seed {plan.seed}. Each: a job of "
        f"{NUM_PROBLEMS * NUM_SAMPLES} samples with {NUM_CUES} takeovers each; 2 small and 2 large "
        "workers with scripted models, a grader, upkeep.\n"
        f"Settings: {settings}.\n"
        "again: segments whose claim was lost, so that they were generated again. recovery: from the fault until every "
        "sample that the struck process held has its next segment stored; where it held none, until the next step by "
        "its kind of worker."
    )


if __name__ == "__main__":
    sys.exit(main())
