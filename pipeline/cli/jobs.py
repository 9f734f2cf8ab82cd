"""Commands about jobs that are there: clone, watch, pause, resume, cancel, retry, priority, grade again."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.asking import json_value
from pipeline.cli.options import JobId, StateDir, Wait, connect, make_group, once, settings_of
from pipeline.cli.render import console, counted
from pipeline.samples import ErrorClass, ModelRole

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.results.jobs import Job
    from pipeline.results.reports import JobProgress

PANEL = "Jobs"

commands = make_group()


def announce(client: Client, job: Job, *, wait: bool = False) -> None:
    """Print the number of a new job, and what it lacks; wait: stay until it has ended."""
    typer.echo(job.id)
    sys.stdout.flush()
    for lack in _unserved(client, job):
        console(stderr=True).print(lack, style="yellow", soft_wrap=True)
    if wait:
        raise typer.Exit(follow(client, [job.id]))


def _unserved(client: Client, job: Job) -> list[str]:
    """For each model that the job needs and no live worker serves, a sentence with the command that starts one."""
    [progress] = client.progress(job)
    live = {
        ModelRole.SMALL: progress.live_small_workers,
        ModelRole.LARGE: progress.live_large_workers,
        ModelRole.JUDGE: progress.live_judge_workers,
    }
    models = {ModelRole.SMALL: job.small_model, ModelRole.LARGE: job.large_model, ModelRole.JUDGE: job.judge_model}
    return [
        f"job {job.id} waits: no live {role} worker serves {models[role]}: "
        f"specthink worker {role} --model {models[role]} starts one"
        for role in ModelRole
        if role in job.config.build_policy().roles and not live[role]
    ]


def follow(client: Client, job_ids: list[int]) -> int:
    """Show progress on stderr until the jobs have ended; the exit code: 1 unless all completed, 130 if interrupted."""
    from pipeline.cli.live import ProgressDisplay

    err = console(stderr=True)
    try:
        with ProgressDisplay(client, err) as display:
            ended = client.wait(*job_ids, on_progress=display.show)
    except KeyboardInterrupt:
        ids = " ".join(map(str, job_ids))
        goes_on = f"job {ids} goes on" if len(job_ids) == 1 else f"jobs {ids} go on"
        err.print(f"{goes_on} without this command; to watch again: specthink watch {ids}", soft_wrap=True)
        if len(job_ids) == 1:
            err.print(f"to end it: specthink cancel {ids}")
        return 130
    return _exit_code(ended)


def _exit_code(ended: list[JobProgress]) -> int:
    from pipeline.jobs.config import JobState

    return 0 if all(job.state is JobState.COMPLETED for job in ended) else 1


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink watch 3 4")
def watch(
    context: typer.Context,
    jobs: Annotated[list[int], typer.Argument(metavar="JOB...", help="One job or several.")],
    state_dir: StateDir = None,
) -> None:
    """Show the live progress of jobs until they have ended; Ctrl-C leaves them running."""
    with connect(context, state_dir) as client:
        raise typer.Exit(follow(client, jobs))


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink pause 3")
def pause(context: typer.Context, job: JobId, state_dir: StateDir = None) -> None:
    """Stop writing for a job until it is resumed. What is being written goes back to its last stored segment."""
    with connect(context, state_dir) as client:
        change = client.pause(job)
    if change.is_new:
        typer.echo(f"job {job} paused, {counted(change.num_samples, 'sample')} taken back; specthink resume {job}")
    else:
        typer.echo(f"job {job} is paused already")


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink resume 3")
def resume(context: typer.Context, job: JobId, state_dir: StateDir = None) -> None:
    """Let a paused job go on where it was."""
    with connect(context, state_dir) as client:
        change = client.resume(job)
    if change.is_new:
        typer.echo(f"job {job} resumed, {counted(change.num_samples, 'sample')} at once and the rest as room allows")
    else:
        typer.echo(f"job {job} runs already")


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink cancel 3")
def cancel(context: typer.Context, job: JobId, state_dir: StateDir = None) -> None:
    """End a running or paused job for good. What is finished stays; workers drop the rest within two seconds."""
    with connect(context, state_dir) as client:
        change = client.cancel(job)
    if change.is_new:
        typer.echo(f"job {job} cancelled, {counted(change.num_samples, 'sample')} were still open")
    else:
        typer.echo(f"job {job} is cancelled already")


_RETRY_EXAMPLES = """Examples:

