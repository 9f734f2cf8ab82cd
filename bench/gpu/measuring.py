"""Measures the parts, each with engines of its own, and notes every figure as soon as it is known."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from bench.bare import Answered, Arrangement, BareEngine
from bench.floor import floor_seconds, texts_of
from bench.gpu.clock import Clock
from bench.gpu.device import Readings, watched
from bench.gpu.sizes import VARIABLES, Pair, Part, Size, alone, hopping
from bench.hand_overs import RoundTrip, round_trips
from bench.jobs import JobRun, run_job
from bench.loops import Loops
from bench.measurement import Report, percentile, progress
from bench.reference import loop_job
from bench.stack import Stack, running_stack
from pipeline.samples import ModelRole

SEED = 1
_WARM_UP = 4
"""What is not counted writes so manieth of the tokens."""


@dataclass(kw_only=True)
class Found:
    """What later parts need of earlier ones. rates: bare tokens/s by model. samples: per problem, of small's jobs."""

    rates: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    jobs: dict[tuple[str, str], JobRun] = field(default_factory=dict)
    pipeline_rate: float | None = None
    """Tokens/s of the first pair's small model alone."""


@dataclass(kw_only=True)
class Measuring:
    """One run. is_real: whether its figures are of a GPU, and are to meet goals."""

    report: Report
    clock: Clock
    size: Size
    found: Found
    is_real: bool

    def measure(self, part: Part, pair: Pair) -> None:
        """Measure a part. Raises OutOfTime once the time is up; what was found before is in the report."""
        with ExitStack() as running:
            kind, _, role = part.name.partition(" ")
            with self.clock.running():
                if kind == "bare":
                    self._bare(running, part, pair, ModelRole(role))
                else:
                    {"pipeline": self._pipeline, "loops": self._loops, "AsyncLLM": self._async_llm}[kind](
                        running, part, pair
                    )

    # Bare engines

    def _bare(self, running: ExitStack, part: Part, pair: Pair, role: ModelRole) -> None:
        name = part.pair[0] if role is ModelRole.SMALL else part.pair[1]
        answered = self._answer(running, pair, role, "LLM.generate")
        self.found.rates[name] = answered.tokens_per_second
        self.report.add(f"{name}: LLM.generate", answered.tokens_per_second, "tokens/s")

    def _answer(self, running: ExitStack, pair: Pair, role: ModelRole, arrangement: Arrangement) -> Answered:
        """Texts of small as many as its job has, of large as many as fit at once, and half as long."""
        started = time.monotonic()
        engine = running.enter_context(BareEngine(arrangement, pair.model(role), pair.engines[role]))
        work = pair.work if role is ModelRole.SMALL else replace(pair.work, max_tokens=pair.work.max_tokens // 2)
        short = replace(work, max_tokens=work.max_tokens // _WARM_UP)
        warm_up = engine.run(texts_of(role, 0, self.size.most_samples, short)[: self.size.in_flight[role]])
        progress(f"{arrangement} of {pair.model(role).name} ready after", time.monotonic() - started, "s")
        count = self.size.samples_per_problem(warm_up.tokens_per_second)
        self.found.samples.setdefault(pair.model(role).name, count)
        texts = texts_of(role, SEED, count, work, self.size.problems)
        answered = engine.run(texts if role is ModelRole.SMALL else texts[: self.size.in_flight[role]])
        progress(f"{arrangement} of {pair.model(role).name}", answered.tokens_per_second, "tokens/s")
        return answered

    def _async_llm(self, running: ExitStack, part: Part, pair: Pair) -> None:
        rate = self._answer(running, pair, ModelRole.SMALL, "AsyncLLM").tokens_per_second
        self.report.add(f"{part.pair[0]}: AsyncLLM", rate, "tokens/s")
        if self.found.pipeline_rate is not None:
            self._add_ratio(f"{part.pair[0]}: pipeline ÷ AsyncLLM", self.found.pipeline_rate / rate)

    # The pipeline

    def _pipeline(self, running: ExitStack, part: Part, pair: Pair) -> None:
        started = time.monotonic()
        readings = running.enter_context(watched(pair.gpu))
        stack = running.enter_context(running_stack(pools=pair.pools, settings=VARIABLES))
        short = replace(pair.work, max_tokens=pair.work.max_tokens // _WARM_UP)
        run_job(stack, seed=0, num_samples=1, limit=self.size.problems, work=short)
        progress("workers ready after", time.monotonic() - started, "s")
        self._delegating(stack, part, pair, readings)
        if part.pair == self.size.pairs[0]:
            self._small_alone(stack, part, pair, readings)
        self._hops(stack, part, pair)

    def _delegating(self, stack: Stack, part: Part, pair: Pair, readings: Readings) -> None:
        small, large = part.pair
        count = self.found.samples.get(small, 1)
        begin = time.monotonic()
        run = run_job(stack, seed=SEED, num_samples=count, limit=self.size.problems, work=pair.work)
        end = time.monotonic()
        self.found.jobs[part.pair] = run
        name = f"{small} + {large}"
        for role in ("small", "large"):
            self.report.add(f"{name}: {role} tokens", run.tokens.get(role, 0) / run.seconds, "tokens/s")
        written = sum(run.tokens.values())
        self.report.add(f"{name}: takeovers", 1000 * run.takeovers / written, "per 1,000 tokens")
        self.report.add(f"{name}: a takeover", run.tokens.get("large", 0) / max(1, run.takeovers), "tokens, mean")
        self.report.add(f"{name}: samples", run.samples_per_second, "samples/s")
        self._floor(part, run)
        self._add_hand_overs(f"{name}: loaded", round_trips(stack, run.job_id))
        self._add_busy(name, readings, begin, end)
        for who, cores in run.cores().items():
            self.report.add(f"{name}: CPU: {who}", cores, "cores")

    def _floor(self, part: Part, run: JobRun) -> None:
        """On one GPU the engines take turns: what each would take alone, one after the other, is the least."""
        rates = dict(zip(("small", "large"), map(self.found.rates.get, part.pair), strict=True))
        known = {ModelRole(role): rate for role, rate in rates.items() if rate}
        if len(known) < len(rates):
            self.report.notes.append(f"{part.title}: no floor: a bare engine was not measured")
            return
        tokens = {role: run.tokens.get(role, 0) for role in rates}
        least = floor_seconds(tokens, known, take_turns=self.is_real)
        self._goal(self._add_ratio(f"{part.pair[0]} + {part.pair[1]}: job ÷ floor", run.seconds / least), "≤", 1.25)

    def _small_alone(self, stack: Stack, part: Part, pair: Pair, readings: Readings) -> None:
        small = part.pair[0]
        count = self.found.samples.get(small, 1)
        begin = time.monotonic()
        run = run_job(stack, seed=SEED, num_samples=count, limit=self.size.problems, work=alone(pair.work))
        self.found.pipeline_rate = rate = sum(run.tokens.values()) / run.seconds
        self.report.add(f"{small}: pipeline", rate, "tokens/s")
        self._add_busy(small, readings, begin, time.monotonic())
        if bare := self.found.rates.get(small):
            self._goal(self._add_ratio(f"{small}: pipeline ÷ LLM.generate", rate / bare), "≥", 0.90)

    def _hops(self, stack: Stack, part: Part, pair: Pair) -> None:
        trips: list[RoundTrip] = []
        for seed in range(self.size.alone):
            run = run_job(stack, seed=seed, num_samples=1, limit=1, work=hopping(pair.work))
            trips += round_trips(stack, run.job_id)
        self._add_hand_overs(f"{part.pair[0]} + {part.pair[1]}: alone", trips)

    def _add_hand_overs(self, name: str, trips: Sequence[RoundTrip]) -> None:
        """From a writer's commit to the next one's claim, both ways."""
        each = [ms for trip in trips for ms in (trip.message_to_large, trip.message_to_small)]
        if len(each) < 2:
            self.report.notes.append(f"{name}: no hand-over latency: {len(each)} were seen")
            return
        self.report.add(f"{name}: a hand-over, p50", statistics.median(each), "ms")
        self.report.add(f"{name}: a hand-over, p99", percentile(each, 99), "ms")
        self.report.details[name] = {"hand_overs": len(each)}

    def _add_busy(self, name: str, readings: Readings, begin: float, end: float) -> None:
        busy = readings.between(begin, end)
        if busy is None:
            self.report.notes.append(f"{name}: no idle share: no GPU was read")
            return
        self.report.add(f"{name}: GPU without a kernel", busy.idle, "share of time")
        self.report.add(f"{name}: GPU's memory in use", busy.memory, "share of time")
        self.report.add(f"{name}: GPU's power", busy.watts, "W")

    # The plain loops

    def _loops(self, running: ExitStack, part: Part, pair: Pair) -> None:
        engines = {role: (pair.model(role), settings) for role, settings in pair.engines.items()}
        loops = running.enter_context(Loops(engines))
        in_flight = self.size.in_flight[ModelRole.SMALL]
        short = replace(pair.work, max_tokens=pair.work.max_tokens // _WARM_UP)
        warm_up = loop_job(0, num_samples=1, work=short)
        warm_up.samples[:] = warm_up.samples[:in_flight]
        loops.play("lock_step", warm_up)
        job = loop_job(SEED, num_samples=self.size.most_samples, work=pair.work)
        for how, title, count in (
            ("one_by_one", "one by one", self.size.one_by_one),
            ("lock_step", "lock-step", in_flight),
        ):
            played = loops.play(how, replace(job, samples=job.samples[:count]))
            name = f"{part.pair[0]} + {part.pair[1]}"
            self.report.add(f"{name}: {title}", played.samples_per_second, "samples/s")
            progress(title, played.samples_per_second, "samples/s")
            if run := self.found.jobs.get(part.pair):
                ratio = self._add_ratio(
                    f"{name}: pipeline ÷ {title}", run.samples_per_second / played.samples_per_second
                )
                if title == "one by one":
                    self._goal(ratio, "≥", 25)

    def _add_ratio(self, figure: str, value: float) -> str:
        self.report.add(figure, value)
        return figure

    def _goal(self, figure: str, relation: str, wanted: float) -> None:
        if self.is_real:
            self.report.goal(figure, relation, wanted)  # type: ignore[arg-type]
