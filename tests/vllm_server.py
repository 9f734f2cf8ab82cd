"""A real vLLM server on a CPU, as somebody else would run it, for the tests of the engine that is a server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_S = 300.0

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
# A seeded prompt that is computed in two parts ends vLLM's CPU engine.
_ARGUMENTS = (
    "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--block-size", "32",
    "--enable-prompt-tokens-details", "--scheduling-policy", "priority", "--disable-uvicorn-access-log",
)  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def vllm_server(model: Path, log: Path, *arguments: str, port: int | None = None) -> Iterator[str]:
    """Its address, once it answers; it and its engine have ended afterwards."""
    port = port or free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *_ARGUMENTS, *arguments], env=environment | _ENVIRONMENT, stdout=output, stderr=output
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """The server with all that it started."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    for child in alive:
        child.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            said = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"the server ended: {said}"
            assert time.monotonic() < deadline, f"the server did not start: {said}"
            time.sleep(0.2)
        else:
            return
