"""What the pipeline costs over the bare engine: its share of bare vLLM's tokens/s, one model, no takeovers.

    python -m bench.overhead [--repeats 3]

512 samples of 256 tokens (128 problems, 4 samples each; a model whose texts all reach their limit), 128 in flight. The
same prompts, seeds and limits go through bare ``LLM.generate``, bare ``AsyncLLM`` and the whole pipeline (Postgres,
Redis, Celery, a small worker, a grader, upkeep) in turn. Pipeline: from the job's first claim to its last commit.
What was measured before a failure is printed all the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.bare import Answered, BareEngine, BareRequest
from bench.measurement import Report, progress
from bench.models import make_endless
from bench.stack import JOB_TIMEOUT_S, PROBLEMS, Stack, running_stack
from bench.usage import Usage
from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.problems import Problem, load_problem_set
from pipeline.samples import ModelRole
from pipeline.seeds import segment_seed

NUM_PROBLEMS, NUM_SAMPLES, MAX_TOKENS = 128, 4, 256
SHARE = "pipeline ÷ faster bare engine"


def requests_of(model: Path, problems: Sequence[Problem], seed: int) -> list[BareRequest]:
    """What a small-only job asks of its engine, in the order in which its samples are admitted."""
    chat = ChatModel.load(model)
    return [
        BareRequest(
            prompt_ids=chat.prompt_ids(render_user_message("math", problem)),
            seed=segment_seed(
                job_seed=seed,
                problem_id=problem.external_id,
                sample_index=sample_index,
                segment_index=0,
                role=ModelRole.SMALL,
            ),
            max_tokens=MAX_TOKENS,
        )
        for problem in problems
        for sample_index in range(NUM_SAMPLES)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """A small-only job. seconds: from its first claim to its last commit. token_ids: per sample, as requests_of.
    cpu_seconds: by part, from submit to its end."""

    token_ids: list[list[int]]
    seconds: float
    cpu_seconds: dict[str, float]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def worker_cpu_seconds(self) -> float:
        """Of the small worker's process, all threads."""
        return sum(used for part, used in self.cpu_seconds.items() if part.startswith("small"))


def run_job(stack: Stack, model: Path, seed: int, num_problems: int) -> JobRun:
    before = Usage.read(stack)
    job = stack.client.submit(
        PROBLEMS, small=model, policy="small-only", num_samples=NUM_SAMPLES, seed=seed, max_tokens=MAX_TOKENS,
        limit=num_problems, grader="none",
    )  # fmt: skip
    stack.client.wait(job, timeout_s=JOB_TIMEOUT_S)
    cpu_seconds = Usage.read(stack).seconds_since(before)
    [[state, seconds]] = stack.rows(f"""
        SELECT j.state, extract(epoch FROM max(s.finished_at) - j.first_claimed_at)::float8
        FROM samples s JOIN jobs j ON j.id = s.job_id WHERE j.id = {job.id} GROUP BY j.id
    """)
    if state != "completed":
        raise RuntimeError(f"job {job.id} ended {state}")
    rows = stack.rows(f"""
        SELECT g.token_ids FROM segments g JOIN samples s ON s.id = g.sample_id JOIN problems p ON p.id = s.problem_id
        WHERE s.job_id = {job.id} ORDER BY p.position, s.sample_index
    """)
    run = JobRun(token_ids=[row[0] for row in rows], seconds=seconds, cpu_seconds=cpu_seconds)
    require_whole(run.num_tokens, num_problems * NUM_SAMPLES)
    return run


def run_bare(engine: BareEngine, requests: Sequence[BareRequest]) -> Answered:
    answered = engine.run(requests)
    require_whole(answered.num_tokens, len(requests))
    return answered


def require_whole(num_tokens: int, num_texts: int) -> None:
    if num_tokens != num_texts * MAX_TOKENS:
        raise RuntimeError(f"not every text reached its limit: {num_tokens} tokens in {num_texts} texts")


def same_texts(run: JobRun, answered: Answered) -> float:
    """Share of the texts that are the same, id by id."""
    same = [ours == theirs for ours, theirs in zip(run.token_ids, answered.token_ids, strict=True)]
    return sum(same) / len(same)


def measure(report: Report, seeds: Sequence[int], folder: Path) -> None:
    """Figures are added after each repeat."""
    problems = load_problem_set(PROBLEMS).problems[:NUM_PROBLEMS]
    model = make_endless(folder / "endless-small")
    batches = {seed: requests_of(model, problems, seed) for seed in (0, *seeds)}
    bare: list[Answered] = []
    runs: list[JobRun] = []
    with BareEngine("LLM.generate", model) as engine, running_stack(small=model) as pipeline:
        run_bare(engine, batches[0][:128])  # not counted: the first steps of a process are slow
        run_job(pipeline, model, seed=0, num_problems=32)
        for seed in seeds:
            bare.append(run_bare(engine, batches[seed]))
            progress("LLM.generate", bare[-1].tokens_per_second, "tokens/s")
            runs.append(run_job(pipeline, model, seed, NUM_PROBLEMS))
            progress("pipeline", runs[-1].tokens_per_second, "tokens/s")
            add_pairs(report, bare, runs)
    with_async: list[Answered] = []
    with BareEngine("AsyncLLM", model) as engine:  # by itself: its processes spin
        run_bare(engine, batches[0][:128])
        for seed in seeds:
            with_async.append(run_bare(engine, batches[seed]))
            report.add("AsyncLLM", [answered.tokens_per_second for answered in with_async], "tokens/s")
    fastest = [max(rates.tokens_per_second for rates in pair) for pair in zip(bare, with_async, strict=True)]
    report.add(SHARE, [run.tokens_per_second / rate for run, rate in zip(runs, fastest, strict=True)])
    report.goal(SHARE, "≥", 0.90)


def add_pairs(report: Report, bare: Sequence[Answered], runs: Sequence[JobRun]) -> None:
    """What is known of the pipeline and ``LLM.generate`` so far."""
    report.add("LLM.generate", [answered.tokens_per_second for answered in bare], "tokens/s")
    report.add("pipeline", [run.tokens_per_second for run in runs], "tokens/s")
    same = [same_texts(run, answered) for run, answered in zip(runs, bare, strict=True)]
    report.add("texts as LLM.generate wrote them", same, "share")
    report.add("CPU: LLM.generate", [1e6 * run.cpu_seconds / run.num_tokens for run in bare], "µs/token")
    report.add("CPU: small worker", [1e6 * run.worker_cpu_seconds / run.num_tokens for run in runs], "µs/token")
    for part in runs[0].cpu_seconds:
        report.add(f"CPU: {part}", [1e6 * run.cpu_seconds[part] / run.num_tokens for run in runs], "µs/token")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seeds = range(1, repeats + 1)
    size = {"problems": NUM_PROBLEMS, "samples": NUM_SAMPLES, "max_tokens": MAX_TOKENS, "in_flight": 128}
    report = Report(bench="overhead", setting={**size, "seeds": list(seeds), "repeats": repeats})
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(report, seeds, Path(folder))
    finally:  # what was measured before a failure is worth knowing
        report.print()


if __name__ == "__main__":
    main()
