"""The command plan: predicts how long a job takes."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import AsJson, StateDir, connect, make_group, settings_of
from pipeline.cli.render import console, duration, number, percent, print_json, table

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.planning.answers import DeadlinePlan, Plan

PANEL = "Questions"

commands = make_group()

_PLAN_EXAMPLES = """Examples:

specthink plan --job 3 --small-workers 12 --large-workers 4

specthink plan --job 3 --small-workers 12 --large-workers 4 --problems 500 --samples 16 --deadline 2h

specthink plan --job 3 --small-workers 700 --large-workers 300 --small-speedup 2 --json

specthink plan --job 3 --large-workers 2 --shared-cores 2

A simulation of the pools, fed with the segments and asides that the job stored: how long its samples are and how often
they are taken over or judged, how fast each engine writes by the number of samples beside each other, how long a
hand-over takes. Its numbers are as good as the job is like the one you plan: same models, policy and devices. Workers
of more than one GPU count as one.
"""

_UNITS_S = {"h": 3600, "m": 60, "s": 1}


@commands.command(rich_help_panel=PANEL, epilog=_PLAN_EXAMPLES)
def plan(
    context: typer.Context,
    job: Annotated[int, typer.Option(metavar="JOB", min=1, help="A job whose measured segments it is planned from.")],
    small_workers: Annotated[int | None, typer.Option(min=1, show_default="as the job had")] = None,
    large_workers: Annotated[int | None, typer.Option(min=1, show_default="as the job had")] = None,
    judge_workers: Annotated[int | None, typer.Option(min=1, show_default="as the job had")] = None,
    problems: Annotated[int | None, typer.Option(min=1, show_default="the job's")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Per problem.", show_default="the job's")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Samples that each worker writes at once.", show_default="as measured")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="2h30m", help="Also look for the fewest workers that meet it.")
    ] = None,
    small_speedup: Annotated[
        float, typer.Option(min=0.001, help="How many times as fast a small engine is as the measured one.")
    ] = 1.0,
    large_speedup: Annotated[
        float, typer.Option(min=0.001, help="How many times as fast a large engine is as the measured one.")
    ] = 1.0,
    judge_speedup: Annotated[
        float, typer.Option(min=0.001, help="How many times as fast a judge's engine is as the measured one.")
    ] = 1.0,
    shared_cores: Annotated[
        float | None,
        typer.Option(min=1, metavar="N", help="All engines share so many cores; without it each has a device."),
    ] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """How long a job would take on other numbers of workers, which pool is short, and what breaks first."""
    until = None if deadline is None else _parse_duration(deadline)
    with connect(context, state_dir) as client:
        source = client.job(job)
        found = client.plan(
            source,
            small_workers=small_workers,
            large_workers=large_workers,
            judge_workers=judge_workers,
            num_samples=(problems or source.num_problems) * (samples or source.num_samples),
            slots=slots,
            small_speedup=small_speedup,
            large_speedup=large_speedup,
            judge_speedup=judge_speedup,
            deadline=until,
            shared_cores=shared_cores,
            settings=settings_of(context, state_dir),
        )
    if as_json:
        print_json(found)
    else:
        _print_plan(found, console())


def _parse_duration(given: str) -> dt.timedelta:
    """2h, 90m, 1h30m, 45s."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", given)
    if not parts or "".join(amount + unit for amount, unit in parts) != given:
        raise typer.BadParameter(f"{given!r}: write 2h, 90m or 1h30m", param_hint="--deadline")
    seconds = sum(float(amount) * _UNITS_S[unit] for amount, unit in parts)
    if seconds <= 0:
        raise typer.BadParameter("give more than nothing", param_hint="--deadline")
    return dt.timedelta(seconds=seconds)


def _print_plan(plan: Plan, out: Console) -> None:
    part = f" of one {plan.one_in}th of the pools" if plan.one_in > 1 else ""
    out.print(
        f"{plan.num_samples} samples like those of job {plan.job_id}: {duration(plan.wall_s)}, "
        f"{number(plan.samples_per_s)} samples/s, {number(plan.tokens_per_s)} tokens/s, "
        f"{number(plan.hand_overs_per_s)} hand-overs/s (simulated: {plan.num_simulated} samples{part})"
    )
    columns = ["pool", "workers", "tokens/s", "busy", "slots taken", "waited s", "with", "time"]
    rows = [
        [
            pool.role.value, pool.num_workers, pool.tokens_per_s, percent(pool.busy), percent(pool.slots), pool.wait_s,
            pool.more_workers, duration(pool.wall_s_with_more),
        ]
        for pool in plan.pools
    ]  # fmt: skip
    out.print(table(columns, rows))
    out.print(f"short: {plan.short or 'no pool'}; {plan.why}", style="bold")
    if plan.deadline is not None:
        out.print(_deadline_line(plan.deadline), style="bold")
    columns = ["part", "asked for", "can do", "unit", "used", "full with"]
    rows = [
        [
            load.part, load.demand, load.capacity, load.unit, percent(load.load),
            "–" if load.breaks_at_workers is None else f"{load.breaks_at_workers} workers",
        ]
        for load in plan.parts
    ]  # fmt: skip
    out.print(table(columns, rows, title="what does not grow with the pools"))
    for place, load in enumerate(plan.parts):
        out.print(f"{'then' if place else 'breaks first'}: {load.part}. {load.what_then}. ({load.origin})")


def _deadline_line(found: DeadlinePlan) -> str:
    wanted = f"within {duration(found.deadline_s)}"
    if found.workers is None:
        return f"{wanted}: no number of workers does it; {found.why}"
    told = " and ".join(f"{count} {role.value}" for role, count in found.workers.items())
    return f"{wanted}: {told} workers, {duration(found.wall_s)}"
