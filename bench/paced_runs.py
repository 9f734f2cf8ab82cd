"""Jobs on paced engines: workers with the pace that they are given, one job, and what everybody did meanwhile."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from statistics import median

from bench.jobs import DEMO, POLICY, JobRun, run_job
from bench.loops import LoopJob
from bench.paced_engine import Paced
from bench.scripted_worker import environment, program
from bench.scripts import DISTINCT, make_script, problem_set
from bench.stack import MODELS, Stack
from bench.trajectories import play
from bench.usage import machine_cpu_seconds
from pipeline.chat.model import ChatModel
from pipeline.db.planning import get_measured_job
from pipeline.db.session import transaction
from pipeline.planning.pools import Pool, Trajectory
from pipeline.samples import WRITING_ROLES, ModelRole

SEED = 1
MAX_TOKENS = 2000
SCRIPT, WITHOUT_CUES = f"paced:{SEED}", f"drafts:{SEED}"
_WARM_UP = 32
"""Samples."""
_APART = 64 * DISTINCT
"""Between the first problems of two jobs: the same texts, and prompts that no cache has."""

Pools = Mapping[ModelRole, Pool]


class Texts:
    """What the samples of all jobs here write."""

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """Of the first ``DISTINCT`` problems of a job; those after them go the same ways again."""
        chat = ChatModel.load(MODELS["small"])
        job = LoopJob(policy=POLICY, seed=SEED, max_tokens=MAX_TOKENS, samples=[])
        script = make_script(SCRIPT, chat, ModelRole.SMALL)
        return play(problem_set(DISTINCT).problems, script, chat, job)

    def of(self, num_samples: int) -> list[Trajectory]:
        return [self.trajectories[number % DISTINCT] for number in range(num_samples)]


def tokens_of(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """By role."""
    tokens: dict[str, int] = defaultdict(int)
    for trajectory in trajectories:
        for piece in trajectory:
            tokens[piece.role.value] += piece.tokens
    return dict(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedRun:
    """One job. engines: what each did meanwhile, by role. cores: that each kind of program kept busy; foreign_cores:
    that others on this machine did. held_s, wait_s: of its hand-overs, from a piece's end to its commit and from there
    to the next claim, medians."""

    job: JobRun
    held_s: float
    wait_s: float
    engines: Mapping[ModelRole, Sequence[Paced]]
    cores: Mapping[str, float]
    foreign_cores: float

    def busy(self, role: ModelRole) -> float:
        """Share of the time in which its engines stepped."""
        return sum(engine.busy_s for engine in self.engines[role]) / self._engine_seconds(role)

    def late(self, role: ModelRole) -> float:
        """Share of the time that was lost because Python could not keep up."""
        return sum(engine.late_s for engine in self.engines[role]) / self._engine_seconds(role)

    def mean_running(self, role: ModelRole) -> float:
        """Requests in a step."""
        return sum(engine.running for engine in self.engines[role]) / max(1, sum(e.steps for e in self.engines[role]))

    def _engine_seconds(self, role: ModelRole) -> float:
        return self.job.seconds * len(self.engines[role])


def _median(seconds: Sequence[float | None]) -> float:
    """Of those that are known; 0 where none is: a job in which nothing is handed over."""
    return median([each for each in seconds if each is not None] or [0.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    name: str
    role: ModelRole
    notes: Path


class PacedWorkers:
    """Workers of some pools, on one stack. folder: of their notes."""

    _numbers = count(1)

    def __init__(self, stack: Stack, workers: Sequence[_Worker]) -> None:
        self._stack = stack
        self._workers = workers

    def run(self, num_samples: int, *, policy: str = POLICY) -> PacedRun:
        """One job. Raises RuntimeError where its tokens are not those of ``Texts``."""
        before = {worker.name: Paced.read(worker.notes) for worker in self._workers}
        all_before, start = machine_cpu_seconds(), time.monotonic()
        job = self._run_job(num_samples, policy)
        seconds, all_used = time.monotonic() - start, machine_cpu_seconds() - all_before
        time.sleep(0.5)  # an engine notes its last steps once it is idle
        engines: dict[ModelRole, list[Paced]] = defaultdict(list)
        for worker in self._workers:
            engines[worker.role].append(Paced.read(worker.notes).since(before[worker.name]))
        cores: dict[str, float] = defaultdict(float)
        for part, used in job.cpu_seconds.items():
            cores[part.partition("-")[0]] += used / seconds
        own = sum(job.cpu_seconds.values())
        with transaction(self._stack.db_engine) as connection:
            requests = get_measured_job(connection, job.job_id).requests
        return PacedRun(
            job=job,
            engines=engines,
            cores=cores,
            foreign_cores=max(0.0, all_used - own) / seconds,
            held_s=_median([each.held_s for each in requests]),
            wait_s=_median([each.wait_s for each in requests]),
        )

    def _run_job(self, num_samples: int, policy: str) -> JobRun:
        problems = problem_set(num_samples, first=_APART * next(self._numbers))
        work = replace(DEMO, policy=policy, max_tokens=MAX_TOKENS)
        return run_job(self._stack, seed=SEED, num_samples=1, problems=problems, work=work)

    def warm_up(self, policy: str) -> None:
        """What is done once only: caches, connections, prepared statements."""
        self._run_job(_WARM_UP * len(self._workers), policy)


@contextmanager
def paced_workers(
    stack: Stack, pools: Pools, folder: Path, *, script: str = SCRIPT, policy: str = POLICY
) -> Iterator[PacedWorkers]:
    """Workers with these paces, warm; they end with the block."""
    workers, programs = [], []
    for role in WRITING_ROLES:
        for _ in range(pools[role].num_workers if role in pools else 0):
            name = f"{role.value}-{os.urandom(3).hex()}"
            worker = _Worker(name=name, role=role, notes=folder / f"{name}.json")
            variables = environment(
                script, max_in_flight=pools[role].slots, rates=pools[role].rates, notes=worker.notes
            )
            workers.append(worker)
            programs.append(program(name, role, variables))
    stack.start_programs(programs)
    found = PacedWorkers(stack, workers)
    found.warm_up(policy)
    try:
        yield found
    finally:
        stack.state.stop_programs([worker.name for worker in workers])