specthink retry 3

specthink retry 3 --class engine_died --class timed_out

specthink retry 3 --cut --max-tokens 32768

Failed samples go on from their last stored segment; specthink errors JOB lists them by class. Samples that were cut by
their budget are drawn again from the beginning: with the same seed they say the same and go on. A job that has ended
runs again for them.
"""


@commands.command(rich_help_panel=PANEL, epilog=_RETRY_EXAMPLES)
def retry(
    context: typer.Context,
    job: JobId,
    classes: Annotated[
        list[ErrorClass] | None, typer.Option("--class", help="Only samples that failed so; may be given again.")
    ] = None,
    cut: Annotated[bool, typer.Option("--cut", help="Instead, samples that their budget has cut.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="With --cut: the larger budget.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Try a job's failed samples again, or draw those again that its budget has cut."""
    if cut != (max_tokens is not None) or (cut and classes):
        raise typer.BadParameter("give --cut and --max-tokens N, or --class, or neither", param_hint="--cut")
    with connect(context, state_dir) as client:
        change = client.retry(job, classes=classes or [], cut=cut, max_tokens=max_tokens)
    what = f"cut by a budget below {max_tokens}" if cut else "failed"
    what += f" with {' or '.join(classes)}" if classes else ""
    if change.is_new:
        typer.echo(f"job {job}: {counted(change.num_samples, 'sample')} {what}, tried again; the job is {change.state}")
    else:
        typer.echo(f"job {job}: no sample is {what}; nothing to try again")


@commands.command(
    rich_help_panel=PANEL,
    epilog="Example: specthink priority 3 10",
    context_settings={"ignore_unknown_options": True},  # so that -5 is a number
)
def priority(
    context: typer.Context,
    job: JobId,
    number: Annotated[int, typer.Argument(metavar="N", help="From -1000 to 1000; 0 at first.")],
    state_dir: StateDir = None,
) -> None:
    """Have a job's samples admitted before those of jobs with a lower number; older jobs first among equals."""
    with connect(context, state_dir) as client:
        change = client.set_priority(job, number)
    typer.echo(f"job {job} has priority {number}{'' if change.is_new else ' already'}")


_CLONE_EXAMPLES = """Examples:

specthink clone 3 --set sampling.temperature=0.9 --set num_samples=8

specthink clone 3 --set policy=code

specthink clone 3 --set policy.n1=30 --set seed=1 --wait

specthink clone 3 --set limit=null --set small=org/other-1b

A wrong KEY lists those there are.
"""


@commands.command(rich_help_panel=PANEL, epilog=_CLONE_EXAMPLES)
def clone(
    context: typer.Context,
    job: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of its configuration; may be given again."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Free text for people.", show_default="derived")] = None,
    wait: Wait = False,
    state_dir: StateDir = None,
) -> None:
    """Store a new job on the same problems with some values changed, and print its number."""
    given = parse_changes(changes or [])
    with connect(context, state_dir) as client:
        announce(client, client.clone(job, given, name=name), wait=wait)


def parse_changes(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE by key; lists, objects, quoted text, true, false and null are read as JSON."""
    return once(map(_change, given), option="--set")


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r}: write KEY=VALUE, as in sampling.temperature=0.9", param_hint="--set")
    return key, json_value(value, option="--set")


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink grade 3")
def grade(context: typer.Context, job: JobId, state_dir: StateDir = None) -> None:
    """Grade a job's complete samples again with the present graders, also those whose grading timed out or broke.

    Nothing is generated.
    """
    environment = {**os.environ, "SPECTHINK_STATE_DIR": str(settings_of(context, state_dir).state_dir)}
    os.execve(sys.executable, [sys.executable, "-m", "workers", "grade-again", str(job)], environment)
