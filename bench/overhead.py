"""What the pipeline costs over the bare engine: its share of bare vLLM's tokens/s, one model, no takeovers.

    python -m bench.overhead [--repeats 3]

512 samples of 256 tokens (128 problems, 4 samples each; a model whose texts all reach their limit), 128 in flight. The
same prompts, seeds and limits go through bare ``LLM.generate``, bare ``AsyncLLM`` and the whole pipeline (Postgres,
Redis, Celery, a small worker, a grader, upkeep) in turn. Pipeline: from the job's first claim to its last commit.
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
from bench.stack import PROBLEMS, Stack, running_stack
from bench.usage import Usage
from pipeline.chat import ChatModel
from pipeline.problems import Problem, load_problem_set
from pipeline.prompts import render_user_message
from pipeline.samples import ModelRole
from workers.seeds import segment_seed

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
    stack.client.wait(job)
    cpu_seconds = Usage.read(stack).seconds_since(before)
    [[seconds]] = stack.rows(f"""
        SELECT extract(epoch FROM max(s.finished_at) - min(j.first_claimed_at))::float8
        FROM samples s JOIN jobs j ON j.id = s.job_id WHERE j.id = {job.id}
    """)
    rows = stack.rows(f"""
        SELECT g.token_ids FROM segments g JOIN samples s ON s.id = g.sample_id JOIN problems p ON p.id = s.problem_id
        WHERE s.job_id = {job.id} ORDER BY p.position, s.sample_index
    """)
    return JobRun(token_ids=[row[0] for row in rows], seconds=seconds, cpu_seconds=cpu_seconds)


def same_texts(run: JobRun, answered: Answered) -> int:
    return sum(ours == theirs for ours, theirs in zip(run.token_ids, answered.token_ids, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seeds = range(1, repeats + 1)
    problems = load_problem_set(PROBLEMS).problems[:NUM_PROBLEMS]
    size = {"problems": NUM_PROBLEMS, "samples": NUM_SAMPLES, "max_tokens": MAX_TOKENS, "in_flight": 128}
    report = Report(bench="overhead", setting={**size, "seeds": list(seeds), "repeats": repeats})
    with tempfile.TemporaryDirectory() as folder:
        model = make_endless(Path(folder) / "endless-small")
        batches = {seed: requests_of(model, problems, seed) for seed in (0, *seeds)}
        bare: list[Answered] = []
        runs: list[JobRun] = []
        with BareEngine("LLM.generate", model) as engine, running_stack(small=model) as pipeline:
            engine.run(batches[0][:128])  # not counted: the first steps of a process are slow
            run_job(pipeline, model, seed=0, num_problems=32)
            for seed in seeds:
                bare.append(engine.run(batches[seed]))
                progress("LLM.generate", bare[-1].tokens_per_second, "tokens/s")
                runs.append(run_job(pipeline, model, seed, NUM_PROBLEMS))
                progress("pipeline", runs[-1].tokens_per_second, "tokens/s")
        with BareEngine("AsyncLLM", model) as engine:  # by itself: its processes spin
            engine.run(batches[0][:128])
            with_async = [engine.run(batches[seed]) for seed in seeds]
    written = {run.num_tokens for run in runs} | {answered.num_tokens for answered in (*bare, *with_async)}
    if written != {len(batches[0]) * MAX_TOKENS}:
        raise RuntimeError("not every text reached its limit")
    report.add("AsyncLLM", [run.tokens_per_second for run in with_async], "tokens/s")
    report.add("LLM.generate", [run.tokens_per_second for run in bare], "tokens/s")
    report.add("pipeline", [run.tokens_per_second for run in runs], "tokens/s")
    fastest = [max(rates.tokens_per_second for rates in pair) for pair in zip(bare, with_async, strict=True)]
    report.add(SHARE, [run.tokens_per_second / rate for run, rate in zip(runs, fastest, strict=True)])
    report.goal(SHARE, "≥", 0.90)
    report.add("texts as LLM.generate wrote them", same_texts(runs[-1], bare[-1]) / len(batches[0]), "share")
    report.add("CPU: LLM.generate", [1e6 * run.cpu_seconds / run.num_tokens for run in bare], "µs/token")
    report.add("CPU: small worker", [1e6 * run.worker_cpu_seconds / run.num_tokens for run in runs], "µs/token")
    for part in runs[-1].cpu_seconds:
        report.add(f"CPU: {part}", [1e6 * run.cpu_seconds[part] / run.num_tokens for run in runs], "µs/token")
    report.print()


if __name__ == "__main__":
    main()
