"""The command calibrate: thresholds of policies, and words for relay, from the signals of a pilot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.jobs import parse_changes
from pipeline.cli.options import AsJson, JobId, StateDir, connect, make_group
from pipeline.cli.render import console, number, percent, print_json, table

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.calibration.calibrating import Calibration, StatisticReport
    from pipeline.calibration.cues import CueCalibration
    from pipeline.results.intervals import Interval

PANEL = "Questions"

commands = make_group()

_EXAMPLES = """Examples:

specthink submit pilot.jsonl --small a/s --policy small-only --set policy.signals=all --samples 2

specthink calibrate 7 --for problems.jsonl

specthink calibrate 7 --policy glimpse --share 0.1,0.2,0.3 --for 9

specthink calibrate 7 --statistic first_margin --side below --field exit.threshold --for set:2

specthink calibrate 9 --cues --for problems.jsonl: words for the policy relay

Statistics: first_entropy and first_margin at a step's first token; min_logprob, mean_logprob, confident_share (of its
tokens those with a perplexity below 1.05) and mean_margin over a step's tokens; aside:PURPOSE, by which asides were
decided. AUC: how often a wrong sample has a higher mean than a right one. Nothing is stored.
"""


@commands.command(rich_help_panel=PANEL, epilog=_EXAMPLES)
def calibrate(
    context: typer.Context,
    job: JobId,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME[:PRESET]", help="Whose threshold; without it every statistic.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A number of that policy; may be given again."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(metavar="S1,S2,…", help="Wanted shares by large.", show_default="0.05,0.1,0.2,0.3,0.5"),
    ] = None,
    of: Annotated[str, typer.Option(metavar="steps|tokens", help="What they are shares of.")] = "steps",
    statistic: Annotated[str | None, typer.Option(help="One statistic.", show_default="the policy's")] = None,
    side: Annotated[
        str | None,
        typer.Option(
            metavar="above|below", help="Where large is called.", show_default="the policy's, else the bad one"
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="What the threshold is set by.", show_default="policy.threshold"),
    ] = None,
    step_tokens: Annotated[
        float | None, typer.Option(min=1, help="Tokens of a step of large.", show_default="the pilot's mean step")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FILE|set:N|JOB",
            help="What will be scored; refused where it shares problems with the pilot.",
        ),
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also on problems that will be scored; says so.")] = False,
    cues: Annotated[
        bool, typer.Option("--cues", help="Words for the policy relay instead, of a pilot of large alone.")
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """From a pilot that stored signals: how each statistic is distributed, its sign, and thresholds for shares."""
    shares = None if share is None else parse_shares(share)
    policy_values = _policy_values(values or [], policy)
    target_given = int(target) if target is not None and target.isdigit() else target
    if cues:
        others = {"--policy": policy, "--share": share, "--statistic": statistic, "--side": side, "--field": field,
                  "--step-tokens": step_tokens, "--of": None if of == "steps" else of}  # fmt: skip
        _require_none(others)
        with connect(context, state_dir) as client:
            _show_cues(client.switch_cues(job, target=target_given, anyway=anyway), as_json=as_json)
        return
    with connect(context, state_dir) as client:
        found = client.calibrate(
            job,
            policy=policy,
            policy_values=policy_values,
            shares=shares,
            share_of=of,
            statistic=statistic,
            side=side,
            field=field,
            step_tokens=step_tokens,
            target=target_given,
            anyway=anyway,
        )
    if as_json:
        print_json(found)
        return
    out = console()
    for part in calibration_parts(found):
        out.print(part, style="yellow" if isinstance(part, str) else None)


def _require_none(given: Mapping[str, object]) -> None:
    """Raises BadParameter for an option that says nothing of cues."""
    named = [option for option, value in given.items() if value is not None]
    if named:
        raise typer.BadParameter("it is for thresholds, and --cues gives none; leave one out", param_hint=named[0])


SHOWN_CUES = 40
"""Rows of the table; JSON has all."""


def _show_cues(found: CueCalibration, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    columns = ["cue", "taken", "uses", "problems", "tokens behind it", "margin behind it", "95 % interval"]
    rows = [
        [
            report.cue, "yes" if report.cue in found.chosen else "", report.uses, report.num_problems, report.tokens,
            report.margin, interval(report.interval),
        ]
        for report in found.cues[:SHOWN_CUES]
    ]  # fmt: skip
    title = (
        f"pilot {found.job_id}: {found.num_problems} problems, {found.num_samples} samples, mean margin "
        f"{number(found.margin)}; taken: surer behind it than that"
    )
    out = console()
    out.print(table(columns, rows, title=title))
    if found.chosen:
        told = json.dumps(list(found.chosen), ensure_ascii=False, separators=(",", ":"))
        typer.echo(f"small would write about {percent(found.small_share)} of large's thoughts with")
        typer.echo(f"--set 'policy.switch_cues={told}'")
    for caveat in found.caveats:
        out.print(f"beware: {caveat}", style="yellow")


def parse_shares(given: str, *, option: str = "--share") -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(text) for text in given.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{given!r}: write numbers as in 0.1,0.2,0.3", param_hint=option) from error


def _policy_values(given: list[str], policy: str | None) -> dict[str, Any] | None:
    from pipeline.jobs.submission import part_values

    if given and policy is None:
        raise typer.BadParameter("it sets a number of a policy; give --policy, too", param_hint="--set")
    options = part_values(parse_changes(given))
    if options.keys() - {"policy_values"}:
        raise typer.BadParameter("only numbers of the policy matter here: policy.NAME", param_hint="--set")
    return options.get("policy_values")


def calibration_parts(found: Calibration) -> Iterator[Table | str]:
    """Tables, and notes as text."""
    yield _summary(found)
    for report in found.statistics:
        if report.thresholds:
            yield _thresholds(found, report)
    yield from (f"beware: {caveat}" for caveat in found.caveats)


def _summary(found: Calibration) -> Table:
    columns = ["statistic", "of", "places/sample", "mean", "5 %", "25 %", "50 %", "75 %", "95 %", "AUC",
               "95 % interval", "wrong samples are"]  # fmt: skip
    rows = [
        [
            report.name, report.role.value, report.places_per_sample, report.mean, *report.quantiles,
            report.separation.auc if report.separation else None,
            interval(report.separation.interval if report.separation else None), _told_sign(report),
        ]
        for report in found.statistics
    ]  # fmt: skip
    title = (
        f"pilot {found.job_id}: {found.num_problems} problems, {found.num_samples} samples of "
        f"{number(found.mean_tokens)} tokens, accuracy {percent(found.accuracy)}"
    )
    return table(columns, rows, title=title)


def _told_sign(report: StatisticReport) -> str:
    if report.separation is None:
        return "not known"
    bad_side = report.separation.bad_side
    return "on neither side" if bad_side is None else "high" if bad_side.value == "above" else "low"


def interval(found: Interval | None) -> str:
    return "–" if found is None else f"{number(found.low)} … {number(found.high)}"


def _thresholds(found: Calibration, report: StatisticReport) -> Table:
    columns = ["share", "reached", "95 % of the threshold", "takeovers/sample", "95 % interval", "large tokens/sample",
               "use"]  # fmt: skip
    rows = [
        [
            percent(row.wanted), f"{percent(row.share)} of steps", f"{number(row.low)} … {number(row.high)}",
            row.takeovers,
            "–" if row.takeovers_low is None else f"{number(row.takeovers_low)} … {number(row.takeovers_high)}",
            row.large_tokens, f"--set {found.field}={row.threshold:.10g}",
        ]
        for row in report.thresholds
    ]  # fmt: skip
    title = (
        f"{report.name} {report.side.value} a threshold, by share of {found.share_of.value}; a step of large taken as "
        f"{number(found.step_tokens)} tokens"
    )
    return table(columns, rows, title=title)
