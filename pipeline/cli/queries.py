"""Commands that only read: status, results, stats, errors, compare, report, sample, replay, sql."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from pipeline.cli.options import AsJson, JobId, StateDir, connect, make_group
from pipeline.cli.render import (
    comparison_table,
    console,
    cost_table,
    duration,
    print_json,
    print_rows,
    print_sample,
    summary_table,
    table,
)
from pipeline.cli.stats_tables import errors_table, stats_parts
from pipeline.results.advice import few_takeovers, partial_results, shared_time, unreadable, with_mark
from pipeline.results.exports import ExportFormat
from pipeline.texts import VisibleStream, visible

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.client import Client
    from pipeline.results.reports import JobProgress
    from pipeline.workforce import WorkerReport

PANEL = "Questions"
STANDARD_OUTPUT = Path("-")

commands = make_group()


@commands.command(rich_help_panel=PANEL, epilog="Examples: specthink status · specthink status 3 --json")
def status(
    context: typer.Context,
    job: Annotated[int | None, typer.Argument(metavar="[JOB]", help="One job; without it the newest ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs listed.")] = 20,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """How far jobs are, and what they wait for."""
    with connect(context, state_dir) as client:
        jobs = {listed.id: listed for listed in ([client.job(job)] if job is not None else client.jobs(limit))}
        progress = [with_mark(row, jobs[row.job_id]) for row in client.progress(*jobs)[::-1]]
        workers, leader = client.workers(), client.leader()
    if as_json:
        print_json({"jobs": progress, "workers": workers, "leader": leader})
        return
    out = console()
    _print_progress(out, progress)
    for row in progress:
        advice = few_takeovers(jobs[row.job_id], row)
        if advice:
            out.print(advice, style="yellow")
    columns = ["worker", "kind", "model", "host", "pid", "writes", "tokens"]
    rows = [[w.id, w.kind, w.model, w.host, w.pid, _writes(w), w.tokens_generated] for w in workers]
    out.print(table(columns, rows) if rows else "no live workers; specthink up or specthink worker starts some")
    for worker in workers:
        if worker.engine_arguments:
            given = " ".join(f"{name}={value}" for name, value in worker.engine_arguments.items())
            out.print(f"engine of worker {worker.id}: {given}", soft_wrap=True)
        if worker.acceptance:
            out.print(f"drafts of worker {worker.id}: {worker.acceptance}", soft_wrap=True, markup=False)
    if leader:
        out.print(
            f"worker {leader.worker_id} on {visible(leader.host)} leads since {leader.since:%Y-%m-%d %H:%M:%S %Z}"
        )
    elif any(worker.kind == "upkeep" for worker in workers):
        out.print("no upkeep worker leads: no job goes on until one does", style="yellow")


def _print_progress(out: Console, progress: list[JobProgress]) -> None:
    """A table that fits 80 columns: columns of zeros are left out, what jobs wait for is below."""
    from pipeline.results.pace import written

    if not progress:
        out.print("no jobs yet; specthink submit FILE makes one")
        return
    columns: dict[str, list[object]] = {
        "job": [row.job_id for row in progress],
        "name": [row.name for row in progress],
        "state": [row.state.value.replace("_", " ") for row in progress],
        "priority": [row.priority for row in progress],
        "written": [f"{written(row)}/{row.samples_total}" for row in progress],
        "small": [row.ready + row.drafting for row in progress],
        "large": [row.awaiting_large + row.assisting for row in progress],
        "judge": [row.awaiting_judge + row.judging for row in progress],
        "to grade": [row.finished for row in progress],
        "failed": [row.failed for row in progress],
        "time": [duration(row.seconds) for row in progress],
    }
    shown = {name: cells for name, cells in columns.items() if name not in _SHOWN_IF_ANY or any(cells)}
    out.print(table(list(shown), list(zip(*shown.values(), strict=True))))
    for row in progress:
        if row.waiting_for:
            out.print(f"job {row.job_id} waits: {row.waiting_for}", style="yellow")
        if row.unreadable:
            out.print(f"job {row.job_id} is unreadable: {row.unreadable}", style="yellow")


_SHOWN_IF_ANY = ("priority", "small", "large", "judge", "to grade", "failed")
"""Columns of the table of jobs that are left out where all of it is 0."""


def _writes(worker: WorkerReport) -> str:
    """Slots at work of those there are. A worker holds more: samples that wait for a slot or for their commit."""
    waiting = max(0, worker.num_in_flight - worker.max_in_flight)
    more = f" +{waiting} held" if waiting else ""
    return f"{worker.num_in_flight - waiting}/{worker.max_in_flight}{more}"


class ResultFormat(StrEnum):
    """How results are written: rows, or the logs of other tools."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    INSPECT = "inspect"  # a log of Inspect
    LM_EVAL = "lm-eval"  # what lm-eval --log_samples leaves


