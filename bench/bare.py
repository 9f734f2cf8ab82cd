"""Bare vLLM, for comparison: a process that loads a model and answers one batch of requests after the other.

The arrangement is vLLM's own (``LLM.generate`` in one process, or ``AsyncLLM``, whose engine has a process of its own);
the engine arguments are those of a worker in the same arrangement, the tokens per step included, for which vLLM has
other defaults by who asks. All requests are handed over at once: max_num_seqs keeps 128 in flight.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from bench.stack import REPOSITORY
from pipeline.settings import EngineSettings

Arrangement: TypeAlias = Literal["LLM.generate", "AsyncLLM"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BareRequest:
    prompt_ids: list[int]
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """How tokens are drawn, as vLLM names it."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A batch. token_ids: per request, EOS included. seconds: from the first request to the last answer; cpu_seconds:
    of the process that was asked, all threads, without its children."""

    token_ids: list[list[int]]
    seconds: float
    cpu_seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


class Child:
    """A process of this package that answers on stdout what it is asked on stdin, a line of JSON each.

    Ends with the ``with`` block, or with this process: its stdin ends then.
    """

    def __init__(self, module: str, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Killed where it takes long: what it answered is worth more than how it ends."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60 if error_type is None else 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def send(self, batch: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(batch), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def batches() -> Iterator[tuple[dict[str, Any], Callable[[dict[str, Any]], None]]]:
    """The child's side: each batch, and how to answer it. What libraries print to stdout goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    return ((json.loads(line), reply) for line in sys.stdin)


class BareEngine(Child):
    """One bare engine. settings: a worker's; None: the defaults."""

    def __init__(self, arrangement: Arrangement, model: Path, settings: EngineSettings | None = None) -> None:
        super().__init__("bench.bare", arrangement, str(model), (settings or EngineSettings()).model_dump_json())
        self.arrangement = arrangement

    def begin(self, requests: Sequence[BareRequest], sampled: Sampled = Sampled()) -> None:
        """Hand a batch over; another engine may be given its own before this one's is awaited."""
        self.send({"requests": [asdict(request) for request in requests], "sampled": asdict(sampled)})

    def answer(self) -> Answered:
        return Answered(**self.receive())

    def run(self, requests: Sequence[BareRequest], sampled: Sampled = Sampled()) -> Answered:
        self.begin(requests, sampled)
        return self.answer()


# -- the process -----------------------------------------------------------------------------------------------------


def serve(arrangement: Arrangement, model: str, settings: EngineSettings) -> None:
    """The process: ``LLM.generate`` is stepped in it unless the settings say otherwise, as vLLM's own default is."""
    read = batches()
    from workers.engine.vllm.arguments import engine_arguments, set_environment

    set_environment(model, settings)
    process = "separate" if arrangement == "AsyncLLM" else settings.vllm.process or "inline"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if process == "inline" else "1"
    arguments = engine_arguments(model, None, settings, process=process)
    arguments["max_num_batched_tokens"] = _batched_tokens(arguments)
    generate = _with_llm(arguments) if arrangement == "LLM.generate" else _with_async_llm(arguments)
    for batch, reply in read:
        prompts = [{"prompt_token_ids": request["prompt_ids"]} for request in batch["requests"]]
        params = [_params(request, batch["sampled"]) for request in batch["requests"]]
        start, cpu_start = time.perf_counter(), time.process_time()
        token_ids = generate(prompts, params)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        reply({"token_ids": token_ids, "seconds": seconds, "cpu_seconds": cpu_seconds})


def _batched_tokens(arguments: dict[str, Any]) -> int:
    """Most tokens per step of a worker with these arguments. On a CPU ``LLM`` would take twice as many."""
    from vllm.engine.arg_utils import EngineArgs

    return int(EngineArgs(**arguments).create_engine_config().scheduler_config.max_num_batched_tokens)


def _params(request: dict[str, Any], sampled: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        seed=request["seed"],
        max_tokens=request["max_tokens"],
        output_kind=RequestOutputKind.FINAL_ONLY,
        **sampled,
    )


def _with_llm(arguments: dict[str, Any]) -> Callable[[list[Any], list[Any]], list[list[int]]]:
    from vllm import LLM

    llm = LLM(**arguments)

    def generate(prompts: list[Any], params: list[Any]) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]

    return generate


def _with_async_llm(arguments: dict[str, Any]) -> Callable[[list[Any], list[Any]], list[list[int]]]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()

    async def start() -> AsyncLLM:
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments, enable_log_requests=False, disable_log_stats=True)
        )

    llm = loop.run_until_complete(start())

    async def one(index: int, prompt: Any, params: Any) -> list[int]:
        token_ids: list[int] = []
        async for output in llm.generate(prompt, params, request_id=f"{time.monotonic_ns()}-{index}"):
            token_ids = list(output.outputs[0].token_ids)
        return token_ids

    async def all_of(prompts: list[Any], params: list[Any]) -> list[list[int]]:
        pairs = enumerate(zip(prompts, params, strict=True))
        return list(await asyncio.gather(*(one(index, *pair) for index, pair in pairs)))

    return lambda prompts, params: loop.run_until_complete(all_of(prompts, params))


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], EngineSettings.model_validate_json(sys.argv[3]))  # type: ignore[arg-type]
