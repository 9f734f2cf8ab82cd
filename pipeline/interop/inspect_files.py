"""Writes a job as a log of Inspect, one sample at a time: ``.eval``, or ``.json``.

A ``.eval`` file is a zip whose entries are packed with Zstandard, and no frozen format: Inspect's own recorder writes
it. That recorder is no public part of Inspect, whose public function wants all samples in memory; the tests hold this
module to what the installed release does.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.log._recorders.eval import EvalRecorder
from inspect_ai.model import ModelUsage

from pipeline.errors import ConfigurationError
from pipeline.interop.inspect_log import make_header, make_reductions, sample_maker, usual_file_name
from pipeline.results.written import WrittenJob, WrittenSample

ENDINGS = (".eval", ".json")


def write_log(job: WrittenJob, samples: Iterable[WrittenSample], path: Path) -> tuple[Path, int]:
    """Write it whole or not at all; returns the file and the number of samples.

    path: a file that ends in .eval or .json, or a folder, in which the log gets the name that Inspect would give it.
    """
    header = make_header(job)
    if path.is_dir():
        path = path / usual_file_name(header)
    write = {".eval": _write_eval, ".json": _write_json}.get(path.suffix)
    if write is None:
        raise ConfigurationError(f"{path}: a log of Inspect ends in .eval or .json; a folder gives it a name")
    maker = sample_maker(job, header)
    counted = _Counted(header, map(maker.make, samples))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / f"part{path.suffix}"
            write(job, header, counted, part)
            part.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error
    return path, counted.count


class _Counted:
    """Samples as they pass, counted, with their tokens added up in the log's statistics."""

    def __init__(self, header: EvalLog, samples: Iterable[EvalSample]) -> None:
        self._stats = header.stats
        self._samples = samples
        self.count = 0

    def __iter__(self) -> Iterator[EvalSample]:
        for sample in self._samples:
            self.count += 1
            for total, usage in (
                (self._stats.model_usage, sample.model_usage),
                (self._stats.role_usage, sample.role_usage),
            ):
                for name, used in usage.items():
                    total[name] = total.get(name, ModelUsage()) + used
            yield sample


def _write_eval(job: WrittenJob, header: EvalLog, samples: Iterable[EvalSample], path: Path) -> None:
    """In a thread of its own: a notebook has a loop that runs already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _record(job, header, samples, path)).result()


async def _record(job: WrittenJob, header: EvalLog, samples: Iterable[EvalSample], path: Path) -> None:
    recorder = EvalRecorder(str(path.parent))
    await recorder.log_init(header.eval, str(path), clean=True)
    await recorder.log_start(header.eval, header.plan)
    for sample in samples:
        await recorder.log_sample(header.eval, sample, write_through=True)  # else it stays in memory to the next flush
    await recorder.log_finish(
        header.eval, header.status, header.stats, header.results, make_reductions(job), header_only=True
    )


def _write_json(job: WrittenJob, header: EvalLog, samples: Iterable[EvalSample], path: Path) -> None:
    """The samples stand last, where whoever wants the header alone need not read them; the header has their sums."""
    kept = path.with_name("samples")
    with kept.open("wb") as file:
        for number, sample in enumerate(samples):
            file.write(b",\n" if number else b"\n")
            file.write(sample.model_dump_json(exclude_none=True).encode())
    header.reductions = make_reductions(job)
    with path.open("wb") as file, kept.open("rb") as written:
        head = header.model_dump_json(exclude_none=True, exclude={"samples"})
        file.write(head.removesuffix("}").encode() + b',"samples":[')
        shutil.copyfileobj(written, file)
        file.write(b"]}\n")
