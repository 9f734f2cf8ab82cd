"""What a grade costs, by grader: mean, 95th and 99th percentile, in milliseconds of a core.

    python -m bench.grading [--repeats 3] [--texts 800]

``math`` grades the table of pairs of its tests (tests/unit/grading/math_pairs.py) and the demo problems, each with its
right answer and with a wrong one, boxed and stated; ``exact`` and ``choice`` the demo problems alike. ``code`` runs a
right and a wrong answer of one function in its sandbox, whose processes count. Time of a core does not depend on what
else the machine does; how long a grade takes by the clock does.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.measurement import Report, percentile
from pipeline.errors import GradingError
from pipeline.grading import Grader, make_grader
from pipeline.grading.code import CodeReference
from pipeline.grading.code.sandbox import find_fault
from pipeline.problems import load_problem_set
from tests.unit.grading.math_pairs import OTHERS, REPORTED

DEMO = Path(__file__).parents[1] / "examples" / "problems.jsonl"
CODE_GRADES = 40
CODE = CodeReference(tests="assert double(4) == 8\nassert double(0) == 0", entry_point="double").model_dump_json()


class Text(NamedTuple):
    """An answer's text, and the reference that it is graded against."""

    answer: str
    reference: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=800, help="of each grader at most so many")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    report = Report(bench="grading", setting=vars(arguments))
    for name, grader, every in arms():
        texts = every[: arguments.texts]
        for text in texts[:20]:
            cost_ms(grader, text)  # imports, and what a parser builds once
        costs = [[cost_ms(grader, text) for text in texts] for _ in range(repeats)]
        report.add(f"{name}, {len(texts)} texts: mean", [statistics.fmean(run) for run in costs], "ms")
        for percent in (95, 99):
            report.add(f"{name}, {len(texts)} texts: p{percent}", [percentile(run, percent) for run in costs], "ms")
    report.print()


def arms() -> list[tuple[str, Grader, Sequence[Text]]]:
    pairs = [pair for table in (*REPORTED.values(), OTHERS) for pair in table]
    numbers = [
        Text(form.format(answer), problem.answer or "")
        for problem in load_problem_set(DEMO).problems
        for answer in (problem.answer, str(int(problem.answer or 0) + 1))
        for form in (r"So the answer is $\boxed{{{}}}$.", "The final answer is {}.")
    ]
    letters = [Text(text.answer, "ABCD"[int(text.reference) % 4]) for text in numbers]
    found: list[tuple[str, Grader, Sequence[Text]]] = [
        ("math, pairs", make_grader("math"), [Text(rf"It is $\boxed{{{pair[1]}}}$.", pair[0]) for pair in pairs]),
        ("math, demo problems", make_grader("math"), numbers),
        ("exact, demo problems", make_grader("exact"), numbers),
        ("choice, demo problems", make_grader("choice"), letters),
    ]
    if (fault := find_fault()) is None:
        bodies = [f"```python\ndef double(x):\n    return {factor} * x\n```" for factor in (2, 3)]
        found.append(("code", make_grader("code"), [Text(body, CODE) for body in bodies * (CODE_GRADES // 2)]))
    else:
        print(f"code is not measured: {fault}", file=sys.stderr)
    return found


def cost_ms(grader: Grader, text: Text) -> float:
    """Processor time of this process and of those that it waited for."""
    before = cpu_s()
    with contextlib.suppress(GradingError):  # a reference that cannot be read costs time too
        grader.grade(text.answer, text.reference)
    return 1000 * (cpu_s() - before)


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
