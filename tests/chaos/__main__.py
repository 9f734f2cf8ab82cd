"""``python -m tests.chaos``: break everything, many times, and print what came of it as a table."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from bench.measurement import machine
from tests.chaos.matrix import Plan, Run, find_faults, run_matrix
from tests.chaos.report import Record


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.table:
        record = Record.read(arguments.table)
        print(record.brief() if arguments.brief else record)
        return 0
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
    record = Record(seed=plan.seed, lanes=plan.lanes, machine=machine())
    total = plan.runs * len(faults)
    try:
        _run(plan, record, total)
    finally:  # interrupted: what there is so far
        print(f"\n{record}")
        if arguments.json:
            record.write(arguments.json)
    complete = len(record.runs) == total
    return 0 if complete and all(run.is_good for run in record.runs) else 1


def _run(plan: Plan, record: Record, total: int) -> None:
    began = time.monotonic()
    for run in run_matrix(plan):
        record.runs.append(run)
        record.seconds = time.monotonic() - began
        print(_line(run, done=len(record.runs), total=total), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of each cell")
    parser.add_argument("--only", help="regular expression on 'component: fault'")
    parser.add_argument("--seed", type=int, default=0, help="each run's seed is made of it, the cell and its number")
    parser.add_argument("--lanes", type=int, default=4, help="pipelines beside each other; much of a run is waiting")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="folder for what failed runs leave")
    parser.add_argument("--json", type=Path, help="file for all runs")
    parser.add_argument("--table", type=Path, metavar="JSON", help="show the table of such a file and end")
    parser.add_argument("--brief", action="store_true", help="with --table: a line for each fault, not for each cell")
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


if __name__ == "__main__":
    sys.exit(main())
