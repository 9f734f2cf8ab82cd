"""The command sweep: policies and their numbers as jobs of one experiment, with one report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.asking import json_value
from pipeline.cli.calibration import parse_shares
from pipeline.cli.jobs import follow
from pipeline.cli.options import StateDir, connect, make_group, typed
from pipeline.cli.queries import destination, require_place
from pipeline.cli.render import console, print_json, table
from pipeline.texts import visible

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.experiments.plan import Axis, PlannedRow
    from pipeline.experiments.results import ExperimentReport

PANEL = "Jobs"

commands = make_group()

_EXAMPLES = """Examples:

specthink sweep triggers problems.jsonl --small a/s --large b/l --policies glimpse --grid glimpse.threshold=0.5,1,1.5
--baselines --controls --samples 4 --wait

specthink sweep triggers problems.jsonl --small a/s --large b/l --policies glimpse --pilot 7 --shares 0.05,0.1,0.2

specthink sweep triggers --controls --wait

specthink sweep triggers --format latex > table.tex

specthink sweep triggers --html triggers.html

Run it again: what the experiment has is not submitted again. KEY of --grid is policy.NAME, exit.NAME or guard.NAME, or
POLICY.NAME for one policy alone; every combination is a row. A control calls large as often and for as long as the job
that it is matched to, at random places, so it is submitted once that job has ended.
"""


_WITHOUT_FILE = ("controls", "wait", "format", "html")
"""Parameters of a sweep that say nothing of jobs to submit."""


@commands.command(rich_help_panel=PANEL, epilog=_EXAMPLES)
def sweep(
    context: typer.Context,
    experiment: Annotated[str, typer.Argument(metavar="NAME", help="Of the experiment.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Problems; without it nothing but controls is submitted.")
    ] = None,
    small: Annotated[str | None, typer.Option(help="Small model, as for submit.")] = None,
    large: Annotated[str | None, typer.Option(help="Large model, as for submit.")] = None,
    policies: Annotated[str | None, typer.Option(metavar="P1,P2,…", help="NAME[:PRESET] of each policy.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2,…", help="Vary an option; may be given again. Or KEY=[…], a JSON list."),
    ] = None,
    pilot: Annotated[
        int | None, typer.Option(min=1, metavar="JOB", help="With --shares: the pilot that thresholds come from.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(metavar="S1,S2,…", help="Wanted shares of steps by large, for each policy with a threshold."),
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also small-only and large-only.")] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also random takeovers matched to each row that has ended.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Solutions per problem.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, show_default="the experiment's, else a drawn one")] = None,
    temperature: Annotated[float | None, typer.Option(show_default="0.6")] = None,
    top_p: Annotated[float | None, typer.Option(show_default="0.95")] = None,
    top_k: Annotated[int | None, typer.Option(show_default="50", help="0: off.")] = None,
    max_tokens: Annotated[int | None, typer.Option(show_default="32768", help="Most output tokens per sample.")] = None,
    prompt: Annotated[str | None, typer.Option(show_default="math", help="Prompt template, as for submit.")] = None,
    grader: Annotated[str | None, typer.Option(show_default="math", help="As for submit.")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="A published set, as for submit.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when all jobs have ended, controls too; 1 if samples failed.")
    ] = False,
    format: Annotated[
        str, typer.Option("--format", metavar="table|markdown|latex|csv|json", help="Of the report.")
    ] = "table",
    html: Annotated[Path | None, typer.Option(help="Write the report as one self-contained page, too.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Submit policies and their numbers as jobs of one experiment, and report on it.

    The report comes with --wait, and without FILE.
    """
    from pipeline.experiments.tables import TableFormat

    if format not in tuple(TableFormat):
        raise typer.BadParameter(f"{format!r}: give one of {', '.join(TableFormat)}", param_hint="--format")
    if file is not None and not wait and (html is not None or "--format" in typed(context)):
        raise typer.BadParameter("the report comes with --wait, or later without FILE", param_hint="--format")
    if file is None and (others := typed(context, *_WITHOUT_FILE)):
        told = f"give the problems, too: {', '.join(others)} say what is to be submitted"
        raise typer.BadParameter(told, param_hint="FILE")
    rows = _planned(file, policies, grid or [], pilot, shares, baselines=baselines)
    require_place(html, option="--html")
    with connect(context, state_dir) as client:
        client.on_note(lambda note: typer.echo(visible(note), err=True))
        if file is not None:
            options = {
                "small": small, "large": large, "num_samples": samples, "seed": seed, "temperature": temperature,
                "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "prompt_template": prompt, "grader": grader,
                "recipe": recipe, "limit": limit,
            }  # fmt: skip
            client.sweep(experiment, rows, file, **options)  # type: ignore[arg-type]  # by name, checked there
        reports = wait or file is None
        if file is not None:
            _tell(client.experiment_jobs(experiment), err=reports)
        code = _follow(client, experiment, controls=controls, wait=wait, reports=reports)
        if reports:
            report = client.experiment(experiment)
            _print_report(report, TableFormat(format))
            if html is not None:
                _write_page(report, html)
    raise typer.Exit(code)


