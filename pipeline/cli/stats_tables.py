"""The tables and notes of ``specthink stats``, in the order in which they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.cli.render import cost_table, percent, summary_table, table
from pipeline.results.advice import partial_results, shared_time

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.results.reports import (
        Delegation,
        EngineTimeAlone,
        JobErrors,
        JobStats,
        MajAtK,
        PassAtK,
        TakeoverFlow,
        TokenLengths,
        Truncation,
    )


def stats_parts(found: JobStats, advice: str | None) -> Iterator[Table | str]:
    """Tables, and notes as text. advice: one more note, on the summary."""
    yield summary_table([found.summary], title=found.summary.name)
    yield from partial_results([found.summary])
    if advice:
        yield advice
    yield _lengths_table(found.token_lengths)
    if found.delegation:
        yield _delegation_table(found.delegation)
    if found.takeover_flow:
        yield _takeover_table(found.takeover_flow)
    if found.pass_at_k:
        yield _pass_table(found.pass_at_k, found.maj_at_k)
    yield cost_table([found.cost], title="cost")
    yield from shared_time([found.cost])
    if found.engine_time_alone:
        yield _alone_table(found.engine_time_alone, found.cost.num_right)
    if found.bootstrap:
        low, high = percent(found.bootstrap.low), percent(found.bootstrap.high)
        yield f"the interval above is the one to quote; drawing whole problems (bootstrap) gives {low} … {high}"
    if found.truncation and found.truncation.num_truncated:
        yield _truncation_note(found.truncation)
    if found.errors:
        yield errors_table(found.errors)


def errors_table(found: Sequence[JobErrors]) -> Table:
    rows = [
        [e.stage, e.error_class, e.num_samples, e.most_tries, e.last_at, e.example_sample_id, e.example] for e in found
    ]
    return table(["stage", "class", "samples", "tries", "last", "e.g. sample", "message"], rows, title="errors")


def _lengths_table(found: Sequence[TokenLengths]) -> Table:
    rows = [
        [
            row.author, row.finish_reason, row.verdict, row.n, row.mean, row.sd, row.min, row.p50, row.p90, row.p99,
            row.max,
        ]
        for row in found
        if row.author == "all" or (row.finish_reason == "all" and row.total)
    ]  # fmt: skip
    columns = ["author", "finish", "verdict", "n", "mean", "sd", "min", "p50", "p90", "p99", "max"]
    return table(columns, rows, title="output tokens")


def _delegation_table(found: Sequence[Delegation]) -> Table:
    columns = ["author", "trigger", "segments", "samples", "tokens", "mean", "wait s", "queue s", "write s"]
    rows = [
        [
            row.author.value, row.trigger, row.num_segments, row.num_samples, row.tokens, row.mean_tokens,
            row.mean_wait_seconds, row.mean_queue_seconds, row.mean_write_seconds,
        ]
        for row in found
    ]  # fmt: skip
    return table(columns, rows, title="delegation")


def _takeover_table(found: Sequence[TakeoverFlow]) -> Table:
    columns = ["trigger", "followed by", "times", "at", "large's tokens", "tokens between", "scored", "accuracy"]
    rows = [
        [
            row.trigger, row.followed_by, row.num_takeovers, percent(row.mean_position), row.mean_tokens,
            row.mean_tokens_between, row.num_scored, percent(row.accuracy),
        ]
        for row in found
    ]  # fmt: skip
    return table(columns, rows, title="what followed a takeover (at: place in the output)")


def _alone_table(found: Sequence[EngineTimeAlone], num_right: int) -> Table:
    columns = ["author", "engine s", "alone s", "tokens/s alone", "engine s if alone", "per right answer"]
    rows = [
        [
            row.author, row.engine_seconds, row.alone_seconds, row.tokens_per_alone_second, row.engine_seconds_if_alone,
            None if row.engine_seconds_if_alone is None or not num_right else row.engine_seconds_if_alone / num_right,
        ]
        for row in found
    ]  # fmt: skip
    return table(columns, rows, title="time in which the engines had this job alone, and what all of it takes so")


def _pass_table(passes: Sequence[PassAtK], majorities: Sequence[MajAtK]) -> Table:
    majority = {row.k: row.maj_at_k for row in majorities}
    rows = [[row.k, row.num_problems, percent(row.pass_at_k), percent(majority[row.k])] for row in passes]
    return table(["k", "problems", "pass@k", "maj@k"], rows, title="pass@k and maj@k")


def _truncation_note(cut: Truncation) -> str:
    return (
        f"truncated: {cut.num_truncated} of {cut.num_complete} samples ended by max_tokens ({cut.num_length}) or "
        f"context ({cut.num_context}); accuracy {percent(cut.accuracy_truncated)} of "
        f"{cut.num_scored_truncated} scored there, {percent(cut.accuracy_eos)} of "
        f"{cut.num_scored_eos} scored that ended themselves"
    )
