"""Commands that only read: status, results, stats, compare, sample, sql."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from pipeline.cli.app import AsJson, JobId, StateDir, app, connect
from pipeline.cli.render import (
    console,
    duration,
    number,
    percent,
    print_json,
    print_rows,
    print_sample,
    summary_table,
    table,
)
from pipeline.exports import ExportFormat

PANEL = "Questions"


@app.command(rich_help_panel=PANEL, epilog="Examples: specthink status · specthink status 3 --json")
def status(
    context: typer.Context,
    job: Annotated[int | None, typer.Argument(metavar="[JOB]", help="One job; without it the newest ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs listed.")] = 20,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """How far jobs are, and what they wait for."""
    with connect(context, state_dir) as client:
        ids = [job] if job is not None else [listed.id for listed in client.jobs(limit)]
        progress = client.progress(*ids)[::-1]
        workers = client.workers()
    if as_json:
        print_json({"jobs": progress, "workers": workers})
        return
    out = console()
    columns = [
        "job",
        "name",
        "state",
        "done",
        "pending",
        "ready",
        "drafting",
        "large",
        "to grade",
        "failed",
        "time",
        "",
    ]
    rows: list[list[object]] = [
        [
            row.job_id, row.name, row.state.value, f"{row.samples_done}/{row.samples_total}", row.pending, row.ready,
            row.drafting, row.awaiting_large + row.assisting, row.finished, row.failed, duration(row.seconds),
            row.waiting_for or "",
        ]
        for row in progress
    ]  # fmt: skip
    out.print(table(columns, rows) if rows else "no jobs yet; specthink submit FILE makes one")
    columns = ["worker", "kind", "model", "host", "pid", "writes", "tokens"]
    rows = [
        [w.id, w.kind, w.model, w.host, w.pid, f"{w.num_in_flight}/{w.max_in_flight}", w.tokens_generated]
        for w in workers
    ]
    out.print(table(columns, rows) if rows else "no live workers; specthink up or specthink worker starts some")


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink results 3 > results.jsonl · specthink results 3 --format parquet --output r.parquet",
)
def results(
    context: typer.Context,
    job: JobId,
    format: Annotated[
        ExportFormat, typer.Option("--format", help="CSV is safe to open in a spreadsheet.")
    ] = ExportFormat.JSONL,
    output: Annotated[
        Path | None, typer.Option(help="A file instead of standard output; replaced when complete.")
    ] = None,
    only_final: Annotated[bool, typer.Option("--only-final", help="Leave out samples still at work.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Write every sample of a job with its text: streamed, whatever the size."""
    from pipeline.exports import write_results

    if output is None and format is ExportFormat.PARQUET and sys.stdout.isatty():
        raise typer.BadParameter("parquet is binary: give --output FILE", param_hint="--format")
    with connect(context, state_dir) as client:
        client.job(job)  # an unknown job leaves no file behind
        with _destination(output) as stream:
            count = write_results(client.results(job, only_final=only_final), stream, format)
    if output is not None:
        console(stderr=True).print(f"{count} samples in {output}")


