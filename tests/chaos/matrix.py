"""The matrix: every fault, several times, on harnesses that run beside each other.

A harness's processes end with the process that started it, and it must be its main thread: so each lane is a process.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import queue
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from tests.chaos import faults_engines, faults_gateway, faults_messages, faults_servers, faults_vllm, faults_workers
from tests.chaos.faults import Fault, Strike
from tests.chaos.harness import Broken, Harness, Missed, copy_logs, dump_rows, log_sizes
from tests.chaos.verdict import Verdict, judge
from tests.chaos.workload import ChaosJob

FAULTS: list[Fault] = [
    *faults_workers.FAULTS,
    *faults_messages.FAULTS,
    *faults_servers.FAULTS,
    *faults_engines.FAULTS,
    *faults_gateway.FAULTS,
    *faults_vllm.FAULTS,
]
SKIPPED = faults_servers.SKIPPED
"""What this machine cannot do, with the reason."""
MAX_MISSES = 5
"""Jobs that a run may take until one of them is not over before its fault comes about."""


@dataclass(kw_only=True)
class Run:
    """One run of one cell."""

    fault: str
    component: str
    run: int
    seed: int
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of each part of it: where its time went."""
    cpu_s: float = 0.0
    """Seconds of a core that all processes of the harness used meanwhile."""
    note: str = ""
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def is_good(self) -> bool:
        return self.verdict.is_good


def find_faults(pattern: str | None) -> list[Fault]:
    """The faults whose "component: name" the expression finds."""
    return [fault for fault in FAULTS if pattern is None or re.search(pattern, str(fault))]


def seed_of(seed: int, fault: Fault, run: int) -> int:
    """The seed of a run, of its job too: another one for each cell and run."""
    key = f"{seed}\x1f{fault}\x1f{run}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) % 1_000_000_000


class Lane:
    """Runs cells on a harness of its own, which is replaced when it does not become healthy again."""

    def __init__(self, out: Path, *, new_folder: Callable[[], Path]) -> None:
        """new_folder: names one that is not there, for a harness's state."""
        self._out = out
        self._new_folder = new_folder
        self._harness: Harness | None = None
        self._on_vllm = False

    @property
    def harness(self) -> Harness:
        if self._harness is None:
            start = faults_vllm.start_harness if self._on_vllm else Harness.start
            self._harness = start(self._new_folder())
        return self._harness

    def close(self) -> None:
        if self._harness is not None:
            self._harness.close()
            self._harness = None

    def cell(self, fault: Fault, *, runs: int, seed: int) -> Iterator[Run]:
        """All runs of one fault."""
        if fault.is_on_vllm is not self._on_vllm:
            self.close()
            self._on_vllm = fault.is_on_vllm
        with_setup = Cell(fault, self)
        try:
            for run in range(runs):
                yield with_setup.run(run, seed_of(seed, fault, run))
        finally:
            with_setup.end()

    def replace_field(self) -> None:
        self.close()

    def folder(self, fault: Fault, run: int) -> Path:
        """Where a failed run leaves what is needed to see why."""
        return self._out / re.sub(r"[^A-Za-z0-9]+", "-", str(fault)).strip("-").lower() / str(run)


class Cell:
    """One fault on one lane: its setup is done before the first run, and again on a new harness."""

    def __init__(self, fault: Fault, lane: Lane) -> None:
        self._fault = fault
        self._lane = lane
        self._set_up_on: Harness | None = None

    def run(self, number: int, seed: int) -> Run:
        """One run; whatever goes wrong in it is in its verdict."""
        for again in range(MAX_MISSES):
            run, missed = self._try(number, seed + again)
            if not missed or not run.is_good:
                return run
        run.verdict.violations.append(f"the job ended before the fault came about, {MAX_MISSES} times")
        return run

    def _try(self, number: int, seed: int) -> tuple[Run, bool]:
        """One job, and whether it was over before the fault came about."""
        run = Run(fault=self._fault.name, component=self._fault.column, run=number, seed=seed)
        began, cpu_s = time.monotonic(), self._lane.harness.cpu_s()
        attempt = Attempt(self._lane.harness, self._fault, seed)
        try:
            with attempt.part("setup"):
                self._set_up()
            run.verdict = attempt.verdict()
        except Exception as error:
            run.verdict.violations.append(_told(error))
        run.note, run.parts = attempt.note, attempt.parts
        run.seconds, run.cpu_s = time.monotonic() - began, self._lane.harness.cpu_s() - cpu_s
        if not run.is_good:
            self._keep(run, attempt)
        if attempt.field_is_sick:
            self._lane.replace_field()
        return run, attempt.missed

    def _set_up(self) -> None:
        if self._set_up_on is not self._lane.harness:
            self._set_up_on = self._lane.harness
            self._fault.setup(self._lane.harness)
            self._lane.harness.wait_healthy()

    def end(self) -> None:
        """Undo the setup; a harness that cannot be mended is replaced."""
        if self._set_up_on is not self._lane._harness or self._set_up_on is None:
            return
        try:
            self._fault.teardown(self._set_up_on)
            self._set_up_on.wait_healthy()
        except Exception:
            self._lane.replace_field()

    def _keep(self, run: Run, attempt: Attempt) -> None:
        folder = self._lane.folder(self._fault, run.run)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(asdict(run), indent=1, ensure_ascii=False))
        attempt.keep(folder)


