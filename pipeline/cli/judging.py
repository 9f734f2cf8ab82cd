"""The command judge: a model says which answers of a job are correct."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.asking import asking
from pipeline.cli.jobs import announce, follow
from pipeline.cli.options import JobId, StateDir, connect, make_group, typed
from pipeline.cli.render import console

if TYPE_CHECKING:
    from pipeline.judging.reports import Verdicts

PANEL = "Jobs"

commands = make_group()

_EXAMPLES = """Examples:

specthink judge 3 --model org/large-32b --wait

specthink judge 3 --model org/large-32b --judge-template mine.txt --template-var enable_thinking=false

specthink judge 3 --apply 7

A template of your own is a text with {{question}}, {{answer}} or {{predicted_answer}}, and {{reference}}; it must ask
for a line "Verdict: correct" or "Verdict: incorrect". One without {{reference}} shows the judge no reference answer.
"""


@commands.command(rich_help_panel=PANEL, epilog=_EXAMPLES)
def judge(
    context: typer.Context,
    job: JobId,
    model: Annotated[
        str | None, typer.Option(help="The judge: a folder, or the name large workers serve it under.")
    ] = None,
    judge_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own text around question, answer and reference.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default="8192", help="Most tokens of a judge's text, thoughts included.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, show_default="0")] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default="a drawn one")] = None,
    max_answer_chars: Annotated[
        int | None, typer.Option(min=1, show_default="8000", help="Of an answer, show so much of its end.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT|@FILE", help="A system message for the judge.")] = None,
    template_var: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A variable of its chat template, e.g. enable_thinking=false; may be given again.",
        ),
    ] = None,
    think_tags: Annotated[
        str | None,
        typer.Option(metavar="OPEN,CLOSE", help="Tags around its thoughts, where the pipeline does not find them."),
    ] = None,
    expose_references: Annotated[
        bool,
        typer.Option(
            "--expose-references",
            help="Judge also while other jobs ask the same problems: their writers could read the reference answers.",
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Free text for people.")] = None,
    apply: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="JUDGE", help="Instead: make the verdicts of this judge's job, which has ended, grades."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when its verdicts are grades; 1 if an answer got no verdict.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Have a model judge the answers of a job that has ended, in a job of its own, and print that job's number.

    Its prompts show the reference answers, to the logins that write, too, until it is removed. Once it has ended, its
    verdicts are the grades of the judged samples.
    """
    if (model is None) == (apply is None):
        raise typer.BadParameter("give --model MODEL to judge, or --apply JUDGE", param_hint="--model")
    if apply is not None and (others := typed(context, "apply")):
        raise typer.BadParameter(f"it asks no model: leave out {', '.join(others)}", param_hint="--apply")
    with connect(context, state_dir) as client:
        if apply is not None:
            typer.echo(_told(client.apply_verdicts(job, apply), job))
            return
        assert model is not None
        client.on_note(lambda note: typer.echo(note, err=True))
        given = {
            "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "max_answer_chars": max_answer_chars,
        }  # fmt: skip
        made = client.judge(
            job,
            model=model,
            template=judge_template,
            **{option: value for option, value in given.items() if value is not None},  # type: ignore[arg-type]
            asking=asking(system, template_var, think_tags),
            expose_references=expose_references,
            name=name,
        )
        announce(client, made)
        if wait:
            code = follow(client, [made.id])
            if client.job(made.id).is_final:
                verdicts = client.apply_verdicts(job, made.id)
                console(stderr=True).print(_told(verdicts, job), soft_wrap=True)
                code = code or int(verdicts.num_unreadable > 0)
            raise typer.Exit(code)


def _told(verdicts: Verdicts, job_id: int) -> str:
    """What came of a judge, in a line."""
    parts = [f"{verdicts.num_correct:,} correct, {verdicts.num_incorrect:,} incorrect"]
    if verdicts.num_unreadable:
        parts.append(f"{verdicts.num_unreadable:,} without a verdict (specthink errors {job_id} says why)")
    if verdicts.num_unanswered:
        parts.append(f"{verdicts.num_unanswered:,} without an answer")
    if verdicts.num_redrawn:
        parts.append(f"{verdicts.num_redrawn:,} with another text by now, which keep their grades")
    return f"job {job_id}, judged by job {verdicts.judge_id}: {', '.join(parts)}; {verdicts.num_changed:,} new grades"
