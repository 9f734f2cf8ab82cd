"""How many times as many samples per second as loops that block: the same Speculative Thinking job, the same engines.

    python -m bench.reference [--repeats 3]

The demo pair, 200 problems, 4 samples each. Against it, in one process that has both models loaded: one sample at a
time (the first sample of 60 problems spread over the set, to stay in time), and all samples in lock-step. The loops
are bench/loops.py. Pipeline: from the job's first claim to its last commit.
"""

from __future__ import annotations

import argparse

from bench.jobs import DEMO, MAX_TOKENS, POLICY, Work, run_job
from bench.loops import LoopJob, Loops, Played
from bench.measurement import Report, progress
from bench.stack import MODELS, Stack, running_stack

NUM_SAMPLES = 4
NUM_ONE_BY_ONE = 60


def loop_job(seed: int, *, num_samples: int, every: int = 1, work: Work = DEMO) -> LoopJob:
    """every: take each so manieth problem of the set."""
    problems = work.problems()[::every]
    samples = [(problem.external_id, problem.prompt, index) for problem in problems for index in range(num_samples)]
    return LoopJob(
        policy=work.policy, policy_values=dict(work.policy_values), seed=seed, max_tokens=work.max_tokens,
        samples=samples,
    )  # fmt: skip


def share_of_same_texts(stack: Stack, job_id: int, played: Played, job: LoopJob) -> float:
    """How many of a loop's texts the pipeline wrote too, id by id."""
    rows = stack.rows(f"""
        SELECT p.external_id, s.sample_index, g.token_ids
        FROM segments g JOIN samples s ON s.id = g.sample_id JOIN problems p ON p.id = s.problem_id
        WHERE s.job_id = {job_id} ORDER BY s.id, g.segment_index
    """)  # fmt: skip
    ours: dict[tuple[str, int], list[int]] = {}
    for problem, index, token_ids in rows:
        ours.setdefault((problem, index), []).extend(token_ids)
    same = [ours[sample[0], sample[2]] == ids for sample, ids in zip(job.samples, played.token_ids, strict=True)]
    return sum(same) / len(same)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seeds = list(range(1, repeats + 1))
    setting = {"policy": POLICY, "samples_per_problem": NUM_SAMPLES, "max_tokens": MAX_TOKENS, "seeds": seeds}
    report = Report(bench="reference", setting={**setting, "one_by_one": NUM_ONE_BY_ONE, "repeats": repeats})
    rates: dict[str, list[float]] = {"one by one": [], "lock-step": [], "pipeline": []}
    runs, same = [], []
    with Loops() as loops, running_stack(small=MODELS["small"], large=MODELS["large"]) as stack:
        warm_up = loop_job(0, num_samples=1, every=10)  # not counted
        loops.play("lock_step", warm_up)
        run_job(stack, seed=0, num_samples=1, limit=64)
        for seed in seeds:
            few, all_of = loop_job(seed, num_samples=1), loop_job(seed, num_samples=NUM_SAMPLES)
            few.samples[:] = few.samples[:: len(few.samples) // NUM_ONE_BY_ONE][:NUM_ONE_BY_ONE]
            rates["one by one"].append(loops.play("one_by_one", few).samples_per_second)
            lock_step = loops.play("lock_step", all_of)
            rates["lock-step"].append(lock_step.samples_per_second)
            runs.append(run_job(stack, seed=seed, num_samples=NUM_SAMPLES))
            rates["pipeline"].append(runs[-1].samples_per_second)
            same.append(share_of_same_texts(stack, runs[-1].job_id, lock_step, all_of))
            for name, values in rates.items():
                progress(name, values[-1], "samples/s")
    for name, values in rates.items():
        report.add(name, values, "samples/s")
    for name in ("one by one", "lock-step"):
        ratios = [ours / theirs for ours, theirs in zip(rates["pipeline"], rates[name], strict=True)]
        report.add(f"pipeline ÷ {name}", ratios)
    report.goal("pipeline ÷ one by one", "≥", 25)
    report.add("takeovers", [run.takeovers / run.num_samples for run in runs], "per sample")
    report.add("texts that lock-step wrote too", same, "share")
    for part in runs[-1].cores():
        report.add(f"CPU: {part}", [run.cores()[part] for run in runs], "cores")
    report.print()


if __name__ == "__main__":
    main()