def _planned(
    file: Path | None, policies: str | None, grid: list[str], pilot: int | None, shares: str | None, *, baselines: bool
) -> list[PlannedRow]:
    """The rows that were asked for. Raises typer's errors for options that do not go together."""
    from pipeline.experiments.plan import Shares, plan_rows

    if file is None:
        return []
    if (pilot is None) != (shares is None):
        raise typer.BadParameter("--pilot JOB and --shares S1,S2,… go together", param_hint="--shares")
    wanted = None
    if pilot is not None and shares is not None:
        wanted = Shares(pilot=pilot, shares=tuple(parse_shares(shares, option="--shares")))
    names = [name.strip() for name in (policies or "").split(",") if name.strip()]
    return plan_rows(names, [_axis(text) for text in grid], shares=wanted, baselines=baselines)


def _axis(given: str) -> Axis:
    from pipeline.experiments.plan import Axis

    key, equals, text = given.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{given!r}: write KEY=V1,V2, as in policy.threshold=0.5,1", param_hint="--grid")
    if text.startswith("["):
        values: Any = json_value(text, option="--grid")
        return Axis(key=key, values=tuple(values))
    return Axis(key=key, values=tuple(json_value(value, option="--grid") for value in text.split(",") if value))


def _follow(client: Client, experiment: str, *, controls: bool, wait: bool, reports: bool) -> int:
    """Add what controls can be added, and wait for all jobs; the exit code."""
    jobs = client.experiment_jobs(experiment)
    code = follow(client, [*jobs]) if wait else 0
    if not controls or code == 130:
        return code
    added = [job.id for job in client.add_controls(experiment)]
    names = client.experiment_jobs(experiment)
    _tell({job_id: names[job_id] for job_id in added}, err=reports)
    if not wait:
        num_open = sum(not job.is_final for job in client.progress(*jobs))
        if num_open:
            typer.echo(f"{num_open} jobs still run; run this again for their controls, or give --wait", err=True)
        return code
    fresh = [job_id for job_id in names if job_id not in jobs]  # those of another who runs this sweep, too
    return max(code, follow(client, fresh) if fresh else 0)


def _tell(jobs: dict[int, str], *, err: bool) -> None:
    """Jobs with their rows, on stderr where a report follows."""
    for job_id, name in jobs.items():
        typer.echo(f"{job_id} {visible(name)}", err=err)
    sys.stdout.flush()


def _print_report(report: ExperimentReport, form: Any) -> None:
    from pipeline.experiments.tables import TableFormat, cells, columns, notes, render

    match form:
        case TableFormat.JSON:
            print_json(report)
        case TableFormat.TABLE:
            out = console()
            out.print(table(columns(report), [cells(row, report) for row in report.rows], title=report.name))
            for note in notes(report):
                out.print(note, soft_wrap=True)
        case _:
            sys.stdout.write(render(report, form))


def _write_page(report: ExperimentReport, html: Path) -> None:
    from pipeline.experiments.page import render_experiment

    page = render_experiment(report)
    with destination(html, option="--html") as stream:
        stream.write(page.encode())
    console(stderr=True).print(f"{len(page.encode()) / 1024:.0f} KiB in {html}")
