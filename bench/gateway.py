"""What a batch costs the gateway: seconds and memory of submitting many lines, and what chat adds to an answer.

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

from pipeline.db import migrate
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.embedded import EMBEDDED_LOGINS, start, stop

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
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder, gateway(Path(folder) / "state") as (url, pid):
        few = measure(url, pid, Path(folder) / "few.jsonl", num_lines=max(1, options.lines // 50), chars=options.chars)
        many = measure(url, pid, Path(folder) / "many.jsonl", num_lines=options.lines, chars=options.chars)
    for each in (few, many):
        print(
            f"{each['lines']:>9,} lines, {each['mib']:6.1f} MiB: uploaded in {each['upload_s']:5.2f} s, created in "
            f"{each['create_s']:5.2f} s, read in {each['read_s']:5.2f} s; the gateway had {each['peak_mib']:5.0f} MiB"
        )
    print(f"memory, many to few: {many['peak_mib'] / few['peak_mib']:.2f}")


@contextmanager
def gateway(state_dir: Path) -> Iterator[tuple[str, int]]:
    """A gateway process on embedded servers: its address and its id."""
    state = start(state_dir, die_with_parent=True)
    try:
        owner = open_database(state.connections.database_url)
        migrate.upgrade(owner)
        with transaction(owner) as connection:
            grant_roles(connection, EMBEDDED_LOGINS)
        owner.dispose()
        command = [sys.executable, "-m", "pipeline.cli", "--state-dir", str(state_dir), "gateway", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            try:
                yield url, process.pid
            finally:
                process.terminate()
    finally:
        stop(state_dir)


def measure(url: str, pid: int, path: Path, *, num_lines: int, chars: int) -> dict[str, Any]:
    with path.open("w") as file:
        write_lines(file, num_lines, chars)
    client = openai.OpenAI(base_url=url, api_key="any", timeout=600)
    client.models.list()  # the first request also opens connections
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
        "lines": num_lines, "mib": path.stat().st_size / 2**20, "upload_s": sent - begin, "create_s": created - sent,
        "read_s": read - created, "peak_mib": peak[0],
    }  # fmt: skip


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
