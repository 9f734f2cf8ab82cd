"""The engine whose core lives in the worker's process: one thread steps it, and takes additions and aborts between."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.chat.model import ChatModel
from workers.engine.base import EngineInfo
from workers.engine.vllm.adapter import Parts, VllmEngine

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core_client import InprocClient


STEP_S = 2.0
"""So long may the prompts of one step take. All that runs waits for it: without a bound, 60 prompts that come at once
to 1.5 billion parameters on a CPU take minutes, in which nobody gets a token."""


def step_budget(
    *, num_running: int, head_tokens: int, prompt_tokens_per_s: float, most: int, draft_tokens: int = 0
) -> int:
    """Tokens that vLLM may compute in the next step: one for each running request and its draft, and prompts for
    STEP_S.

    head_tokens: of the prompt that is next, which must fit: prompts are computed whole. most: what vLLM's buffers hold.
    """
    return min(most, num_running * (1 + draft_tokens) + max(int(prompt_tokens_per_s * STEP_S), head_tokens))


class InlineEngine(VllmEngine):
    """The core in this process, stepped by the engine's thread."""

    def __init__(self, name: str, info: EngineInfo, chat: ChatModel, parts: Parts) -> None:
        super().__init__(name, info, chat, parts)
        self._client: InprocClient = cast("InprocClient", parts.client)
        self._cpu_threads = parts.cpu_threads
        self._additions: list[EngineCoreRequest] = []
        self._aborts: list[str] = []
        self._most_step_tokens = self._step_tokens
        self._draft_tokens = parts.accelerator.draft_tokens if parts.accelerator else 0
        self._thread.start()

    def try_out(self) -> None:
        super().try_out()
        if self._prompt_tokens_per_s is not None:
            self._step_tokens = min(self._most_step_tokens, int(self._prompt_tokens_per_s * STEP_S))

    def _run(self) -> None:
        import torch

        # Where torch was imported before OMP_NUM_THREADS was set, each new thread starts with a thread per core, and
        # vLLM's attention kernel aborts when the number changes between two calls. vLLM has put a function that does
        # nothing in the place of torch.set_num_threads.
        torch._C.set_num_threads(self._cpu_threads)
        while self._step():
            pass

    def _step(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._running or self._aborts or self._death)
            if self._death is not None:
                return False
            additions, self._additions = self._additions, []
            aborts, self._aborts = self._aborts, []
        for core_request in additions:
            self._client.add_request(core_request)
        if aborts:
            self._client.abort_requests(aborts)
        self._bound_step()
        self._handle(self._client.get_output())
        return True

    def _bound_step(self) -> None:
        """Bound the prompts of the next step. The number of tokens is the scheduler's own, read at each step."""
        scheduler = self._client.engine_core.scheduler
        if self._prompt_tokens_per_s is None or not scheduler.waiting:
            return
        scheduler.max_num_scheduled_tokens = step_budget(
            num_running=len(scheduler.running),
            head_tokens=scheduler.waiting.peek_request().num_tokens,
            prompt_tokens_per_s=self._prompt_tokens_per_s,
            most=self._most_step_tokens,
            draft_tokens=self._draft_tokens,
        )

    def _add(self, core_id: str, core_request: EngineCoreRequest) -> None:
        core_request.request_id = core_id
        self._additions.append(core_request)
        self._changed.notify()

    def _drop(self, core_id: str) -> None:
        self._aborts.append(core_id)
        self._changed.notify()

    def _shut_down(self) -> None:
        if not self._thread.is_alive():  # else it hangs in a step, and its memory cannot be taken away
            self._client.shutdown()
