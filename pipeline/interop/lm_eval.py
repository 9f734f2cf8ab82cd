"""Writes a job as the files that lm-eval leaves with ``--log_samples``: scores in one, every document in the other."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import ConfigurationError
from pipeline.results.samples import Result
from pipeline.results.written import WrittenJob

METRIC = "exact_match"
FILTER = "none"


def write_files(job: WrittenJob, results: Iterable[Result], folder: Path) -> tuple[Path, int]:
    """Write both, or none, into ``folder/MODEL``; returns that folder and the number of samples.

    results: in the order of their problems. lm-eval's document is our problem, its repeats are our samples.
    """
    place = folder / sanitize_model(_model(job))
    date = (job.job.finished_at or job.job.submitted_at).isoformat().replace(":", "-").replace("+", "-")
    task = task_name(job)
    documents = _Documents(job, results)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".part.") as name:
            samples, scores = Path(name) / "samples", Path(name) / "results"
            with samples.open("wb") as file:
                for document in documents:
                    file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
            scores.write_bytes(orjson.dumps(_results(job, documents, task), option=orjson.OPT_INDENT_2))
            samples.replace(place / f"samples_{task}_{date}.jsonl")
            scores.replace(place / f"results_{date}.json")
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be written: {error.strerror or error}") from error
    return place, documents.num_samples


def task_name(job: WrittenJob) -> str:
    return re.sub(r"\W", "_", job.job.problem_set)


def sanitize_model(name: str) -> str:
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", name)


def _model(job: WrittenJob) -> str:
    return "+".join(filter(None, [job.job.small_model, job.job.large_model]))


class _Documents:
    """The documents as they pass, counted, with what the results say of all of them."""

    def __init__(self, job: WrittenJob, results: Iterable[Result]) -> None:
        self._job = job
        self._results = results
        self._hash = hashlib.sha256()
        self.num_samples = 0
        self.num_documents = 0
        self.scores: list[float] = []

    @property
    def hash(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, (_, group) in enumerate(itertools.groupby(self._results, lambda result: result.problem)):
            samples = list(group)
            document = _document(number, samples)
            self.num_samples += len(samples)
            self.num_documents += 1
            if document[METRIC] is not None:
                self.scores.append(document[METRIC])
            self._hash.update("".join(document[f"{part}_hash"] for part in ("doc", "prompt", "target")).encode())
            yield document


def _document(number: int, samples: Sequence[Result]) -> dict[str, Any]:
    first = samples[0]
    prompt, target = first.rendered_prompt or first.prompt, first.reference or ""
    doc = {"id": first.problem, "problem": first.prompt, "subject": first.subject, "level": first.level}
    doc = {name: value for name, value in doc.items() if value is not None} | dict(first.metadata)
    texts, answers = ([*each] for each in zip(*((s.output, s.predicted_answer or "") for s in samples), strict=True))
    scores = [sample.score for sample in samples if sample.score is not None]
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {}}},
        "resps": [texts],
        "filtered_resps": [answers if len(answers) > 1 else answers[0]],
        "filter": FILTER,
        "metrics": [METRIC],
        "doc_hash": _sha256(orjson.dumps(doc, option=orjson.OPT_INDENT_2)),
        "prompt_hash": _sha256(prompt.encode()),
        "target_hash": _sha256(target.encode()),
        METRIC: statistics.fmean(scores) if scores else None,
        "specthink": [_facts(sample) for sample in samples],
    }


def _facts(sample: Result) -> dict[str, Any]:
    """Of each repeat what lm-eval has no place for."""
    names = ("sample_id", "state", "finish_reason", "score", "tokens_small", "tokens_large", "num_takeovers", "error")
    return {name: getattr(sample, name) for name in names}


def _results(job: WrittenJob, documents: _Documents, task: str) -> dict[str, Any]:
    scores, count = documents.scores, documents.num_documents
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    named = {
        "alias": task,
        f"{METRIC},{FILTER}": statistics.fmean(scores) if scores else None,
        f"{METRIC}_stderr,{FILTER}": "N/A" if error is None else error,
        "sample_len": count,
    }
    seconds = job.summary.seconds
    return {
        "results": {task: named},
        "group_subtasks": {task: []},
        "configs": {task: _task_config(job, task)},
        "versions": {task: job.content_sha256[:12]},
        "n-shot": {task: _num_shots(job)},
        "higher_is_better": {task: {METRIC: True}},
        "n-samples": {task: {"original": job.job.num_problems, "effective": count}},
        "config": _config(job),
        "git_hash": None,
        "date": job.job.submitted_at.timestamp(),
        "task_hashes": {task: documents.hash},
        "model_source": "specthink",
        "model_name": _model(job),
        "model_name_sanitized": sanitize_model(_model(job)),
        "chat_template_sha": None,
        "total_evaluation_time_seconds": None if seconds is None else str(seconds),
    }


def _task_config(job: WrittenJob, task: str) -> Mapping[str, Any]:
    config = job.job.stored_config
    return {
        "task": task,
        "output_type": "generate_until",
        "repeats": job.job.num_samples,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"grader": config.grader if config else None, "content_sha256": job.content_sha256},
    }


def _num_shots(job: WrittenJob) -> int:
    config = job.job.stored_config
    return len(config.few_shot.messages()) // 2 if config and config.few_shot else 0


def _config(job: WrittenJob) -> Mapping[str, Any]:
    config = job.job.stored_config
    return {
        "model": "specthink",
        "model_args": {"small": job.job.small_model, "large": job.job.large_model, "policy": job.job.policy},
        "batch_size": None,
        "limit": config.limit if config else None,
        "gen_kwargs": config.sampling.model_dump(mode="json") if config else None,
        "random_seed": config.seed if config else None,
        "specthink": config.model_dump(mode="json") if config else None,
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