_RESULTS_EXAMPLES = """Examples:

specthink results 3 > results.jsonl

specthink results 3 --format parquet --output r.parquet

specthink results 3 --format inspect --output logs/: a log that inspect view shows

specthink results 3 --format lm-eval --output evaluations/

specthink results 3 --push me/my-run: a private data set without answers
"""


@commands.command(rich_help_panel=PANEL, epilog=_RESULTS_EXAMPLES)
def results(
    context: typer.Context,
    job: JobId,
    format: Annotated[
        ResultFormat,
        typer.Option("--format", help="CSV is safe to open in a spreadsheet; inspect and lm-eval are logs."),
    ] = ResultFormat.JSONL,
    output: Annotated[
        Path | None,
        typer.Option(
            help="A file instead of standard output, replaced when complete; for inspect a .eval or .json file or a "
            "folder, for lm-eval a folder."
        ),
    ] = None,
    only_final: Annotated[bool, typer.Option("--only-final", help="Leave out samples still at work.")] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Push them to the hub instead, private and without answers."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: let everybody read it.")] = False,
    with_answers: Annotated[
        bool, typer.Option("--with-answers", help="With --push: reference answers and hidden columns too.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Write every sample of a job with its text: streamed, whatever the size."""
    if push is None and (public or with_answers):
        raise typer.BadParameter("--public and --with-answers go with it", param_hint="--push")
    _check_ending(output, format)
    if push is not None:
        if output is not None or only_final or format is not ResultFormat.JSONL:
            raise typer.BadParameter("it pushes all samples, and writes no file", param_hint="--push")
        with connect(context, state_dir) as client:
            url, count = client.push(job, push, public=public, with_answers=with_answers)
        console(stderr=True).print(f"{count} samples in {visible(url)}", soft_wrap=True)
        return
    with connect(context, state_dir) as client:
        client.job(job)  # an unknown job leaves no file behind
        match format:
            case ResultFormat.INSPECT:
                place, count = client.write_inspect_log(job, _log_place(output), only_final=only_final)
            case ResultFormat.LM_EVAL:
                place, count = client.write_lm_eval(job, _log_place(output), only_final=only_final)
            case _:
                count = _write_rows(client, job, ExportFormat(format.value), output, only_final=only_final)
                place = output or Path("-")
    if output is not None:
        console(stderr=True).print(f"{count} samples in {place}", soft_wrap=True)


_ENDINGS = {
    ".jsonl": ResultFormat.JSONL, ".ndjson": ResultFormat.JSONL, ".csv": ResultFormat.CSV,
    ".parquet": ResultFormat.PARQUET, ".eval": ResultFormat.INSPECT,
}  # fmt: skip


def _check_ending(output: Path | None, format: ResultFormat) -> None:
    """Refuse a file whose name says another format than it would have."""
    named = format if output is None else _ENDINGS.get(output.suffix.lower(), format)
    if named is not format:
        raise typer.BadParameter(
            f"{output} is named as {named}, and it would be {format}: give --format {named}, or another name",
            param_hint="--output",
        )


def _log_place(output: Path | None) -> Path:
    if output is None or output == STANDARD_OUTPUT:
        raise typer.BadParameter("a log is made of files: give --output", param_hint="--format")
    return output


def _write_rows(client: Client, job: int, format: ExportFormat, output: Path | None, *, only_final: bool) -> int:
    from pipeline.results.exports import write_results

    if output in (None, STANDARD_OUTPUT) and format is ExportFormat.PARQUET and sys.stdout.isatty():
        raise typer.BadParameter("parquet is binary: give --output FILE", param_hint="--format")
    with destination(output) as stream:
        return write_results(client.results(job, only_final=only_final), stream, format)


@contextlib.contextmanager
def destination(output: Path | None, *, option: str = "--output") -> Iterator[BinaryIO]:
    """Standard output, also for -, or a file that appears whole or not at all. A device or a pipe is written to as it
    comes, and never replaced."""
    if output is None or output == STANDARD_OUTPUT:
        stream = cast("BinaryIO", VisibleStream(sys.stdout)) if sys.stdout.isatty() else sys.stdout.buffer
        yield stream
        stream.flush()
        return
    if _is_special(output):
        with _open(output, option) as stream:
            yield stream
        return
    output = Path(os.path.realpath(output)) if output.is_symlink() else output
    descriptor, part = _begin_file(output, option)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        part.chmod(0o666 & ~_umask())
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def require_place(output: Path | None, *, option: str) -> None:
    """Raises typer's error for a file that ``destination`` could not write, before something long is begun for it."""
    if output is not None and output != STANDARD_OUTPUT and not _is_special(output):
        descriptor, part = _begin_file(output, option)
        os.close(descriptor)
        part.unlink()


def _is_special(output: Path) -> bool:
    """Whether it is there and neither a file nor a folder: /dev/null, say, or a named pipe."""
    try:
        mode = output.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _open(output: Path, option: str) -> BinaryIO:
    try:
        return output.open("wb")
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}", param_hint=option) from error


def _begin_file(output: Path, option: str) -> tuple[int, Path]:
    """An open file beside the output, which takes its place when it is complete."""
    try:
        descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}", param_hint=option) from error
    if output.is_dir():
        os.close(descriptor)
        Path(name).unlink()
        raise typer.BadParameter(f"{output}: it is a folder; name a file", param_hint=option)
    return descriptor, Path(name)


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink stats 3")
def stats(context: typer.Context, job: JobId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """All statistics of a job: accuracy, lengths, takeovers, pass@k, truncation, errors."""
    with connect(context, state_dir) as client:
        found = client.stats(job)
        listed, (progress,) = client.job(job), client.progress(job)
    if as_json:
        print_json(found)
        return
    out = console()
    for part in stats_parts(found, few_takeovers(listed, progress)):
        out.print(part, style="yellow" if isinstance(part, str) else None)
    for note in unreadable([with_mark(found.summary, listed)]):
        out.print(note, style="yellow")


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink errors 3")
def errors(context: typer.Context, job: JobId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """What went wrong in a job, by class, with one example each; specthink retry JOB tries failed samples again."""
    with connect(context, state_dir) as client:
        found = client.errors(job)
    if as_json:
        print_json(found)
    else:
        console().print(errors_table(found) if found else f"nothing went wrong in job {job}")


_COMPARE_EXAMPLES = """Examples:

specthink compare 1 2 3

specthink compare 1 4 --anyway

Each job is compared with the first one, problem by problem: the difference with a 95 % interval (Student's t over the
differences per problem), and the exact two-sided sign test over the problems that one of them solves better. Where the
jobs have unlike numbers of samples of a problem, the paired t test stands in its place, and no problem is called gained
or lost.
"""


@commands.command(rich_help_panel=PANEL, epilog=_COMPARE_EXAMPLES)
def compare(
    context: typer.Context,
    first: JobId,
    others: Annotated[list[int], typer.Argument(metavar="JOB...", help="Jobs on the same problem set.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also where problem set or grader version differ: paired by problem id.")
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Compare jobs with the first one, paired by problem."""
    with connect(context, state_dir) as client:
        rows = client.compare(first, *others, anyway=anyway)
        summaries = client.summary(first, *others)
    if as_json:
        print_json({"jobs": summaries, "comparisons": rows})
        return
    out = console()
    out.print(summary_table(summaries))
    for note in [*partial_results(summaries), *unreadable(summaries)]:
        out.print(note, style="yellow")
    out.print(comparison_table(rows))
    costs = [rows[0].cost_a, *(row.cost_b for row in rows)]
    out.print(cost_table(costs))
    for note in shared_time(costs):
        out.print(note, style="yellow")
    for row in rows:
        if row.gained is None:
            out.print(
                f"jobs {row.job_a} and {row.job_b} have unlike numbers of samples per problem: means and the t test "
                "compare them; no problem counts as gained or lost",
                style="yellow",
            )
        for name, changed in (("gained", row.gained), ("lost", row.lost)):
            if changed:
                out.print(f"{name} from job {row.job_a} to {row.job_b}: {_listed([c.problem for c in changed])}")
        for caveat in row.caveats:
            out.print(f"beware: {caveat}", style="yellow")


def _listed(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are; --json has all of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} problems: {', '.join(names[:most])}{more}"


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink report 1 2 3 --html report.html")
def report(
    context: typer.Context,
    jobs: Annotated[
        list[int], typer.Argument(metavar="JOB...", help="One job or several; the first is compared with.")
    ],
    html: Annotated[Path, typer.Option(help="The file; replaced when complete.")],
    samples: Annotated[int, typer.Option(min=0, help="Samples of each job to read.")] = 6,
    state_dir: StateDir = None,
) -> None:
    """Write one self-contained page: tables, charts, and samples to read step by step."""
    with connect(context, state_dir) as client:
        page = client.page(*jobs, num_samples=samples)
    with destination(html, option="--html") as stream:
        stream.write(page.encode())
    console(stderr=True).print(f"{len(page.encode()) / 1024:.0f} KiB in {html}")


@commands.command(rich_help_panel=PANEL, epilog="Example: specthink sample 1234")
def sample(
    context: typer.Context,
    sample_id: Annotated[int, typer.Argument(metavar="ID", help="A sample_id of results.")],
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Show one sample step by step, with the author of each."""
    with connect(context, state_dir) as client:
        report = client.sample(sample_id)
    if as_json:
        print_json(report)
    else:
        print_sample(report, console())


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink replay 1234 · specthink replay --job 3",
)
def replay(
    context: typer.Context,
    sample_id: Annotated[
        int | None, typer.Argument(metavar="[SAMPLE]", help="A sample_id of results.", show_default=False)
    ] = None,
    job: Annotated[int | None, typer.Option(metavar="JOB", help="Every complete sample of a job.")] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Feed stored segments through their policy again and verify every decision; 1 where it decides otherwise."""
    if (sample_id is None) == (job is None):
        raise typer.BadParameter("give either a SAMPLE or --job JOB", param_hint="SAMPLE")
    with connect(context, state_dir) as client:
        found = [client.replay(sample_id)] if sample_id is not None else list(client.replay_job(job or 0))
    diverged = [replayed for replayed in found if not replayed.is_good]
    if as_json:
        print_json(found if job is not None else found[0])
    else:
        for replayed in found if job is None else diverged:
            typer.echo(visible(str(replayed)))
        if job is not None:
            typer.echo(f"job {job}: {len(found) - len(diverged)} of {len(found)} samples are what the policy decides")
    if diverged:
        raise typer.Exit(1)


_SQL_EXAMPLES = """Examples:

specthink sql "SELECT job_id, policy, accuracy, share_large FROM job_summary"

specthink sql --json "SELECT * FROM token_lengths WHERE job_id = 1 AND author = 'all'"

Views: results, job_summary, job_progress, job_cost, job_comparison, problem_comparison, problem_scores,
subject_scores, throughput, step_positions, pass_at_k, maj_at_k, token_lengths,
length_histogram, budget_curve, truncation, delegation, delegation_progress, takeovers, takeover_flow, aside_summary,
step_summary, errors.
"""


@commands.command(rich_help_panel=PANEL, epilog=_SQL_EXAMPLES)
def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="One statement; - reads it from standard input.")],
    as_json: AsJson = False,
    timeout: Annotated[float, typer.Option(min=0.001, max=86_400, help="Seconds the server may take.")] = 60.0,
    limit: Annotated[int, typer.Option(min=1, help="Rows shown; a note says that there are more.")] = 10_000,
    state_dir: StateDir = None,
) -> None:
    """Run one read-only query."""
    with connect(context, state_dir) as client:
        found = client.sql(sys.stdin.read() if query == "-" else query, timeout_s=timeout, max_rows=limit)
    if as_json:
        print_json(found.as_dicts())
    else:
        print_rows(found.columns, found.rows)
    if found.is_cut:
        note = f"only the first {len(found.rows):,} rows; narrow the query, or give --limit"
        console(stderr=True).print(note, style="yellow")