class Attempt:
    """One job with one fault."""

    def __init__(self, harness: Harness, fault: Fault, seed: int) -> None:
        self._harness = harness
        self._fault = fault
        self._seed = seed
        self._rng = random.Random(seed)
        self._log_sizes = log_sizes(harness)
        self._job: ChaosJob | None = None
        self.note = ""
        self.parts: dict[str, float] = {}
        self.field_is_sick = False
        self.missed = False
        """The job was over before the fault came about; otherwise the run is judged as any."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note how long a part of the run takes, also where it fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] = round(time.monotonic() - began, 3)

    def verdict(self) -> Verdict:
        """Run it."""
        harness, fault = self._harness, self._fault
        broken: list[str] = []
        strike: Strike | None = None
        try:
            with self.part("prepare"):
                fault.prepare(harness, self._rng)
            with self.part("submit"):
                self._job = fault.submit(harness, self._rng, self._seed)
            with self.part("strike"):
                strike = fault.strike(harness, self._job, self._rng)
            self.note = strike.note
            with self.part("job"):
                harness.wait_over(self._job, timeout_s=fault.timeout_s)
        except Missed:
            self.missed = True
        except Exception as error:
            broken.append(_told(error))
        with self.part("heal"):
            broken += self._heal()
        if self._job is None:
            return Verdict(violations=broken or ["no job was submitted"])
        if broken and not harness.is_over(self._job):
            harness.client.cancel(self._job.id)
        with self.part("judge"):
            verdict = judge(harness, self._job, strike)
        verdict.violations = broken + verdict.violations
        if strike is not None and not broken:
            verdict.violations += fault.check(harness, self._job, strike)
        return verdict

    def _heal(self) -> list[str]:
        try:
            self._harness.withdraw_orders()
            if self._job is not None:
                self._fault.heal(self._harness, self._job)
            self._harness.wait_healthy()
        except Exception as error:
            self.field_is_sick = True
            return [_told(error)]
        return []

    def keep(self, folder: Path) -> None:
        """Leave the logs of all processes and the job's rows."""
        copy_logs(self._harness, self._log_sizes, folder)
        try:
            dump_rows(self._harness, self._job.id if self._job else None, folder)
        except PipelineError as error:
            (folder / "rows-not-read.txt").write_text(str(error))


def _told(error: Exception) -> str:
    if isinstance(error, Broken):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"


# -- lanes beside each other ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for on the command line."""

    runs: int
    only: str | None
    seed: int
    lanes: int
    out: Path


def run_matrix(plan: Plan) -> Iterator[Run]:
    """All runs, as they end. One lane begins with the cells of vLLM: two of its harnesses would starve each other."""
    spawn = multiprocessing.get_context("spawn")
    cells: dict[bool, Any] = {on_vllm: spawn.Queue() for on_vllm in (False, True)}
    faults = find_faults(plan.only)
    for fault in sorted(faults, key=lambda fault: -fault.lasts_s):
        cells[fault.is_on_vllm].put(FAULTS.index(fault))
    runs: Any = spawn.Queue()
    lanes = [
        spawn.Process(target=_lane_main, args=(plan, number, cells, runs), name=f"lane {number}")
        for number in range(min(plan.lanes, len(faults)))
    ]
    for lane in lanes:
        lane.start()
    try:
        yield from _received(lanes, runs)
    except BaseException:
        for lane in lanes:
            lane.terminate()
        raise
    finally:
        for lane in lanes:
            lane.join()


def _received(lanes: list[Any], runs: Any) -> Iterator[Run]:
    while any(lane.is_alive() for lane in lanes) or not runs.empty():
        try:
            yield runs.get(timeout=0.5)
        except queue.Empty:
            continue
    failed = [lane.name for lane in lanes if lane.exitcode]
    if failed:
        raise RuntimeError(f"ended with an error: {', '.join(failed)}")


def _lane_main(plan: Plan, number: int, cells: Any, runs: Any) -> None:
    faults_servers.own_mounts()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{number}-"))
    lane = Lane(plan.out, new_folder=lambda: Path(tempfile.mkdtemp(dir=folder)) / "state")
    try:
        for on_vllm in (True, False) if number == 0 else (False,):
            while (fault := _next_fault(cells[on_vllm])) is not None:
                for run in lane.cell(fault, runs=plan.runs, seed=plan.seed):
                    runs.put(run)
    finally:
        lane.close()
        shutil.rmtree(folder, ignore_errors=True)


def _next_fault(cells: Any) -> Fault | None:
    with suppress(queue.Empty):
        return FAULTS[cells.get(timeout=0.5)]
    return None


def _end(*_: object) -> None:
    """Told to end: leave by way of the finally, which ends the harness."""
    sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
