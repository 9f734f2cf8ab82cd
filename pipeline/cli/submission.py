"""The command that submits a job: its options, made a ``Submission``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.asking import (
    RoleStopStrings,
    RoleSystem,
    RoleTemplateVariables,
    StopStrings,
    System,
    TemplateVariables,
    ThinkTagsOption,
    asking,
    stop_strings,
)
from pipeline.cli.jobs import PANEL, announce, parse_changes
from pipeline.cli.options import StateDir, Wait, connect, make_group, once
from pipeline.samples import CutSamples
from pipeline.texts import visible

if TYPE_CHECKING:
    from pipeline.jobs.few_shot import FewShotFile
    from pipeline.problems import ColumnNames

commands = make_group()

_SUBMIT_EXAMPLES = """Examples:

specthink submit problems.jsonl --small org/small-1b --large org/large-32b

specthink submit gsm8k.csv --column problem=question --column answer=solution --large ./models/big --policy large-only

specthink submit mmlu.parquet --small a/s --large b/l --prompt choice --grader choice --samples 8 --wait

specthink submit test.jsonl --recipe math500 --small a/s --large b/l --policy speculative-thinking:paper

specthink submit hf:openai/gsm8k --small a/s --large b/l · specthink submit --recipe gsm8k --small a/s --large b/l

specthink submit problems.jsonl --small a/s --large b/l --set policy.n1=30 --set 'policy.cues.verify=["let me see"]'

specthink submit problems.jsonl --small a/s --large b/l --set exit.thinking_tokens=4000 --set guard.repeats=3

specthink submit problems.jsonl --small a/s --large b/l --exit deer --set exit.confidence=0.97

specthink submit problems.jsonl --small a/s --large b/l --policy random --matched-to 1

specthink submit problems.jsonl --small a/s --large b/l --dry-run

Recipes of the paper: math500, aime, gpqa-diamond, amc23. Each reads your copy of the set, or the one on the hub, in its
published columns, and asks, samples and grades as the paper did; options given beside it win. Others: gsm8k, math,
svamp, olympiadbench, mmlu, mmlu-pro, arc, aqua and more; a wrong name lists them.
"""


@commands.command(rich_help_panel=PANEL, epilog=_SUBMIT_EXAMPLES)
def submit(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            show_default="the recipe's set on the hub",
            help="Problems: .jsonl, .json, .csv, .tsv or .parquet, a folder of such, - for standard input, or "
            "hf:OWNER/SET[:CONFIG][@REVISION][#SPLIT].",
        ),
    ] = None,
    small: Annotated[
        str | None, typer.Option(help="Small model: a folder, or the name workers serve it under.")
    ] = None,
    large: Annotated[
        str | None, typer.Option(help="Large model: a folder, or the name workers serve it under.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Model that says how good steps are, for policies that ask one: a folder or served name."),
    ] = None,
    small_revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Of the hub: only a worker that was started with it writes.")
    ] = None,
    large_revision: Annotated[str | None, typer.Option(metavar="REVISION", help="For the large model.")] = None,
    judge_revision: Annotated[str | None, typer.Option(metavar="REVISION", help="For the judge.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:PRESET]",
            show_default="speculative-thinking:improved; improved-instruct where small has no think phase",
            help="Who writes what; FILE.py:CLASS tries a policy of your own from a file.",
        ),
    ] = None,
    exit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What ends the think phase early: cut, random, deer, agreement, large-extract, think_brake.",
        ),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a number of policy, exit or guard; may be given again."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Solutions per problem.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, show_default="a drawn one", help="Of all random draws; stored in the job.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(show_default="0.6")] = None,
    top_p: Annotated[float | None, typer.Option(show_default="0.95")] = None,
    top_k: Annotated[int | None, typer.Option(show_default="50", help="0: off.")] = None,
    max_tokens: Annotated[int | None, typer.Option(show_default="32768", help="Most output tokens per sample.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(show_default="math", help="Prompt template: math, choice, free, paper-math or paper-choice."),
    ] = None,
    prompt_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Your own template: a text with {{problem}}, {{choices}} and {{COLUMN}} in it."
        ),
    ] = None,
    few_shot: Annotated[
        str | None,
        typer.Option(metavar="FILE:N", help="Show N problems of this file, with their answers, before each problem."),
    ] = None,
    few_shot_seed: Annotated[
        int | None, typer.Option(min=0, show_default="the job's seed", help="Of the draw of those N.")
    ] = None,
    grader: Annotated[
        str | None, typer.Option(show_default="math", help="math, exact, choice, none, or FILE.py:CLASS.")
    ] = None,
    cut_samples: Annotated[
        CutSamples, typer.Option(help="What a sample counts as that was cut before it stated an answer.")
    ] = CutSamples.WRONG,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A published set, in its published columns.")
    ] = None,
    matched_to: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="JOB",
            help="--policy random: take over as often and as long as that job. --exit cut or random: think as long.",
        ),
    ] = None,
    calibrated_from: Annotated[
        str | None,
        typer.Option(
            metavar="JOB[:SHARE]",
            help="The pilot of the policy's threshold; with SHARE the threshold is computed of it.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many problems.")] = None,
    name: Annotated[str | None, typer.Option(help="Free text for people.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=COLUMN",
            help="Name a column: problem=…, answer=…, id=…, subject=…, level=…, choices=…; A+B joins two, a.b reaches "
            "into one, PART= does without.",
        ),
    ] = None,
    answer_as: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="What the answer column holds: letter, label, index0, index1 or text of a choice; hashes or boxed of "
            "a worked solution; one-of or all-of a list.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Let those who generate read this column too; all others are hidden."),
    ] = None,
    min_p: Annotated[float | None, typer.Option(show_default="0", help="0: off.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(show_default="0")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(show_default="0")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(show_default="1", help="1: off.")] = None,
    small_temperature: Annotated[float | None, typer.Option(show_default="as both")] = None,
    large_temperature: Annotated[float | None, typer.Option(show_default="as both")] = None,
    small_top_p: Annotated[float | None, typer.Option(show_default="as both")] = None,
    large_top_p: Annotated[float | None, typer.Option(show_default="as both")] = None,
    small_top_k: Annotated[int | None, typer.Option(show_default="as both")] = None,
    large_top_k: Annotated[int | None, typer.Option(show_default="as both")] = None,
    system: System = None,
    small_system: RoleSystem = None,
    large_system: RoleSystem = None,
    judge_system: RoleSystem = None,
    template_var: TemplateVariables = None,
    small_template_var: RoleTemplateVariables = None,
    large_template_var: RoleTemplateVariables = None,
    judge_template_var: RoleTemplateVariables = None,
    think_tags: ThinkTagsOption = None,
    small_think_tags: ThinkTagsOption = None,
    large_think_tags: ThinkTagsOption = None,
    judge_think_tags: ThinkTagsOption = None,
    stop: StopStrings = None,
    small_stop: RoleStopStrings = None,
    large_stop: RoleStopStrings = None,
    wait: Wait = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Store nothing: show the first prompts, what was found, and what is missing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Store a job and print its number. Workers do the rest; the command need not stay."""
    from pipeline.jobs.submission import Submission, part_values

    if as_json and not dry_run:
        raise typer.BadParameter("it goes with --dry-run alone", param_hint="--json")
    if wait and dry_run:
        raise typer.BadParameter("a dry run stores no job to wait for", param_hint="--wait")

    submission = Submission.parse(
        problems=_problems(file, recipe),
        columns=_columns(column or [], answer_as),
        keep=tuple(keep or ()),
        recipe=recipe,
        small=small,
        large=large,
        judge=judge,
        small_revision=small_revision,
        large_revision=large_revision,
        judge_revision=judge_revision,
        **({} if policy is None else {"policy": policy}),
        matched_to=matched_to,
        calibrated_from=_pilot(calibrated_from),
        **part_values(parse_changes(values or []), exit=exit),
        num_samples=samples,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        stop=stop_strings(stop),
        small_sampling={
            "temperature": small_temperature,
            "top_p": small_top_p,
            "top_k": small_top_k,
            "stop": stop_strings(small_stop),
        },
        large_sampling={
            "temperature": large_temperature,
            "top_p": large_top_p,
            "top_k": large_top_k,
            "stop": stop_strings(large_stop),
        },
        **asking(system, template_var, think_tags),
        small_asking=asking(small_system, small_template_var, small_think_tags),
        large_asking=asking(large_system, large_template_var, large_think_tags),
        judge_asking=asking(judge_system, judge_template_var, judge_think_tags),
        max_tokens=max_tokens,
        prompt_template=prompt,
        prompt_file=prompt_template,
        few_shot=_few_shot(few_shot, few_shot_seed),
        grader=grader,
        cut_samples=cut_samples,
        limit=limit,
        name=name,
    )
    if dry_run:
        from pipeline.cli.dry_run import look, print_dry_run

        print_dry_run(look(context, state_dir, submission), as_json=as_json)
        return
    with connect(context, state_dir) as client:
        client.on_note(lambda note: typer.echo(visible(note), err=True))
        announce(client, client.submit(submission), wait=wait)


