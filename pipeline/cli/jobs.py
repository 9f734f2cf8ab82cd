"""Commands about jobs: submit, watch, cancel, grade again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import JobId, StateDir, app, connect, settings_of
from pipeline.cli.render import console

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.problems import ColumnNames
    from pipeline.reports import JobProgress

PANEL = "Jobs"

_SUBMIT_EXAMPLES = """Examples:

specthink submit problems.jsonl --small org/small-1b --large org/large-32b

specthink submit gsm8k.csv --column problem=question --column answer=solution --large ./models/big --policy large-only

specthink submit mmlu.parquet --small a/s --large b/l --prompt choice --grader choice --samples 8 --wait

specthink submit test.jsonl --recipe math500 --small a/s --large b/l --policy speculative-thinking:paper

specthink submit problems.jsonl --small a/s --large b/l --policy random --matched-to 1

Recipes: math500, aime, gpqa-diamond, amc23. Each reads your copy of the set in its published columns, and asks, samples
and grades as the paper did; options given beside it win.
"""


@app.command(rich_help_panel=PANEL, epilog=_SUBMIT_EXAMPLES)
def submit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Problems: .jsonl, .csv or .parquet.")],
    small: Annotated[
        str | None, typer.Option(help="Small model: a folder, or the name workers serve it under.")
    ] = None,
    large: Annotated[str | None, typer.Option(help="Large model, likewise.")] = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME[:PRESET]", help="Who writes what.")
    ] = "speculative-thinking:improved",
    samples: Annotated[int, typer.Option(min=1, help="Solutions per problem.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of all random draws.")] = 0,
    temperature: Annotated[float | None, typer.Option(show_default="0.6")] = None,
    top_p: Annotated[float | None, typer.Option(show_default="0.95")] = None,
    top_k: Annotated[int | None, typer.Option(show_default="50", help="0: off.")] = None,
    max_tokens: Annotated[int | None, typer.Option(show_default="32768", help="Most output tokens per sample.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(show_default="math", help="Prompt template: math, choice, free, paper-math or paper-choice."),
    ] = None,
    grader: Annotated[str | None, typer.Option(show_default="math", help="math, exact, choice or none.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the paper's sets, in its published columns.")
    ] = None,
    matched_to: Annotated[
        int | None,
        typer.Option(min=1, metavar="JOB", help="For --policy random: take over as often and as long as that job did."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    name: Annotated[str | None, typer.Option(help="Free text for people.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="PART=COLUMN", help="Name a column: problem=…, answer=…, id=…, subject=…, level=…."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended; 1 if samples failed.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Store a job and print its number. Workers do the rest; the command need not stay."""
    columns = _columns(column or [])
    with connect(context, state_dir) as client:
        job = client.submit(
            file,
            small=small,
            large=large,
            policy=policy,
            num_samples=samples,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_tokens=max_tokens,
            limit=limit,
            name=name,
            prompt_template=prompt,
            grader=grader,
            columns=columns,
            recipe=recipe,
            matched_to=matched_to,
        )
        typer.echo(job.id)
        sys.stdout.flush()
        if wait:
            raise typer.Exit(_follow(client, [job.id]))


def _columns(given: list[str]) -> ColumnNames:
    from dataclasses import fields

    from pipeline.problems import ColumnNames

    parts = [field.name for field in fields(ColumnNames)]
    named = {}
    for text in given:
        part, _, column = text.partition("=")
        if part not in parts or not column:
            raise typer.BadParameter(
                f"{text!r}: write PART=COLUMN, PART one of {', '.join(parts)}", param_hint="--column"
            )
        named[part] = column
    return ColumnNames(**named)


def _follow(client: Client, job_ids: list[int]) -> int:
    """Show progress on stderr until the jobs have ended; the exit code: 1 unless all completed."""
    from pipeline.cli.live import ProgressDisplay

    with ProgressDisplay(client, console(stderr=True)) as display:
        ended = client.wait(*job_ids, on_progress=display.show)
    return _exit_code(ended)


def _exit_code(ended: list[JobProgress]) -> int:
    from pipeline.jobs import JobState

    return 0 if all(job.state is JobState.COMPLETED for job in ended) else 1


@app.command(rich_help_panel=PANEL, epilog="Example: specthink watch 3 4")
def watch(
    context: typer.Context,
    jobs: Annotated[list[int], typer.Argument(metavar="JOB...", help="One job or several.")],
    state_dir: StateDir = None,
) -> None:
    """Show the live progress of jobs until they have ended; Ctrl-C leaves them running."""
    with connect(context, state_dir) as client:
        raise typer.Exit(_follow(client, jobs))


@app.command(rich_help_panel=PANEL, epilog="Example: specthink cancel 3")
def cancel(context: typer.Context, job: JobId, state_dir: StateDir = None) -> None:
    """End a running job. What is finished stays; workers drop the rest within seconds."""
    with connect(context, state_dir) as client:
        count = client.cancel(job)
    typer.echo(f"job {job} cancelled, {count} samples were still open")


@app.command(rich_help_panel=PANEL, epilog="Example: specthink grade 3")
def grade(context: typer.Context, job: JobId, state_dir: StateDir = None) -> None:
    """Grade a job's complete samples again with the present graders. Nothing is generated."""
    environment = {**os.environ, "SPECTHINK_STATE_DIR": str(settings_of(context, state_dir).state_dir)}
    os.execve(sys.executable, [sys.executable, "-m", "workers", "grade-again", str(job)], environment)
