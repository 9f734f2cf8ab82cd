"""Does the simulation behind ``specthink plan`` predict real runs?

    python -m bench.pools

Runs jobs on the demo pair with different numbers of workers, slots and policies, each with a seed of its own. The rates
of both engines, the delay of a hand-over and what the servers use of the cores are taken from the first run alone; so
are the trajectories of the samples, but for the runs under another policy, which takes over otherwise: theirs are
their own.
The engines share this machine's cores, less what others used meanwhile; a prediction is for the machine as fast as it
was in the first run, and is multiplied by how much longer a fixed piece of work took beside the run that it is for.
Each case is one real run; the spread of a prediction is over simulations, which take the trajectories in another order
each.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from bench.measurement import Report
from bench.stack import JOB_TIMEOUT_S, MODELS, PROBLEMS, Stack, running_stack
from bench.usage import cpu_seconds, machine_cpu_seconds
from bench.yardstick import yardstick
from pipeline.db.planning import get_measured_job
from pipeline.db.session import transaction
from pipeline.embedded import Program
from pipeline.planning.fitting import Fitted, Sharing, fit
from pipeline.planning.measured import MeasuredJob
from pipeline.planning.pools import HandOverCosts, PipelineModel, Pool, Trajectory
from pipeline.planning.slices import Estimate, estimate
from pipeline.samples import ModelRole

IMPROVED = "speculative-thinking:improved"
SERVERS = ("postgres", "redis", "grade", "upkeep")
MOST_ERROR = 0.15
SIMULATIONS = 5
"""Of each case, with trajectories in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One real run. slots: samples that each worker writes at the same time."""

    name: str
    policy: str = IMPROVED
    small_workers: int = 1
    large_workers: int = 1
    slots: int = 64
    samples_per_problem: int = 2
    num_problems: int = 150
    seed: int = 0


CASES = (
    Case(name="1 + 1", seed=1),
    Case(name="1 + 2", large_workers=2, seed=2),
    Case(name="2 + 1", small_workers=2, seed=3),
    Case(name="1 + 1, small only", policy="small-only", seed=4),
    Case(name="1 + 1, paper", policy="speculative-thinking:paper", seed=5),
    Case(name="1 + 1, 16 slots", slots=16, seed=6),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one case took. wall_s: from the first claim to the last text. cpu_s: of each program, with its children.

    foreign_cores: cores that others on this machine, this benchmark included, used meanwhile. work_s: what the
    yardstick took meanwhile.
    """

    case: Case
    measured: MeasuredJob
    wall_s: float
    cpu_s: Mapping[str, float]
    foreign_cores: float
    work_s: float


def measure(cases: Sequence[Case]) -> Iterator[Run]:
    """Each case on its own workers, which are started where they do not run yet and stopped where they are too many.

    Where some were started, a short job that is not counted goes before: the first steps of a process are slow.
    """
    with running_stack() as stack:
        running: dict[str, Program] = {}
        for case in cases:
            wanted = {program.name: program for program in _programs(case)}
            for name in running.keys() - wanted.keys():
                stack.state.stop_program(name)
            if new := [program for name, program in wanted.items() if name not in running]:
                stack.start_programs(new)
                warm_up = replace(case, policy=IMPROVED, samples_per_problem=1, num_problems=32, seed=0)
                _run(stack, warm_up, sorted(wanted))
            running = wanted
            yield _run(stack, case, sorted(wanted))


def _programs(case: Case) -> list[Program]:
    settings = {"SPECTHINK_ENGINE__MAX_IN_FLIGHT": str(case.slots)}
    return [
        Program(
            name=f"{role}-{number}-{case.slots}-slots",
            argv=(sys.executable, "-m", "workers", role, "--model", str(MODELS[role])),
            env=settings,
        )
        for role, count in ((ModelRole.SMALL, case.small_workers), (ModelRole.LARGE, case.large_workers))
        for number in range(count)
    ]


