"""What a hand-over costs: how many a second, whose CPU time, and how long one takes when nobody else is there.

    python -m bench.hops

Everything is real but the models: Postgres, Redis, Celery, a small worker, a large worker, a grader and upkeep, and
engines that answer at once (``bench.scripted_worker``). A hand-over is a claim, a commit and a message; a takeover is
two, small → large and large → small.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from bench.measurement import Report
from bench.scripted_worker import environment, program
from bench.scripts import problem_set
from bench.stack import MODELS, Stack, running_stack
from pipeline.db.session import transaction
from pipeline.samples import ModelRole

TAKEOVERS = 20
"""Per sample."""
LATENCY_JOBS = 20
"""Of one sample each, one after the other: LATENCY_JOBS × TAKEOVERS round trips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One loaded job. hand_overs per second; milliseconds: CPU time per hand-over by who used it."""

    hand_overs: int
    seconds: float
    milliseconds: dict[str, float]

    @property
    def rate(self) -> float:
        return self.hand_overs / self.seconds


def _cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU time that each part has used since it was started, children that have ended included."""
    parts = {f"{name} worker": name for name in ("small", "large", "grade", "upkeep")}
    parts |= {"Redis": "redis", "database": "postgres"}
    return {part: _with_children(psutil.Process(stack.pid(name))) for part, name in parts.items()}


def _with_children(process: psutil.Process) -> float:
    total = sum(process.cpu_times()[:4])  # its own, and those of its children that have ended
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            total += _with_children(child)
    return total


def _measure(stack: Stack, samples: int) -> tuple[Run, int]:
    """Run a job of so many samples to its end."""
    before = _cpu_seconds(stack)
    job = stack.client.submit(
        problem_set(samples // 4),
        small=MODELS["small"],
        large=MODELS["large"],
        num_samples=4,
        max_tokens=1000,
        name="hops",
    )
    stack.client.wait(job)
    used = {who: after - before[who] for who, after in _cpu_seconds(stack).items()}
    with transaction(stack.db_engine) as connection:
        query = """SELECT extract(epoch FROM max(s.finished_at) - min(j.first_claimed_at))::float8, sum(s.num_takeovers)
                   FROM samples s JOIN jobs j ON j.id = s.job_id WHERE j.id = :job"""
        seconds, takeovers = connection.execute(text(query), {"job": job.id}).one()
    if takeovers != samples * TAKEOVERS:
        raise RuntimeError(f"{takeovers} takeovers in {samples} samples: the script did not do what it should")
    hand_overs = 2 * int(takeovers)
    return Run(
        hand_overs=hand_overs,
        seconds=seconds,
        milliseconds={who: 1000 * spent / hand_overs for who, spent in used.items()},
    ), job.id


@contextmanager
def _profiled(files: Sequence[Path]) -> Iterator[list[dict[str, Any]]]:
    """Let workers sample themselves meanwhile; gives what each found."""
    found: list[dict[str, Any]] = []
    switches = [Path(f"{file}.on") for file in files]
    for file, switch in zip(files, switches, strict=True):
        file.unlink(missing_ok=True)
        switch.touch()
    yield found
    for switch in switches:
        switch.unlink()
    deadline = time.monotonic() + 10
    while not all(file.exists() for file in files):
        if time.monotonic() > deadline:
            raise RuntimeError("a worker wrote no profile")
        time.sleep(0.05)
    found += [json.loads(file.read_text()) for file in files]


def _summed(counts: Iterable[Mapping[str, float]]) -> list[tuple[str, float]]:
    """The sums by name, the largest first."""
    total: dict[str, float] = defaultdict(float)
    for count in counts:
        for name, value in count.items():
            total[name] += value
    return sorted(total.items(), key=lambda item: -item[1])


def _round_trips(stack: Stack, jobs: int) -> list[float]:
    """Milliseconds from the commit that calls the large model to the small worker's next claim, one by one."""
    trips: list[float] = []
    for _ in range(jobs):
        job = stack.client.submit(
            problem_set(1), small=MODELS["small"], large=MODELS["large"], max_tokens=1000, name="one by one"
        )
        stack.client.wait(job)
        with transaction(stack.db_engine) as connection:
            rows = connection.execute(
                text("SELECT from_state, to_state, at FROM events WHERE job_id = :job AND sample_id > 0 ORDER BY id"),
                {"job": job.id},
            ).all()
        left = None
        for row in rows:
            if row.to_state == "awaiting_large":
                left = row.at
            elif row.from_state == "ready" and row.to_state == "drafting" and left is not None:
                trips.append(1000 * (row.at - left).total_seconds())
    return trips


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=LATENCY_JOBS, help="of one sample, for the latency")
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--places", type=int, default=0, help="print so many functions of the profile")
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hops-profile-"))
    files = {role: folder / role.value for role in ModelRole}
    with running_stack() as stack:
        for role in ModelRole:
            variables = environment(f"takeovers:{TAKEOVERS}", max_in_flight=arguments.in_flight, profile=files[role])
            stack.start_programs([program(role.value, role, variables)])
        _measure(stack, 40)
        trips = _round_trips(stack, arguments.jobs)
        runs = [_measure(stack, arguments.samples)[0] for _ in range(arguments.repeats)]
        with _profiled(list(files.values())) as profiles:
            profiled = _measure(stack, arguments.samples)[0]
    report = Report(bench="hops", setting={"samples": arguments.samples, "takeovers": TAKEOVERS})
    report.add("hand-overs", [run.rate for run in runs], "/s")
    for who in runs[0].milliseconds:
        report.add(f"CPU of {who}", [run.milliseconds[who] for run in runs], "ms/hand-over")
    report.add("CPU of all", [sum(run.milliseconds.values()) for run in runs], "ms/hand-over")
    parts = _summed(profile["seconds"] for profile in profiles)
    places = _summed(profile["places"] for profile in profiles)
    for part, seconds in parts:
        report.add(f"in both writers: {part}", 1000 * seconds / profiled.hand_overs, "ms/hand-over")
    if trips:
        cuts = statistics.quantiles(trips, n=100)
        report.add("small → large → small, alone, p50", cuts[49], "ms")
        report.add("small → large → small, alone, p99", cuts[98], "ms")
    report.goal("hand-overs", "≥", 800)
    report.print()
    for place, seconds in places[: arguments.places]:
        print(f"{1000 * seconds / profiled.hand_overs:8.4f} ms  {place}")


if __name__ == "__main__":
    main()
