"""Measure the demo pair without the pipeline: `python examples/evaluate.py`.

Prints accuracy, mean tokens and the large model's share for the small model alone, the large model alone and the
two together. `--split validation` measures on fresh problems that are not the shipped ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from demo_pair.evaluation import (
    Writer,
    score,
    start_writings,
    write_alone,
    write_as_pair,
)
from demo_pair.problems import Split, draw_problems

HERE = Path(__file__).parent
VALIDATION_SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--split", choices=("held_out", "validation"), default="held_out")
    parser.add_argument("--samples", type=int, default=4, help="samples of each problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--whole-takeovers",
        action="store_true",
        help="takeovers do not end with the step",
    )
    parser.add_argument("--show", type=int, default=0, help="print this many samples of the pair")
    args = parser.parse_args()

    torch.set_num_threads(1)
    problems, answers = load_problems(args.split)
    repeated_answers = [answer for answer in answers for _ in range(args.samples)]
    small, large = (Writer(args.models / name, seed=args.seed) for name in ("demo-small", "demo-large"))
    for label, writer in (("small alone", small), ("large alone", large)):
        writings = start_writings(writer, problems, args.samples)
        write_alone(writer, writings, is_large=writer is large)
        print(
            f"{label:12}",
            score(writings, repeated_answers, small.tokenizer),
            flush=True,
        )
        for writing in writings[: args.show]:
            print(small.tokenizer.decode(writing.tokens))
    writings = start_writings(small, problems, args.samples)
    write_as_pair(small, large, writings, to_step_end=not args.whole_takeovers)
    print(f"{'pair':12}", score(writings, repeated_answers, small.tokenizer))
    for writing in writings[: args.show]:
        print(small.tokenizer.decode(writing.tokens))


def load_problems(split: str) -> tuple[list[str], list[str]]:
    """Texts and answers of the shipped problems, or of as many validation problems."""
    if split == "validation":
        drawn = draw_problems(VALIDATION_SEED, Split.VALIDATION, 200)
        return [problem.text for problem in drawn], [str(problem.answer) for problem in drawn]
    rows = [json.loads(line) for line in (HERE / "problems.jsonl").read_text().splitlines()]
    return [row["problem"] for row in rows], [row["answer"] for row in rows]


if __name__ == "__main__":
    main()