@contextlib.contextmanager
def _destination(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears whole or not at all."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        part.chmod(0o666 & ~_umask())
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@app.command(rich_help_panel=PANEL, epilog="Example: specthink stats 3")
def stats(context: typer.Context, job: JobId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """All statistics of a job: accuracy, lengths, takeovers, pass@k, truncation, errors."""
    with connect(context, state_dir) as client:
        found = client.stats(job)
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(summary_table([found.summary], title=found.summary.name))
    lengths = [
        [
            row.author,
            row.finish_reason,
            row.verdict,
            row.n,
            row.mean,
            row.sd,
            row.min,
            row.p50,
            row.p90,
            row.p99,
            row.max,
        ]
        for row in found.token_lengths
        if row.author == "all" or (row.finish_reason == "all" and row.total)
    ]
    columns = ["author", "finish", "verdict", "n", "mean", "sd", "min", "p50", "p90", "p99", "max"]
    out.print(table(columns, lengths, title="output tokens"))
    if found.delegation:
        columns = ["author", "trigger", "segments", "samples", "tokens", "mean", "wait s", "queue s", "write s"]
        rows = [
            [
                row.author.value, row.trigger, row.num_segments, row.num_samples, row.tokens, row.mean_tokens,
                row.mean_wait_seconds, row.mean_queue_seconds, row.mean_write_seconds,
            ]
            for row in found.delegation
        ]  # fmt: skip
        out.print(table(columns, rows, title="delegation"))
    if found.pass_at_k:
        out.print(
            table(
                ["k", "problems", "pass@k"],
                [[row.k, row.num_problems, percent(row.pass_at_k)] for row in found.pass_at_k],
                title="pass@k",
            )
        )
    if found.truncation and found.truncation.num_truncated:
        cut = found.truncation
        out.print(
            f"truncated: {cut.num_truncated} of {cut.num_complete} samples ended by max_tokens ({cut.num_length}) or "
            f"context ({cut.num_context}); accuracy {percent(cut.accuracy_truncated)} there, "
            f"{percent(cut.accuracy_eos)} of those that ended themselves",
            style="yellow",
        )
    if found.errors:
        rows = [[e.stage, e.error_class, e.num_samples, e.example_sample_id, e.example] for e in found.errors]
        out.print(table(["stage", "error", "samples", "e.g. sample", "message"], rows, title="errors"))


@app.command(rich_help_panel=PANEL, epilog="Example: specthink compare 1 2 3")
def compare(
    context: typer.Context,
    first: JobId,
    others: Annotated[list[int], typer.Argument(metavar="JOB...", help="Jobs on the same problem set.")],
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Compare jobs with the first one, paired by problem."""
    with connect(context, state_dir) as client:
        rows = client.compare(first, *others)
        summaries = client.summary(first, *others)
    if as_json:
        print_json({"jobs": summaries, "comparisons": rows})
        return
    out = console()
    out.print(summary_table(summaries))
    columns = [
        "jobs",
        "problems",
        "accuracy",
        "difference",
        "95 % interval",
        "better",
        "worse",
        "equal",
        "tokens",
        "ratio",
    ]
    shown = [
        [
            f"{row.job_a} → {row.job_b}",
            row.num_problems,
            f"{percent(row.accuracy_a)} → {percent(row.accuracy_b)}",
            percent(row.difference),
            "–" if row.difference_low is None else f"{percent(row.difference_low)} … {percent(row.difference_high)}",
            row.num_b_better,
            row.num_a_better,
            row.num_equal,
            f"{number(row.mean_output_tokens_a)} → {number(row.mean_output_tokens_b)}",
            row.token_ratio,
        ]
        for row in rows
    ]
    out.print(table(columns, shown, title="paired by problem"))


@app.command(rich_help_panel=PANEL, epilog="Example: specthink sample 1234")
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


_SQL_EXAMPLES = """Examples:

specthink sql "SELECT job_id, policy, accuracy, share_large FROM job_summary"

specthink sql --json "SELECT * FROM token_lengths WHERE job_id = 1 AND author = 'all'"

Views: job_summary, job_progress, token_lengths, delegation, pass_at_k, job_comparison, truncation, errors.
"""


@app.command(rich_help_panel=PANEL, epilog=_SQL_EXAMPLES)
def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="One statement; - reads it from standard input.")],
    as_json: AsJson = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds the server may take.")] = 60.0,
    state_dir: StateDir = None,
) -> None:
    """Run one read-only query."""
    with connect(context, state_dir) as client:
        found = client.sql(sys.stdin.read() if query == "-" else query, timeout_s=timeout)
    if as_json:
        print_json(found.as_dicts())
    else:
        print_rows(found.columns, found.rows)