def _problems(file: Path | None, recipe: str | None) -> Path:
    from pipeline.jobs.recipes import find_recipe

    if file is not None:
        return file
    if recipe is None:
        raise typer.BadParameter("name the problems, or a recipe", param_hint="FILE")
    published = find_recipe(recipe).hub
    if published is None:
        raise typer.BadParameter(f"the recipe {recipe!r} is of no set of a hub: name your copy", param_hint="FILE")
    return Path(f"hf:{published}")


def _pilot(given: str | None) -> dict[str, Any] | None:
    """JOB or JOB:SHARE."""
    if given is None:
        return None
    job, colon, share = given.partition(":")
    try:
        return {"job": int(job), "share": float(share) if colon else None}
    except ValueError as error:
        raise typer.BadParameter(
            f"{given!r}: write JOB or JOB:SHARE, as in 7:0.2", param_hint="--calibrated-from"
        ) from error


def _few_shot(given: str | None, seed: int | None) -> FewShotFile | None:
    from pipeline.jobs.few_shot import FewShotFile

    if given is None:
        if seed is not None:
            raise typer.BadParameter("it goes with --few-shot FILE:N", param_hint="--few-shot-seed")
        return None
    file, _, count = given.rpartition(":")
    if not file or not count.isdigit() or not 1 <= int(count) <= 100:
        raise typer.BadParameter(f"{given!r}: write FILE:N, N from 1 to 100", param_hint="--few-shot")
    return FewShotFile(file=Path(file), count=int(count), seed=seed)


def _column(text: str) -> tuple[str, str]:
    from pipeline.problems.columns import PARTS

    part, equals, column = text.partition("=")
    if part not in PARTS or not equals:
        raise typer.BadParameter(f"{text!r}: write PART=COLUMN, PART one of {', '.join(PARTS)}", param_hint="--column")
    return part, column


def _columns(given: list[str], answer_as: str | None) -> ColumnNames:
    from pipeline.problems import AnswerForm, ColumnNames

    named = once(map(_column, given), option="--column")
    if answer_as is not None and answer_as not in tuple(AnswerForm):
        raise typer.BadParameter(f"{answer_as!r}: give one of {', '.join(AnswerForm)}", param_hint="--answer-as")
    return ColumnNames(**named, answer_as=None if answer_as is None else AnswerForm(answer_as))
