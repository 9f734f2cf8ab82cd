"""Shows what a submission would store and ask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.options import connect
from pipeline.cli.render import console, print_json

if TYPE_CHECKING:
    from pipeline.jobs.dry_run import AskedModel, DryRun, FoundProblems
    from pipeline.jobs.submission import Submission


def look(context: typer.Context, state_dir: Path | None, submission: Submission) -> DryRun:
    """With the database where it can be reached; without it as far as the submission names nothing that is stored."""
    from pipeline.errors import ServiceUnavailable
    from pipeline.jobs.dry_run import dry_run
    from pipeline.jobs.readiness import make_ready

    try:
        with connect(context, state_dir) as client:
            return client.dry_run(submission)
    except ServiceUnavailable:
        asks_jobs = submission.matched_to is not None or submission.calibrated_from is not None
        if asks_jobs or isinstance(submission.problems, int):
            raise
    return dry_run(make_ready(submission), None)


def print_dry_run(found: DryRun, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    out = console()
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(f"{name:{width}}  {value}", soft_wrap=True)
    for asked in found.models:
        told = f" ({asked.num_tokens:,} tokens)" if asked.num_tokens is not None else ", as its user message"
        out.print(f"\nfirst prompt of the {asked.role} model{told}:", style="bold")
        out.print(asked.prompt, soft_wrap=True)
    out.print()
    for note in found.notes:
        out.print(note, soft_wrap=True)
    for warning in found.warnings:
        out.print(warning, style="yellow", soft_wrap=True)
    out.print("\nnothing was stored", style="dim")


def _rows(found: DryRun) -> Iterator[tuple[str, str]]:
    yield "name", found.name
    yield from _problem_rows(found.problems)
    total = found.samples_total
    yield "samples", f"{found.problems.used:,} problems × {found.num_samples:,} = {total:,}, seed {found.seed}"
    yield "tokens", f"at most {found.max_tokens:,} of a sample, {total * found.max_tokens:,} in all"
    yield "policy", found.policy
    for part, values in found.policy_values.items():
        yield f"  {part}", _values({name: value for name, value in values.items() if name not in ("name", "preset")})
    for asked in found.models:
        yield from _model_rows(asked)


def _problem_rows(problems: FoundProblems) -> Iterator[tuple[str, str]]:
    source = f"{problems.source}: " if problems.source else ""
    yield "problems", f"{source}{problems.size:,} rows, the first {problems.used:,} are used"
    for part, column in (problems.columns or {}).items():
        form = f", read as {problems.answer_as}" if part == "answer" and problems.answer_as else ""
        missing = "the row's number" if part == "id" else "none found"
        yield f"  {part}", f"column {column}{form}" if column else missing
    if problems.hidden:
        yield "  hidden", f"{', '.join(problems.hidden)}: those who generate cannot read them"
    if problems.not_stored:
        yield "  not stored", f"{', '.join(problems.not_stored)}: they hold bytes"
    yield "references", f"{problems.num_references:,}, for the grader {problems.grader}"


def _model_rows(asked: AskedModel) -> Iterator[tuple[str, str]]:
    model = asked.model
    known = {"revision": model.revision, "weights": model.weights, "tokenizer and template": model.fingerprint}
    told = [f"{name} {value[:12]}" for name, value in known.items() if value]
    yield f"{asked.role} model", "; ".join([model.name, *told])
    yield "  think phase", asked.think_phase
    yield "  sampling", _values(asked.sampling)
    if asked.context is not None:
        yield "  context", f"{asked.context:,} tokens by its config.json"
    for worker in asked.workers or ():
        context = "not known" if worker.max_model_len is None else f"{worker.max_model_len:,} tokens"
        yield f"  worker {worker.id}", f"on {worker.host}, context {context}"


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
