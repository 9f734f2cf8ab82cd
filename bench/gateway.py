"""What a batch costs the gateway: seconds and memory of submitting many lines.

    make bench-gateway BENCH_ARGS="--lines 50000"

A gateway of its own process on embedded servers, with the official client. Its memory is read while it works. No engine
runs: the lines are stored, and that is all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import openai
import psutil

from bench.measurement import Report
from bench.stack import Stack, running_servers
from bench.usage import cpu_seconds
from pipeline.db.grants import grant_roles
from pipeline.db.session import transaction
from pipeline.embedded import EMBEDDED_LOGINS

ALL, PEAK, SIZE = "all of it", "peak memory of the gateway", "size of the file"
UNITS = {PEAK: "MiB", SIZE: "MiB"}
WINDOW: Any = "background"
"""Without a deadline; the client's types know 24h alone."""
LINE = {
    "method": "POST", "url": "/v1/chat/completions",
    "body": {"model": "org/small-1b+org/large-32b", "seed": 1, "max_tokens": 1000},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--chars", type=int, default=400, help="of each question")
    options = parser.parse_args()
    sizes = {"few": max(1, options.lines // 50), "many": options.lines}
    report = Report(bench="gateway", setting=vars(options))
    with (
        tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder,
        running_servers() as stack,
        gateway(stack) as (url, pid),
    ):
        found = {
            name: measure(stack, url, pid, Path(folder) / f"{name}.jsonl", num_lines=size, chars=options.chars)
            for name, size in sizes.items()
        }
    for name, size in sizes.items():
        for figure, value in found[name].items():
            report.add(f"{size:,} lines, {figure}", value, UNITS.get(figure, "s"))
    report.add("memory, many to few", found["many"][PEAK] / found["few"][PEAK])
    report.goal(f"{options.lines:,} lines, {ALL}", "≤", 30)
    report.goal("memory, many to few", "≤", 1.2)
    report.print()


@contextmanager
def gateway(stack: Stack) -> Iterator[tuple[str, int]]:
    """A gateway process beside what runs: its address and its id."""
    with transaction(stack.db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
    folder = str(stack.state.state_dir)
    command = [sys.executable, "-m", "pipeline.cli", "--state-dir", folder, "gateway", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        try:
            yield url, process.pid
        finally:
            process.terminate()


def measure(stack: Stack, url: str, pid: int, path: Path, *, num_lines: int, chars: int) -> dict[str, float]:
    with path.open("w") as file:
        write_lines(file, num_lines, chars)
    client = openai.OpenAI(base_url=url, api_key="any", timeout=600)
    client.models.list()  # the first request also opens connections
    before = cpu_seconds(pid), cpu_seconds(stack.pid("postgres"))
    with peak_memory(pid) as peak:
        begin = time.perf_counter()
        with path.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        sent = time.perf_counter()
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window=WINDOW
        )
        created = time.perf_counter()
        while batch.status == "validating":
            time.sleep(0.05)
            batch = client.batches.retrieve(batch.id)
        read = time.perf_counter()
    assert batch.status == "in_progress", batch.errors
    assert batch.request_counts is not None
    assert batch.request_counts.total == num_lines
    return {
        "uploaded in": sent - begin,
        "created in": created - sent,
        "read in": read - created,
        ALL: read - begin,
        "CPU of the gateway": cpu_seconds(pid) - before[0],
        "CPU of Postgres": cpu_seconds(stack.pid("postgres")) - before[1],
        PEAK: peak[0],
        SIZE: path.stat().st_size / 2**20,
    }


def write_lines(file: IO[str], num_lines: int, chars: int) -> None:
    for number in range(num_lines):
        question = f"{number}: " + "What is the sum of all of these numbers? " * (chars // 41)
        body = {**LINE["body"], "messages": [{"role": "user", "content": question}]}  # type: ignore[dict-item]
        file.write(json.dumps({**LINE, "custom_id": f"request-{number}", "body": body}) + "\n")


@contextmanager
def peak_memory(pid: int) -> Iterator[list[float]]:
    """The largest resident memory of a process meanwhile, in MiB."""
    process, peak, stopped = psutil.Process(pid), [0.0], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


if __name__ == "__main__":
    main()
