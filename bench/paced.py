"""The pipeline around engines with a GPU's pace: how much of what they could do is left.

    python -m bench.paced [--samples 512] [--in-flight 256] [--faster 1] [--paces 1.5B+7B 1.5B+32B 7B+70B] [--parts …]

Everything is real but the models: Postgres, Redis, Celery, workers, policies. Engines write scripted texts, each step
as long as a law says (bench/paces.py); takeovers come as often, and are as long, as in real traces: 7.7 in 1,000
tokens, of 20 to 125. Four parts:

    pair     one small and one large worker of each pace, against the same samples in virtual time: with hand-overs that
             cost nothing, one sample at a time, and in lock-step (bench/simulator.py)
    process  how many tokens a second one worker's Python takes in
    scale    more workers, until hand-overs per second grow no more: this machine's end
    plan     ``specthink plan`` from a run on 1 + 1 workers, against runs on others

Times are of a job's whole life, its slow end included: from its first claim to its last commit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import simulator
from bench.measurement import Report, progress
from bench.paced_runs import SEED, WITHOUT_CUES, PacedRun, Pools, Texts, paced_workers, tokens_of
from bench.paces import PACES
from bench.stack import Stack, running_stack
from pipeline.planning.pools import EngineRates, Pool
from pipeline.samples import WRITING_ROLES, ModelRole

PARTS = ("pair", "process", "scale", "plan")
SCALE_PACE = "1.5B+7B"
"""That with most hand-overs per second."""
SCALE_WORKERS = (1, 2, 4, 8)
"""Of each role."""
GROWS = 1.1
"""The machine has ended where twice the workers give less than this many times the hand-overs."""
PLAN_PACE, PLAN_SLOTS = "7B+70B", 64
"""That with fewest hand-overs per second, and few enough of them for this machine: a plan is for one that holds."""
PLAN_CASES = ((1, 1), (1, 2), (2, 1), (4, 2))
"""Small and large workers; the first is the one that is planned from."""
WANTED_TOKENS = 40_000


class Bench:
    """All parts, in one report."""

    def __init__(
        self, report: Report, stack: Stack, folder: Path, *, samples: int, in_flight: int, faster: float = 1.0
    ) -> None:
        """faster: than the law of a pace, in every step."""
        self._report = report
        self._stack = stack
        self._folder = folder
        self._texts = Texts()
        self._samples = samples
        self._in_flight = in_flight
        self._faster = faster
        self._done: dict[str, tuple[PacedRun, simulator.Simulated]] = {}
        """Of part pair, by pace."""

    def pair(self, name: str) -> None:
        pools = self._pools(name, 1, 1, self._in_flight)
        run, ideal = self._done[name] = self._run(name, pools, self._samples)
        ours, report = run.job.samples_per_second, self._report
        trajectories = self._texts.of(self._samples)
        loop, lock_step = simulator.one_by_one(pools, trajectories), simulator.lock_step(pools, trajectories)
        report.add(f"{name}: pipeline", ours, "samples/s")
        for what, other, wanted in (
            ("simulator", ideal, 0.95), ("one by one", loop, 25), ("lock-step", lock_step, 1.3),
        ):  # fmt: skip
            report.add(f"{name}: pipeline ÷ {what}", ours / other.samples_per_second)
            report.goal(f"{name}: pipeline ÷ {what}", "≥", wanted)
        self._add_use(name, run, ideal)

    def process(self) -> None:
        """One small worker whose engine is always done: its Python sets the pace."""
        rates = EngineRates(step_s=0.0, token_s=0.0)
        pools = {ModelRole.SMALL: Pool(num_workers=1, slots=self._in_flight, rates=rates)}
        with paced_workers(self._stack, pools, self._folder, script=WITHOUT_CUES) as workers:
            run = workers.run(2 * self._samples)
        tokens = run.job.tokens["small"]
        self._report.add("one worker's Python: tokens", tokens / run.job.seconds, "/s")
        per_core = tokens / run.job.cpu_seconds[next(part for part in run.job.cpu_seconds if part.startswith("small"))]
        self._report.add("one worker's Python: tokens per second of its CPU", per_core, "/s")
        self._report.goal("one worker's Python: tokens per second of its CPU", "≥", WANTED_TOKENS)

    def scale(self) -> None:
        best, ended = 0.0, ""
        for count in SCALE_WORKERS:
            name, num_samples = f"{count} + {count} of {SCALE_PACE}", count * self._samples
            pools = self._pools(SCALE_PACE, count, count, self._in_flight)
            known = self._done.get(SCALE_PACE) if count == 1 else None
            run, ideal = known or self._run(name, pools, num_samples)
            hand_overs = self._add_use(name, run, ideal)
            self._report.add(f"{name}: pipeline ÷ simulator", run.job.samples_per_second / ideal.samples_per_second)
            tokens = [engine.tokens / run.job.seconds for engines in run.engines.values() for engine in engines]
            self._report.add(f"{name}: tokens of a worker process", tokens, "/s")
            if hand_overs < GROWS * best:
                ended = name
                break
            best = max(best, hand_overs)
        self._report.details["scale ended with"] = ended or "none of them"

    def plan(self) -> None:
        report, source, errors = self._report, 0, []
        for small, large in PLAN_CASES:
            name = f"plan, {small} + {large}"
            run, _ = self._run(name, self._pools(PLAN_PACE, small, large, PLAN_SLOTS), self._samples // 2)
            source = source or run.job.job_id
            planned = self._stack.client.plan(source, small_workers=small, large_workers=large)
            report.add(f"{name}: measured", run.job.seconds, "s")
            report.add(f"{name}: predicted", planned.wall_s, "s")
            errors.append(planned.wall_s / run.job.seconds - 1)
            progress(f"{name}: error", errors[-1], "")
            report.add(f"{name}: error", errors[-1])
        report.add("plan: largest error", max(map(abs, errors)))
        report.goal("plan: largest error", "≤", 0.1)

    def _pools(self, pace: str, small: int, large: int, slots: int) -> Pools:
        counts = {ModelRole.SMALL: small, ModelRole.LARGE: large}
        rates = {role: PACES[pace][role].faster(self._faster) for role in WRITING_ROLES}
        return {role: Pool(num_workers=counts[role], slots=slots, rates=rates[role]) for role in WRITING_ROLES}

    def _run(self, name: str, pools: Pools, num_samples: int) -> tuple[PacedRun, simulator.Simulated]:
        """Raises RuntimeError where the pipeline wrote other tokens than the simulator, which cannot be compared."""
        trajectories = self._texts.of(num_samples)
        ideal = simulator.pipeline(pools, trajectories)
        with paced_workers(self._stack, pools, self._folder) as workers:
            run = workers.run(num_samples)
        if run.job.tokens != tokens_of(trajectories):
            raise RuntimeError(f"{name}: the pipeline wrote {run.job.tokens}, the simulator {tokens_of(trajectories)}")
        progress(f"{name}: pipeline ÷ simulator", run.job.samples_per_second / ideal.samples_per_second, "")
        self._report.details[name] = {
            "samples": num_samples,
            "load": os.getloadavg(),
            "foreign_cores": run.foreign_cores,
            "cores": run.cores,
            "seconds": run.job.seconds,
            "ideal_seconds": ideal.seconds,
            "engines": {role.value: self._engine(role, run, ideal) for role in pools},
        }
        return run, ideal

    def _engine(self, role: ModelRole, run: PacedRun, ideal: simulator.Simulated) -> dict[str, float]:
        uses = ideal.engines[role]
        return {
            "busy": run.busy(role),
            "ideal_busy": sum(use.busy_s for use in uses) / ideal.seconds / len(uses),
            "late": run.late(role),
            "mean_running": run.mean_running(role),
            "ideal_mean_running": sum(use.tokens for use in uses) / sum(use.steps for use in uses),
        }

    def _add_use(self, name: str, run: PacedRun, ideal: simulator.Simulated) -> float:
        """How busy everybody was; the hand-overs per second."""
        report, hand_overs = self._report, sum(map(len, self._texts.of(run.job.num_samples))) / run.job.seconds
        report.add(f"{name}: hand-overs", hand_overs, "/s")
        report.add(f"{name}: a piece's end to its commit, median", 1000 * run.held_s, "ms")
        report.add(f"{name}: commit to the next claim, median", 1000 * run.wait_s, "ms")
        for role in WRITING_ROLES:
            found = self._engine(role, run, ideal)
            for what, key in (
                ("engines step", "busy"),
                ("in the simulator", "ideal_busy"),
                ("Python too late", "late"),
            ):
                report.add(f"{name}: {role.value}, {what}", found[key], "of the time")
        for part, cores in sorted(run.cores.items(), key=lambda item: -item[1])[:4]:
            report.add(f"{name}: CPU of {part}", cores, "cores")
        report.add(f"{name}: CPU of others on this machine", run.foreign_cores, "cores")
        return hand_overs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512, help="of a job with one small and one large worker")
    parser.add_argument("--in-flight", type=int, default=256, help="samples that a worker writes at the same time")
    parser.add_argument("--faster", type=float, default=1.0, help="times as fast as the paces say, in every step")
    parser.add_argument("--paces", nargs="*", choices=PACES, default=list(PACES), help="of the part pair")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    return parser


def main(given: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(given)
    setting = {**vars(arguments), "seed": SEED, "plan_slots": PLAN_SLOTS, "repeats": 1}
    report = Report(bench="paced", setting=setting)
    with tempfile.TemporaryDirectory(prefix="paced-") as folder, running_stack() as stack:
        numbers = {name: getattr(arguments, name) for name in ("samples", "in_flight", "faster")}
        bench = Bench(report, stack, Path(folder), **numbers)
        for name in arguments.paces if "pair" in arguments.parts else ():
            bench.pair(name)
        for part in PARTS[1:]:
            if part in arguments.parts:
                getattr(bench, part)()
    report.print()


if __name__ == "__main__":
    main(sys.argv[1:])
