"""Faults of the gateway: killed in the middle of a batch that came in over HTTP, with workers beside it."""

from __future__ import annotations

import atexit
import json
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import openai

from pipeline.chat.prompts import render_user_message
from pipeline.samples import ModelRole
from tests.chaos.faults import Fault, Strike
from tests.chaos.harness import Broken, Harness
from tests.chaos.models import MODELS, REPOSITORY
from tests.chaos.texts import NUM_PROBLEMS, expected_text, make_problem
from tests.chaos.workload import GRADER, ChaosJob

ENDPOINT: Any = "/v1/chat/completions"
PAIR = f"speculative-thinking:improved/{MODELS[ModelRole.SMALL].name}+{MODELS[ModelRole.LARGE].name}"


class KillGateway(Fault):
    """kill -9 of the gateway and of two workers in mid-batch; often also right after the batch was created, or before.

    The client does what the official one does: it sends again what it got no answer to.
    """

    name, component = "kill -9 of gateway and workers in mid-batch", "gateway"
    lasts_s = 12.0

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._batch = ""

    def setup(self, harness: Harness) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._start(harness)
        atexit.register(self._kill)

    def teardown(self, harness: Harness) -> None:
        self._kill()
        atexit.unregister(self._kill)

    def _start(self, harness: Harness) -> None:
        command = ["-m", "pipeline.cli", "--state-dir", str(harness.state.state_dir), "gateway"]
        log = (harness.state.state_dir / "logs" / "gateway.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, *command, "--port", str(self._port)], cwd=REPOSITORY, stdout=log, stderr=log,
            env={**os.environ, **harness.environment},
        )  # fmt: skip
        log.close()
        harness.until(self._answers, "the gateway to answer", timeout_s=60)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _restart(self, harness: Harness) -> None:
        self._kill()
        self._start(harness)

    @property
    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self._port}/v1", api_key="any", timeout=30)

    def submit(self, harness: Harness, rng: random.Random, seed: int) -> ChaosJob:
        client = self._client
        requests = self._upload(
            client, "batch", [_request(seed, number, self.num_samples) for number in range(NUM_PROBLEMS)]
        )
        answers = self._upload(client, "evals", [_answer(seed, number) for number in range(NUM_PROBLEMS)])
        asked: dict[str, Any] = {
            "input_file_id": requests, "endpoint": ENDPOINT, "completion_window": "24h",
            "extra_body": {"specthink": {"grader": GRADER, "answers_file_id": answers}},
        }  # fmt: skip
        made = client.batches.create(**asked)
        if rng.random() < 0.7:
            time.sleep(rng.uniform(0, 0.3))  # before, while or after its lines are read
            self._restart(harness)
        again = self._client.batches.create(**asked, extra_headers={"x-stainless-retry-count": "1"})
        if again.id != made.id:
            raise Broken(f"a create that was sent twice made {made.id} and {again.id}")
        self._batch = made.id
        job_ids = harness.until(lambda: self._job_ids(), "the batch to have its job", timeout_s=30)
        if len(job_ids) != 1:
            raise Broken(f"the batch has jobs {job_ids}")
        return ChaosJob(job_ids[0], seed, self.num_samples)

    def _upload(self, client: openai.OpenAI, purpose: Any, lines: list[dict[str, Any]]) -> str:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return client.files.create(file=("requests.jsonl", content), purpose=purpose).id

    def _job_ids(self) -> list[int]:
        found: list[int] = self._client.batches.retrieve(self._batch).specthink["job_ids"]  # type: ignore[attr-defined]
        return found

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        at = time.time()
        assert self._process is not None
        pids = [self._process.pid]
        self._process.kill()
        pids += [harness.kill(rng.choice(harness.names(kind))) for kind in ("small", "large")]
        self._restart(harness)
        return Strike(at=at, pids=pids)

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        if self._process is None or self._process.poll() is not None or not self._answers():
            self._restart(harness)

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        """Every line once, with the very texts that the models write."""
        client = self._client
        final = ("completed", "failed", "expired", "cancelled")
        harness.until(lambda: client.batches.retrieve(self._batch).status in final, "the batch to end")
        batch = client.batches.retrieve(self._batch)
        if batch.status != "completed" or batch.error_file_id or not batch.output_file_id:
            return [f"the batch is {batch.status} with the error file {batch.error_file_id}"]
        lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        ids = sorted(line["custom_id"] for line in lines)
        wrong = [] if ids == [str(number) for number in range(NUM_PROBLEMS)] else [f"its output has the lines {ids}"]
        return wrong + [fault for line in lines for fault in _faults(job, line)]


def _request(seed: int, number: int, num_samples: int) -> dict[str, Any]:
    """What the scripted models know: the problem as the harness's own jobs ask it."""
    message = {"role": "user", "content": render_user_message("math", make_problem(seed, number))}
    body = {"model": PAIR, "messages": [message], "n": num_samples, "seed": seed, "max_tokens": 1000}
    return {"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": body}


def _answer(seed: int, number: int) -> dict[str, Any]:
    return {"custom_id": str(number), "answer": make_problem(seed, number).answer}


def _faults(job: ChaosJob, line: dict[str, Any]) -> list[str]:
    """What is wrong with the choices of a line, in words."""
    choices = line["response"]["body"]["choices"]
    if [choice["index"] for choice in choices] != list(range(job.num_samples)):
        return [f"line {line['custom_id']} has {len(choices)} choices"]
    told = []
    for choice in choices:
        about, message = choice["specthink"], choice["message"]
        text = about["think_start"] + message["reasoning"] + about["think_end"] + message["content"]
        if text != expected_text(job.seed, int(line["custom_id"]), choice["index"]):
            told.append(f"line {line['custom_id']}, choice {choice['index']}: the text is another one")
    return told


FAULTS: list[Fault] = [KillGateway()]
