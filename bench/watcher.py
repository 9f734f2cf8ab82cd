"""What reading along costs: nanoseconds per token of the policy's watcher.

    python -m bench.watcher

By how often breaks come; and the share of one core at 5,000 tokens/s.
"""

from __future__ import annotations

import time
from random import Random

from bench.measurement import Report, Spread
from pipeline.policies import parse_policy
from pipeline.policies.protocol import SampleContext

NUM_TOKENS = 20_000
REPEATS = 7
TOKENS_PER_SECOND = 5_000
WORDS = ["", "the", "sum", "of", "both", "sides", "is", "seven", "plus", "x", "so", "we", "have", "a", "number"]


def text_with_breaks(every: int | None) -> list[str]:
    """Token texts without any cue; a break after so many tokens."""
    random = Random(0)  # a text that repeats would end at the loop guard
    texts = [f" {random.choice(WORDS)}" for _ in range(NUM_TOKENS)]
    if every is not None:
        texts[every - 1 :: every] = [".\n\n"] * len(texts[every - 1 :: every])
    return texts


def nanoseconds_per_token(texts: list[str]) -> float:
    policy = parse_policy("speculative-thinking:improved").build()
    context = SampleContext(
        job_seed=0, problem_id="p", sample_index=0, max_tokens=10**6, think_end="</think>", num_prompt_tokens=0
    )
    watcher = policy.watcher(context, policy.start(context).state)
    assert watcher is not None
    start = time.perf_counter_ns()
    for text in texts:
        if watcher.feed(text):
            raise RuntimeError(f"the watcher ended a text without a cue at {text!r}")
    return (time.perf_counter_ns() - start) / len(texts)


def main() -> None:
    report = Report(bench="watcher", setting={"tokens": NUM_TOKENS, "repeats": REPEATS, "seed": 0})
    for name, every in (("no break", None), ("every 120 tokens", 120), ("every 13 tokens", 13)):
        texts = text_with_breaks(every)
        cost = Spread.of([nanoseconds_per_token(texts) for _ in range(REPEATS)])
        report.add(name, cost, "ns/token")
        report.add(f"{name}: share of a core", cost.median * TOKENS_PER_SECOND / 1e9)
    report.print()


if __name__ == "__main__":
    main()
