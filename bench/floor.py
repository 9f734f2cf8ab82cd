"""Wall time of a Speculative Thinking job against the least that its engines could take.

    python -m bench.floor [--repeats 3]

The demo pair, 200 problems, 4 samples each. The floor of a run is

    max(small tokens ÷ bare small rate, large tokens ÷ bare large rate)

with the tokens that the run's engines generated, discarded ones included. Each engine steps on one thread and has a
core of its own, so that the two overlap and the longer one counts; where there are fewer cores than engines, it is the
sum. The bare rates come from ``LLM.generate`` with 128 in flight, each model writing whole texts (its answers to the
same problems, from the first token to the end), while the other one is as busy in a process of its own. That favours
the floor: its large model has 128 in flight at any time and computes each prompt once, and nothing else has the cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import ExitStack

from bench.bare import BareEngine, BareRequest
from bench.jobs import DEMO, MAX_TOKENS, POLICY, Work, run_job
from bench.measurement import Report, progress
from bench.stack import MODELS, running_stack
from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.samples import WRITING_ROLES, ModelRole
from pipeline.seeds import segment_seed

NUM_SAMPLES = 4


def texts_of(
    role: ModelRole, seed: int, num_samples: int, work: Work = DEMO, limit: int | None = None
) -> list[BareRequest]:
    """What a job of this model alone asks of its engine, in the order in which its samples are admitted."""
    model = work.small if role is ModelRole.SMALL else work.large
    assert model is not None
    chat = ChatModel.load(model)
    return [
        BareRequest(
            prompt_ids=chat.prompt_ids(render_user_message("math", problem)),
            seed=segment_seed(
                job_seed=seed, problem_id=problem.external_id, sample_index=index, segment_index=0, role=role
            ),
            max_tokens=work.max_tokens,
        )
        for problem in work.problems(limit)
        for index in range(num_samples)
    ]


def contended_rates(engines: Mapping[ModelRole, BareEngine], seed: int) -> dict[ModelRole, float]:
    """Tokens/s of each engine while the other one, which has twice as many texts to write, is busy.

    Raises RuntimeError where the other one was not busy throughout.
    """
    rates = {}
    for role, engine in engines.items():
        other = next(name for name in engines if name is not role)
        engines[other].begin(texts_of(other, seed, 2 * NUM_SAMPLES))
        measured = engine.run(texts_of(role, seed, NUM_SAMPLES))
        busy_s = engines[other].answer().seconds
        if busy_s < measured.seconds:
            raise RuntimeError(
                f"{other.value} was busy for {busy_s:.1f} s only, {role.value} for {measured.seconds:.1f} s"
            )
        rates[role] = measured.tokens_per_second
    return rates


def floor_seconds(tokens: Mapping[str, int], rates: Mapping[ModelRole, float], *, take_turns: bool = False) -> float:
    """take_turns: the engines share a GPU, and only one of them computes at a time, whatever cores there are."""
    each = [tokens[role.value] / rate for role, rate in rates.items()]
    return max(each) if not take_turns and len(os.sched_getaffinity(0)) >= len(each) else sum(each)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seeds = list(range(1, repeats + 1))
    setting = {"policy": POLICY, "samples_per_problem": NUM_SAMPLES, "max_tokens": MAX_TOKENS, "seeds": seeds}
    report = Report(bench="floor", setting={**setting, "repeats": repeats})
    bare: dict[ModelRole, list[float]] = {role: [] for role in WRITING_ROLES}
    ratios, runs = [], []
    with ExitStack() as stack:
        engines = {role: stack.enter_context(BareEngine("LLM.generate", MODELS[role])) for role in WRITING_ROLES}
        pipeline = stack.enter_context(running_stack(small=MODELS["small"], large=MODELS["large"]))
        for role, engine in engines.items():  # not counted
            engine.run(texts_of(role, 0, 1)[:32])
        run_job(pipeline, seed=0, num_samples=1, limit=64)
        for seed in seeds:
            rates = contended_rates(engines, seed)
            run = run_job(pipeline, seed=seed, num_samples=NUM_SAMPLES)
            ratios.append(run.seconds / floor_seconds(run.tokens, rates))
            progress("job ÷ floor", ratios[-1], "")
            runs.append(run)
            for role, rate in rates.items():
                bare[role].append(rate)
    for role, values in bare.items():
        report.add(f"bare {role.value}, both busy", values, "tokens/s")
        report.add(f"{role.value} tokens of the job", [run.tokens[role.value] for run in runs])
    report.add("job", [run.seconds for run in runs], "s")
    report.add("job ÷ floor", ratios)
    report.goal("job ÷ floor", "≤", 1.25)
    report.add("takeovers", [run.takeovers / run.num_samples for run in runs], "per sample")
    for part in runs[-1].cores():
        report.add(f"CPU: {part}", [run.cores()[part] for run in runs], "cores")
    report.print()


if __name__ == "__main__":
    main()
