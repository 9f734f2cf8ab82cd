"""Rows of Parquet, decoded in a process of its own (``pipeline.problems.decode_parquet``)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.problems import decode_parquet
from pipeline.problems.lines import Fault, Row, UnreadableFile, read_lines
from pipeline.problems.values import parse_json


def read_parquet(file: BinaryIO, max_line_bytes: int) -> Iterator[Row | Fault]:
    command = [sys.executable, "-P", decode_parquet.__file__, str(decode_parquet.MAX_MEMORY)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # else numpy reserves memory for each core
    with subprocess.Popen(
        command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as decoder:
        assert decoder.stdout is not None
        try:
            number = 0
            for number, line in read_lines(decoder.stdout, max_line_bytes):
                entry = line if isinstance(line, Fault) else parse_decoded(number, line)
                if entry is None:
                    return
                yield entry
            raise UnreadableFile(f"broken Parquet after row {number}: {_ending(decoder.wait())}")
        finally:
            decoder.kill()


def parse_decoded(number: int, line: str) -> Row | Fault | None:
    """None at the end of the file. Raises UnreadableFile where the decoder gave up."""
    try:
        message = parse_json(line)
    except ValueError as error:
        return Fault(number=number, reason=str(error))
    if "row" in message:
        return Row(number=number, values=message["row"], binary=tuple(message.get("binary", ())))
    if "fault" in message:
        return Fault(number=number, reason=message["fault"])
    if "broken" in message:
        raise UnreadableFile(f"broken Parquet {message['broken']}")
    return None


def _ending(status: int) -> str:
    """How the decoder ended without a word."""
    if status == -signal.SIGXCPU:
        return f"it takes longer than {decode_parquet.MAX_CPU_S} s to decode"
    if status < 0:
        allowed = decode_parquet.MAX_MEMORY / 2**30
        return f"its decoder crashed ({signal.Signals(-status).name}): damaged, or more than {allowed:g} GiB to decode"
    return f"its decoder ended with status {status}"
