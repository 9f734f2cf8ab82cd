"""Pushes a job's samples and pieces of writing to a hub as a data set: private, and without answers, unless asked."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from pyarrow import parquet

from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.results.exports import result_rows, result_schema
from pipeline.results.written import WrittenJob, WrittenPiece, WrittenSample

ANSWER_COLUMNS = ("reference", "also_accepted", "grade_detail")
"""Left out unless answers are asked for."""
_BATCH = 200
_HTTP_ERROR: type[BaseException] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
"""Of the hub library's transport, which is not the same package in all of its releases."""
_TYPES = {
    "int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(),
    "datetime": pyarrow.timestamp("us", tz="UTC"),
}  # fmt: skip
_README = """---
configs:
- config_name: samples
  default: true
  data_files:
  - {{split: train, path: samples/train-*.parquet}}
- config_name: segments
  data_files:
  - {{split: train, path: segments/train-*.parquet}}
tags: [specthink]
---

# {title}

{num_samples} samples of one job of specthink: `samples` has each with its text and score, `segments` every piece of
their writing with its author.

| | |
|---|---|
{rows}
"""


def check_pushable(job: WrittenJob, *, with_answers: bool) -> None:
    """Raises ConfigurationError for answers that may not be read here, or that would go with what is no answer."""
    if with_answers and not job.tells_answers:
        raise ConfigurationError("this login may not read reference answers, so it cannot push them")
    if job.prompts_tell_answers and not with_answers:
        raise ConfigurationError(
            f"job {job.job.id} is a judge whose prompts show reference answers: push it --with-answers, or not at all"
        )


def push(
    job: WrittenJob, samples: Iterable[WrittenSample], repo: str, *, public: bool, with_answers: bool
) -> tuple[str, int]:
    """Returns the address of the data set and the number of samples.

    Raises ConfigurationError where the hub refuses, and for a data set that is public already where public was not
    asked for; ServiceUnavailable where it cannot be reached.
    """
    check_pushable(job, with_answers=with_answers)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with tempfile.TemporaryDirectory(prefix="specthink-push-") as name:
        folder = Path(name)
        try:
            url = str(api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True))
            if not public and not api.repo_info(repo, repo_type="dataset").private:
                raise ConfigurationError(f"{repo} is public: push it --public, or under another name")
            count = write_folder(job, samples, folder, with_answers=with_answers)
            api.upload_folder(
                repo_id=repo, repo_type="dataset", folder_path=folder, commit_message=f"Job {job.job.id} of specthink"
            )
        except (HFValidationError, LocalTokenNotFoundError) as error:
            raise ConfigurationError(_line(error)) from error
        except HfHubHTTPError as error:
            raise ConfigurationError(
                f"the hub refuses {repo}: {_line(error)}; a token that may write is HF_TOKEN"
            ) from error
        except _transport_errors() as error:
            raise ServiceUnavailable(f"the hub cannot be reached: {_line(error)}") from error
    return url, count


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where nobody answers: httpx's errors, whichever release of it was loaded."""
    modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, *(module.TransportError for module in modules))


def write_folder(job: WrittenJob, samples: Iterable[WrittenSample], folder: Path, *, with_answers: bool) -> int:
    """The files of the data set; returns the number of samples."""
    for name in ("samples", "segments"):
        (folder / name).mkdir()
    dropped = () if with_answers else ANSWER_COLUMNS
    schema = pyarrow.schema([column for column in result_schema() if column.name not in dropped])
    count = 0
    with (
        parquet.ParquetWriter(folder / "samples" / "train-00000.parquet", schema, compression="zstd") as rows,
        parquet.ParquetWriter(folder / "segments" / "train-00000.parquet", _pieces(), compression="zstd") as pieces,
    ):
        for batch in _batches(samples):
            found = list(result_rows(sample.result for sample in batch))
            kept = [{name: value for name, value in row.items() if name not in dropped} for row in found]
            rows.write_table(pyarrow.Table.from_pylist(kept, schema=schema))
            written = [_piece_row(sample, piece) for sample in batch for piece in sample.pieces]
            pieces.write_table(pyarrow.Table.from_pylist(written, schema=_pieces()))
            count += len(batch)
    (folder / "README.md").write_text(_readme(job, count), encoding="utf-8")
    return count


def _batches(samples: Iterable[WrittenSample]) -> Iterator[list[WrittenSample]]:
    batch: list[WrittenSample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _pieces() -> pyarrow.Schema:
    head = [("sample_id", pyarrow.int64()), ("problem", pyarrow.string()), ("sample_index", pyarrow.int64())]
    kinds = {field.name: re.split(r"[ .]", str(field.type).removeprefix("dt."))[0] for field in fields(WrittenPiece)}
    return pyarrow.schema([*head, *((name, _TYPES.get(kind, pyarrow.string())) for name, kind in kinds.items())])


def _piece_row(sample: WrittenSample, piece: WrittenPiece) -> dict[str, Any]:
    result = sample.result
    head = {"sample_id": result.sample_id, "problem": result.problem, "sample_index": result.sample_index}
    return head | {field.name: getattr(piece, field.name) for field in fields(WrittenPiece)}


def _readme(job: WrittenJob, count: int) -> str:
    summary = job.summary
    accuracy = None if summary.accuracy is None else f"{summary.accuracy:.4f}"
    facts = {
        "problem set": job.job.problem_set,
        "from": json.dumps(dict(job.source)) if job.source else None,
        "content (SHA-256)": job.content_sha256,
        "policy": job.job.policy,
        "small model": job.job.small_model,
        "large model": job.job.large_model,
        "seed": job.job.stored_config.seed if job.job.stored_config else None,
        "accuracy": accuracy,
        "written by small, tokens": summary.written_small,
        "written by large, tokens": summary.written_large,
    }
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None)
    return _README.format(title=_cell(job.job.name), num_samples=count, rows=rows)


def _cell(value: object) -> str:
    """Names come from people: they make no markup."""
    return re.sub(r"([\\|<>\[\]`*_#&])", r"\\\1", " ".join(str(value).split()))


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
