"""What each policy and exit is worth on the demo pair, with thresholds from a pilot of other problems.

    python -m bench.zoo [--limit 200] [--samples 4] [--pilot 100]

A pilot of small alone on validation problems, then two sweeps on the held-out ones: every policy, with random takeovers
at several rates beside them; and every exit, with its controls. Prints Markdown. The whole of it takes a quarter of
an hour to an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bench.stack import MODELS, PROBLEMS, REPOSITORY, Stack, running_stack
from pipeline.experiments.plan import Axis, PlannedRow, Shares, plan_rows
from pipeline.experiments.tables import TableFormat, render
from pipeline.jobs.config import JobState
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.results.jobs import Job

PILOT_SEED = 4711
ASKED: dict[str, Any] = {"small": MODELS["small"], "large": MODELS["large"], "max_tokens": 384, "seed": 7}
SHARES = (0.1, 0.2, 0.3)
HELD_UP = 3600.0
"""Seconds that one wait may take."""


def axes(**values: Sequence[Any]) -> list[Axis]:
    """``policy__n1=(20, 30)`` varies policy.n1."""
    return [Axis(key=key.replace("__", "."), values=tuple(each)) for key, each in values.items()]


def policy_rows(pilot: int) -> list[PlannedRow]:
    """Every policy, as it comes or with thresholds that the pilot gives."""
    shares = Shares(pilot=pilot, shares=SHARES)
    return [
        *plan_rows(["speculative-thinking:improved", "speculative-thinking:paper"], baselines=True),
        *plan_rows(["speculative-thinking:code"]),
        *plan_rows(["glimpse", "redo"], shares=shares),
        *plan_rows(["redo:trig"], axes(policy__first_steps=[0]), shares=Shares(pilot=pilot, shares=SHARES[1:2])),
        *plan_rows(["first-steps"], axes(policy__first_steps=[1, 2, 4])),
        *plan_rows(["specreason:doubt", "specreason:rating"]),
        *plan_rows(["mentor"], axes(policy__rate=[0.04, 0.24])),
        *plan_rows(["relay"], axes(policy__switch_cues=[["Second", "Fourth", "Sixth", "Eighth"]])),
        *plan_rows(
            ["random"], axes(policy__rate=[0.1, 0.2, 0.35, 0.6, 0.9], policy__handback=["break"], policy__tokens=[512])
        ),
    ]


def exit_rows() -> list[PlannedRow]:
    """Every exit that asks or reads, around Speculative Thinking; one around small alone, where it shortens thoughts.

    On this pair a step is a short line."""
    around = "speculative-thinking:improved"
    return [
        *plan_rows([around]),
        *(
            row
            for policy, name, values in (
                (around, "deer", axes(exit__at=["step"], exit__every_steps=[2])),
                (around, "large-extract", axes(exit__every_steps=[2])),
                (around, "agreement", axes(exit__every_steps=[1], exit__agree=[2])),
                (around, "think_brake", axes(exit__threshold=[10])),
                ("small-only", "agreement", axes(exit__every_steps=[1], exit__agree=[2])),
            )
            for row in plan_rows([policy], [*axes(exit__name=[name]), *values])
        ),
    ]


def pilot_problems(count: int) -> ProblemSet:
    """So many problems of the validation split, which nobody is scored on."""
    sys.path.insert(0, str(REPOSITORY / "examples"))
    from demo_pair.problems import Split, draw_problems

    drawn = draw_problems(PILOT_SEED, Split.VALIDATION, count)
    problems = tuple(
        Problem(external_id=f"pilot-{number:03}", prompt=each.text, answer=str(each.answer))
        for number, each in enumerate(drawn)
    )
    return ProblemSet(name="pilot", content_sha256=content_sha256(problems), problems=problems)


def finish(stack: Stack, jobs: Sequence[Job]) -> None:
    """Raises RuntimeError for a job of which a row would say less than it seems to."""
    for job in stack.client.wait(*jobs, timeout_s=HELD_UP):
        if job.state is not JobState.COMPLETED or job.failed:
            raise RuntimeError(f"job {job.job_id} ended {job.state}, {job.failed} of its samples failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limit", type=int, default=200, help="problems that are scored")
    parser.add_argument("--samples", type=int, default=4, help="of each of them")
    parser.add_argument("--pilot", type=int, default=100, help="problems of the pilot")
    given = parser.parse_args()
    asked = ASKED | {"limit": given.limit, "num_samples": given.samples}
    with running_stack(small=MODELS["small"], large=MODELS["large"]) as stack:
        client = stack.client
        pilot = client.submit(
            pilot_problems(given.pilot), small=MODELS["small"], policy="small-only", policy_values={"signals": "all"},
            num_samples=2, seed=11, max_tokens=384,
        )  # fmt: skip
        finish(stack, [pilot])
        for name, rows in (("policies", policy_rows(pilot.id)), ("exits", exit_rows())):
            finish(stack, client.sweep(name, rows, PROBLEMS, **asked))
            if name == "exits":
                finish(stack, client.add_controls(name))
            print(render(client.experiment(name), TableFormat.MARKDOWN), flush=True)


if __name__ == "__main__":
    main()
