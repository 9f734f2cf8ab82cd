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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench.hand_overs import RoundTrip, round_trips
from bench.measurement import Report, multiple_of, percentile
from bench.scripted_worker import environment, program
from bench.scripts import problem_set
from bench.stack import JOB_TIMEOUT_S, MODELS, Stack, running_stack
from bench.usage import cpu_seconds
from pipeline.db.session import transaction
from pipeline.samples import WRITING_ROLES

TAKEOVERS = 20
"""Per sample."""
SAMPLES_PER_PROBLEM = 4
WARM_UP = 40
"""Samples of a job that is not counted, if those that are have as many."""
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

    @property
    def total_ms(self) -> float:
        return sum(self.milliseconds.values())


def _cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU time that each part has used since it was started, children that have ended included."""
    parts = {f"{name} worker": name for name in ("small", "large", "grade", "upkeep")}
    parts |= {"Redis": "redis", "database": "postgres"}
    return {part: cpu_seconds(stack.pid(name)) for part, name in parts.items()}


def _measure(stack: Stack, samples: int) -> Run:
    """Run a job of so many samples to its end."""
    before = _cpu_seconds(stack)
    job = stack.client.submit(
        problem_set(samples // SAMPLES_PER_PROBLEM),
        small=MODELS["small"],
        large=MODELS["large"],
        num_samples=SAMPLES_PER_PROBLEM,
        seed=0,
        max_tokens=1000,
        name="hops",
    )
    stack.client.wait(job, timeout_s=JOB_TIMEOUT_S)
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
    )


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
            missing = [file.name for file in files if not file.exists()]
            raise RuntimeError(f"no profile from {' and '.join(missing)} within 10 s")
        time.sleep(0.05)
    found += [json.loads(file.read_text()) for file in files]


def _summed(counts: Iterable[Mapping[str, float]]) -> list[tuple[str, float]]:
    """The sums by name, the largest first."""
    total: dict[str, float] = defaultdict(float)
    for count in counts:
        for name, value in count.items():
            total[name] += value
    return sorted(total.items(), key=lambda item: -item[1])


def _round_trips(stack: Stack, jobs: int) -> list[RoundTrip]:
    """All takeovers of some jobs of one sample, one job after the other."""
    trips: list[RoundTrip] = []
    for _ in range(jobs):
        job = stack.client.submit(
            problem_set(1), small=MODELS["small"], large=MODELS["large"], seed=0, max_tokens=1000, name="one by one"
        )
        stack.client.wait(job, timeout_s=JOB_TIMEOUT_S)
        trips += round_trips(stack, job.id)
    return trips


def _add_latency(report: Report, trips: Sequence[RoundTrip]) -> None:
    total = [trip.total for trip in trips]
    report.add("alone, small → large → small: p50", statistics.median(total), "ms")
    report.add("alone, small → large → small: p99", percentile(total, 99), "ms")
    for leg in RoundTrip._fields:
        report.add(
            f"alone, {leg.replace('_', ' ')}: p50", statistics.median(getattr(trip, leg) for trip in trips), "ms"
        )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=multiple_of(SAMPLES_PER_PROBLEM), default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=LATENCY_JOBS, help="of one sample, for the latency")
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--places", type=int, default=0, help="print so many functions of the profile")
    return parser


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """runs: one per repeat. profiled: one more, sampled meanwhile, and what the two writers found. trips: alone."""

    runs: list[Run]
    profiled: Run
    profiles: list[dict[str, Any]]
    trips: list[RoundTrip]


def _find(folder: Path, *, samples: int, repeats: int, jobs: int, in_flight: int) -> _Found:
    files = [folder / role.value for role in WRITING_ROLES]
    with running_stack() as stack:
        for role, file in zip(WRITING_ROLES, files, strict=True):
            variables = environment(f"takeovers:{TAKEOVERS}", max_in_flight=in_flight, profile=file)
            stack.start_programs([program(role.value, role, variables)])
        _measure(stack, min(samples, WARM_UP))  # what is done once only: caches, connections, prepared statements
        trips = _round_trips(stack, jobs)
        runs = [_measure(stack, samples) for _ in range(repeats)]
        with _profiled(files) as profiles:
            profiled = _measure(stack, samples)
    return _Found(runs=runs, profiled=profiled, profiles=profiles, trips=trips)


def _add_costs(report: Report, found: _Found) -> None:
    report.add("hand-overs", [run.rate for run in found.runs], "/s")
    report.add("cores that all of it got", [run.rate * run.total_ms / 1000 for run in found.runs])
    report.add("CPU of all", [run.total_ms for run in found.runs], "ms/hand-over")
    for who in found.profiled.milliseconds:
        report.add(f"CPU of {who}", [run.milliseconds[who] for run in found.runs], "ms/hand-over")
    for part, seconds in _summed(profile["seconds"] for profile in found.profiles):
        report.add(f"in both writers: {part}", 1000 * seconds / found.profiled.hand_overs, "ms/hand-over")


def main() -> None:
    arguments = _parser().parse_args()
    numbers = {name: getattr(arguments, name) for name in ("samples", "repeats", "jobs", "in_flight")}
    with tempfile.TemporaryDirectory(prefix="hops-") as folder:
        found = _find(Path(folder), **numbers)
    report = Report(bench="hops", setting={**numbers, "takeovers_per_sample": TAKEOVERS, "seed": 0})
    _add_costs(report, found)
    _add_latency(report, found.trips)
    report.goal("hand-overs", "≥", 800)
    report.print()
    for place, seconds in _summed(profile["places"] for profile in found.profiles)[: arguments.places]:
        print(f"{1000 * seconds / found.profiled.hand_overs:8.4f} ms  {place}")


if __name__ == "__main__":
    main()