def _run(stack: Stack, case: Case, workers: Sequence[str]) -> Run:
    programs = [*workers, *SERVERS]
    before = {name: cpu_seconds(stack.pid(name)) for name in programs}
    start, all_before = time.monotonic(), machine_cpu_seconds()
    with yardstick() as work_s:
        job = stack.client.submit(
            PROBLEMS,
            small=MODELS["small"],
            large=MODELS["large"],
            policy=case.policy,
            num_samples=case.samples_per_problem,
            limit=case.num_problems,
            seed=case.seed,
            temperature=0.6,
            max_tokens=384,
        )
        stack.client.wait(job, timeout_s=JOB_TIMEOUT_S)
    cpu_s = {name: cpu_seconds(stack.pid(name)) - before[name] for name in programs}
    foreign_s = machine_cpu_seconds() - all_before - sum(cpu_s.values())
    foreign_cores = foreign_s / (time.monotonic() - start)
    job = stack.client.job(job.id)
    with transaction(stack.db_engine) as connection:
        measured = get_measured_job(connection, job.id)
    assert job.first_claimed_at is not None
    wall_s = max(request.ended_at for request in measured.requests) - job.first_claimed_at.timestamp()
    return Run(case=case, measured=measured, wall_s=wall_s, cpu_s=cpu_s, foreign_cores=foreign_cores, work_s=work_s[0])


def _servers_cores(run: Run) -> float:
    """Cores that all but the engines' workers used."""
    return sum(run.cpu_s[name] for name in SERVERS) / run.wall_s


def _cores(run: Run, servers_cores: float) -> float:
    """What was left to the engines."""
    return len(os.sched_getaffinity(0)) - run.foreign_cores - servers_cores


def _milliseconds_per_hand_over(runs: Sequence[Run], server: str) -> float:
    """CPU time of a server that grows with the hand-overs, by least squares; the rest grows with the time."""
    terms = np.array([[run.wall_s, len(run.measured.requests)] for run in runs])
    (_, per_hand_over), *_ = np.linalg.lstsq(terms, np.array([run.cpu_s[server] for run in runs]), rcond=None)
    return float(1000 * per_hand_over)


def predict(case: Case, fitted: Fitted, trajectories: Sequence[Trajectory], cores: float) -> list[Estimate]:
    """Of a job with as many samples as trajectories, once per simulation."""
    counts = {ModelRole.SMALL: case.small_workers, ModelRole.LARGE: case.large_workers}
    needed = {piece.role for trajectory in trajectories for piece in trajectory}
    pools = {role: Pool(num_workers=counts[role], slots=case.slots, rates=fitted.rates[role]) for role in needed}
    model = PipelineModel(pools=pools, costs=HandOverCosts(delay_s=fitted.delay_s), cores=cores)
    return [estimate(model, trajectories, len(trajectories), seed=seed) for seed in range(SIMULATIONS)]


def compare(runs: Sequence[Run]) -> Report:
    """Real and predicted times, calibrated on the first run."""
    known = runs[0]
    report = Report(
        bench="pools",
        setting={
            "seeds": [run.case.seed for run in runs], "real_runs": 1, "simulations": SIMULATIONS,
            "calibrated on": known.case.name, "samples": [len(run.measured.trajectories) for run in runs],
        },
    )  # fmt: skip
    servers_cores = _servers_cores(known)
    fitted = fit(known.measured, Sharing(cores=_cores(known, servers_cores), servers=0.0))
    errors = []
    for run in runs:
        trajectories = fitted.trajectories if run.case.policy == known.case.policy else run.measured.trajectories
        found = predict(run.case, fitted, trajectories, _cores(run, servers_cores))
        slowness = run.work_s / known.work_s
        report.add(f"{run.case.name}: real", run.wall_s, "s")
        report.add(f"{run.case.name}: predicted, over simulations", [slowness * one.wall_s for one in found], "s")
        errors.append([slowness * one.wall_s / run.wall_s - 1 for one in found])
        report.add(f"{run.case.name}: error, over simulations", errors[-1])
        report.details[run.case.name] = {
            "foreign_cores": run.foreign_cores, "cpu_s": run.cpu_s, "work_s": run.work_s,
            "hand_overs": len(run.measured.requests),
        }  # fmt: skip
    worst = max(abs(statistics.median(error)) for error in errors[1:])
    report.add("largest error of a predicted run", worst)
    report.goal("largest error of a predicted run", "≤", MOST_ERROR)
    for server in ("postgres", "redis"):
        report.add(f"CPU of {server}", _milliseconds_per_hand_over(runs, server), "ms/hand-over")
    report.details["rates"] = {role.value: asdict(rates) for role, rates in fitted.rates.items()}
    return report


def main() -> None:
    compare(list(measure(CASES))).print()


if __name__ == "__main__":
    main()
