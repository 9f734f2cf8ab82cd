"""Turns what was read of the fleet into Prometheus' families: each metric's name, help and labels stand here once.

Job ids are no labels: a series for each job would grow for ever. Panels about one job ask the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import RowMapping

from pipeline.batches import BatchStatus
from pipeline.db.metrics import Fleet, Rows
from pipeline.jobs.config import JobState
from pipeline.samples import ErrorClass, GradeStatus, SampleState
from pipeline.workforce import WorkerKind

_MODELS = ("model_small", "model_large", "model_judge", "policy")
_FINISHES = {"length": "num_length", "context": "num_context", "repetition": "num_repetition"}
"""Ends of a text that have a sum of their own; every other one is a stop."""


def families(fleet: Fleet) -> Iterator[Metric]:
    """Every metric of the fleet; ``specthink_build_info`` says which version read it."""
    build = _gauge(
        "specthink_build_info", "Version of the exporter and revision of the database.", "version", "revision"
    )
    build.add_metric([metadata.version("specthink"), fleet.revision], 1)
    yield build
    yield from _of_samples(fleet)
    yield from _of_waiting(fleet)
    yield from _of_workers(fleet)
    yield from _of_tokens(fleet)
    yield from _of_faults(fleet)
    yield from _of_batches(fleet)


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, labels=labels)


def _counter(name: str, help_text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, help_text, labels=labels)


def _models(row: RowMapping) -> list[str]:
    return [row["small_model"], row["large_model"], row["judge_model"], row["policy"]]


def _of_samples(fleet: Fleet) -> Iterator[Metric]:
    samples = _gauge("specthink_samples", "Samples of all jobs by state.", "state", *_MODELS)
    finished = _counter("specthink_samples_finished", "Complete samples by why their text ended.", "reason")
    takeovers = _counter("specthink_takeovers", "Times a large model was called in.", *_MODELS)
    ends = dict.fromkeys((*_FINISHES, "stop"), 0)
    for row in fleet.samples:
        for state in SampleState:
            samples.add_metric([state.value, *_models(row)], row[state.value])
        takeovers.add_metric(_models(row), row["takeovers"])
        counted = {reason: row[column] for reason, column in _FINISHES.items()}
        counted["stop"] = row["finished"] + row["graded"] - sum(counted.values())
        ends = {reason: number + counted[reason] for reason, number in ends.items()}
    for reason, number in ends.items():
        finished.add_metric([reason], number)
    triggers = _counter(
        "specthink_takeovers_by_trigger",
        "Times a large model was called in, of samples that rest, by why.",
        "policy",
        "trigger",
    )
    for row in fleet.takeovers:
        triggers.add_metric([row["policy"], row["trigger"]], row["number"])
    jobs = _gauge("specthink_jobs", "Jobs by state.", "state")
    _add_all(jobs, (state.value for state in JobState), fleet.jobs, "state")
    yield from (samples, jobs, finished, takeovers, triggers)


def _of_waiting(fleet: Fleet) -> Iterator[Metric]:
    oldest = _gauge(
        "specthink_oldest_waiting_seconds", "How long the sample has waited that waits longest.", "role", "model"
    )
    waiting = _gauge("specthink_waiting_samples", "Samples that wait for a model.", "role", "model")
    wanted = _gauge("specthink_workers_wanted", "Workers that running jobs could use now.", "role", "model")
    seconds = {(row["role"], row["model"]): row["seconds"] for row in fleet.oldest_waiting}
    named = {(row["role"], row["model"]): row for row in fleet.demand}
    for key in sorted({*seconds, *named, ("grade", "")}):
        oldest.add_metric(key, seconds.get(key, 0.0))
    for key, row in named.items():
        waiting.add_metric(key, row["waiting"])
        wanted.add_metric(key, row["wanted"])
    yield from (oldest, waiting, wanted)


def _of_workers(fleet: Fleet) -> Iterator[Metric]:
    live = _gauge("specthink_workers", "Workers with a valid lease.", "kind", "model")
    slots = _gauge("specthink_worker_slots", "Samples that the live workers have room for.", "kind", "model")
    in_flight = _gauge("specthink_worker_in_flight", "Samples that the live workers write.", "kind", "model")
    found = {(row["kind"], row["model"]): row for row in fleet.workers}
    expected = {(kind.value, "") for kind in (WorkerKind.GRADE, WorkerKind.UPKEEP)}
    expected |= {
        (row["role"], row["model"]) for row in fleet.demand
    }  # none of these shows as 0, which can be alerted on
    for key in sorted(expected | found.keys()):
        live.add_metric(key, found[key]["number"] if key in found else 0)
        slots.add_metric(key, found[key]["slots"] if key in found else 0)
        in_flight.add_metric(key, found[key]["in_flight"] if key in found else 0)
    ends = _counter("specthink_worker_ends", "Workers that ended, by kind and reason.", "kind", "reason")
    for row in fleet.worker_ends:
        ends.add_metric([row["kind"], row["reason"]], row["number"])
    leader = _gauge(
        "specthink_upkeep_leader_age_seconds", "Since upkeep last said that it leads; absent: nobody leads."
    )
    if fleet.leader_age_s is not None:
        leader.add_metric([], fleet.leader_age_s)
    yield from (live, slots, in_flight, ends, leader)


def _of_tokens(fleet: Fleet) -> Iterator[Metric]:
    """kept and discarded: of committed texts; aside: on side branches; dropped: of no commit; prompt: given, of these
    cached: found in the prefix cache; inserted: put in by the policy."""
    tokens = _counter("specthink_tokens", "Tokens by what became of them.", "role", "model", "fate")
    sums: dict[tuple[str, str, str], int] = {}
    for row in fleet.samples:
        for role in ("small", "large"):
            if model := row[f"{role}_model"]:
                _add(sums, (role, model, "kept"), row[f"tokens_{role}"])
                _add(sums, (role, model, "discarded"), row[f"discarded_{role}"])
                _add(sums, (role, model, "aside"), row[f"aside_{role}"] - row[f"taken_{role}"])
        if row["judge_model"]:
            _add(sums, ("judge", row["judge_model"], "aside"), row["aside_judge"])
        _add(sums, ("policy", "", "inserted"), row["tokens_inserted"])
    for row in fleet.worker_tokens:
        for fate in ("dropped", "prompt", "cached"):
            _add(sums, (row["role"], row["model"], fate), row[fate])
    for key, number in sorted(sums.items()):
        tokens.add_metric(key, number)
    yield tokens
    yield from _of_drafts(fleet)


def _of_drafts(fleet: Fleet) -> Iterator[Metric]:
    drafts = _counter("specthink_drafts", "Steps of a sample for which tokens were drafted.", "role", "model")
    drafted = _counter("specthink_draft_tokens", "Tokens in these drafts.", "role", "model")
    accepted = _counter("specthink_accepted_tokens", "Of these, accepted by the model.", "role", "model")
    for row in fleet.worker_tokens:
        if row["num_drafts"]:
            drafts.add_metric([row["role"], row["model"]], row["num_drafts"])
            drafted.add_metric([row["role"], row["model"]], row["draft_tokens"])
            accepted.add_metric([row["role"], row["model"]], row["accepted_tokens"])
    yield from (drafts, drafted, accepted)


def _of_faults(fleet: Fleet) -> Iterator[Metric]:
    failed = _counter("specthink_samples_failed", "Samples set aside, by the kind of error.", "error_class")
    _add_all(failed, (kind.value for kind in ErrorClass), fleet.failures, "error_class")
    unscored = _counter("specthink_grades_failed", "Gradings that ended without a score, by status.", "status")
    _add_all(unscored, (GradeStatus.TIMEOUT.value, GradeStatus.ERROR.value), fleet.unscored, "status")
    yield from (failed, unscored)


def _of_batches(fleet: Fleet) -> Iterator[Metric]:
    batches = _gauge("specthink_batches", "Batches of the gateway by status.", "status")
    _add_all(batches, (status.value for status in BatchStatus), fleet.batches, "status")
    yield batches


def _add(sums: dict[tuple[str, str, str], int], key: tuple[str, str, str], number: int) -> None:
    sums[key] = sums.get(key, 0) + number


def _add_all(
    family: GaugeMetricFamily | CounterMetricFamily, choices: Iterator[str] | tuple[str, ...], rows: Rows, column: str
) -> None:
    """A series for each choice, 0 where no row has it."""
    numbers: Mapping[str, int] = {row[column]: row["number"] for row in rows}
    for choice in choices:
        family.add_metric([choice], numbers.get(choice, 0))
