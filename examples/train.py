"""Train the demo pair and write its held-out problems: `python examples/train.py`.

Deterministic on one machine: every draw is seeded and each model trains on one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from demo_pair.problems import Split, draw_problems
from demo_pair.tokenizer import train_tokenizer
from demo_pair.training import LARGE, SMALL, train_model

HERE = Path(__file__).parent
TOKENIZER_SEED = 1
PROBLEM_SEED = 20250417
NUM_PROBLEMS = 200


def main() -> None:
    recipes = {"small": SMALL, "large": LARGE}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        choices=recipes,
        help="train one of the two (so that both can run side by side)",
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=HERE / "models",
        help="folder the models are written into",
    )
    args = parser.parse_args()

    torch.set_num_threads(1)  # the same sums in the same order on any number of cores
    write_problems(HERE / "problems.jsonl")
    for role in [args.only] if args.only else recipes:
        recipe = recipes[role]
        seconds = train_model(recipe, train_tokenizer(TOKENIZER_SEED), args.models / recipe.name)
        print(f"{recipe.name}: {seconds / 60:.1f} minutes")


def write_problems(path: Path) -> None:
    """Write the held-out problem set, one JSON object a line."""
    problems = draw_problems(PROBLEM_SEED, Split.HELD_OUT, NUM_PROBLEMS)
    rows = (
        {
            "id": f"totals-{index:03}",
            "problem": problem.text,
            "answer": str(problem.answer),
            "level": problem.level,
        }
        for index, problem in enumerate(problems)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
