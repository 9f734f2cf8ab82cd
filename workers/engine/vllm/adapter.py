"""vLLM behind the Engine protocol, but for who steps its core (workers.engine.vllm.inline and .separate).

Talks to vLLM's EngineCoreClient, the layer under its LLMEngine and AsyncLLM, and reads the core's raw outputs: these
hold ids, log-probabilities, end reasons and cache hits, which is all that is wanted. Measured with 128 requests in
flight on a 0.1 M-parameter model: 4 to 9 µs of Python per token here, decoding included; 30 µs through AsyncLLM.

vLLM reads its environment when it is imported: nothing in this folder imports it before ``load_vllm`` has set that up.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.accelerators import Accelerator
from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, EngineError, EngineUnavailable
from pipeline.samples import SegmentFinish
from pipeline.signals import NUM_TOP
from workers.engine.base import EngineInfo, GenerateRequest, GenerateResult, Sampling
from workers.engine.failures import one_line
from workers.engine.readings import Top
from workers.engine.running import Running, Tally
from workers.engine.threaded import Ended, ThreadedEngine

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.outputs import LogprobsLists

    from workers.engine.vllm.sockets import SocketFolder

_TRIAL_S = 300.0
"""A GPU engine may compile kernels for its first token."""
_TRIAL_PROMPT = 64
"""Tokens of the prompt by which the speed of prompts is measured: 4 s for 1.5 billion parameters on one CPU core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is used of vLLM."""

    process: Literal["inline", "separate"]
    cpu_threads: int
    is_cpu: bool
    accelerator: Accelerator | None
    config: VllmConfig
    inputs: InputProcessor
    client: EngineCoreClient
    tasks: tuple[Any, ...]
    """What the model can do, in vLLM's words ("generate", ...)."""
    sockets: SocketFolder | None
    """Where the engine's own process is spoken to; None: it has none."""


class VllmEngine(ThreadedEngine["EngineCoreRequest"]):
    """One loaded model. Made by ``load_vllm``."""

    def __init__(self, name: str, info: EngineInfo, chat: ChatModel, parts: Parts) -> None:
        from vllm.v1.engine import FinishReason

        super().__init__(
            info,
            chat.decode_stream,
            name=name,
            max_model_len=parts.config.model_config.max_model_len,
            max_in_flight=parts.config.scheduler_config.max_num_seqs,
            cache_tokens=(parts.config.cache_config.num_gpu_blocks or 0) * parts.config.cache_config.block_size or None,
        )
        self._prompt_tokens_per_s: float | None = None
        """How fast it computes prompts, by its trial."""
        self._step_tokens = parts.config.scheduler_config.max_num_batched_tokens
        """Most prompt tokens of one step, where no single prompt is longer."""
        self._accelerator = parts.accelerator
        self._is_cpu = parts.is_cpu
        self._inputs = parts.inputs
        self._tasks = parts.tasks
        self._stop = FinishReason.STOP
        self._finishes = {FinishReason.STOP: SegmentFinish.EOS, FinishReason.LENGTH: SegmentFinish.LENGTH}

    def why_not(self, sampling: Sampling) -> str | None:
        """An engine with drafts has no min_p; and on a CPU vLLM draws wrongly beside drafts, or dies: it hands their
        check the temperature, top_p and top_k of no request."""
        if self._accelerator is None:
            return None
        remedy = "start a worker without --accelerate for it"
        label = self._accelerator.label
        if self._is_cpu and sampling.temperature > 0:
            return (
                f"with {label} this worker's engine, on a CPU, writes greedily alone, and the job's temperature is "
                f"{sampling.temperature:g}: submit it with --temperature 0, or {remedy}"
            )
        if sampling.min_p > 0:
            return f"with {label} an engine has no min_p, and the job's is {sampling.min_p:g}: {remedy}"
        return None

    def try_out(self) -> None:
        """Generate two tokens: some models load and then cannot run (a head size that the CPU's attention lacks).

        The second one tells how fast prompts are computed; the first warms the engine up. Raises ConfigurationError,
        with the engine closed.
        """
        self._try([0])
        num_tokens = min(_TRIAL_PROMPT, self._max_model_len - 1)
        seconds = self._try([0] * num_tokens).first_token_seconds
        with self._changed:
            self._tally = Tally()
            self._prompt_tokens_per_s = num_tokens / seconds

    def _try(self, prompt_ids: list[int]) -> GenerateResult:
        outcomes: queue.SimpleQueue[GenerateResult | Exception] = queue.SimpleQueue()
        usual, greedy = Sampling(), Sampling(temperature=0.0)
        sampling = greedy if self.why_not(usual) else usual
        request = GenerateRequest(request_id="trial", prompt_ids=prompt_ids, max_tokens=1, sampling=sampling)
        self.submit(request, outcomes.put)
        outcome: GenerateResult | Exception
        try:
            outcome = outcomes.get(timeout=_TRIAL_S)
        except queue.Empty:
            outcome = EngineError(self._name, f"no token came within {_TRIAL_S:.0f} s")
        if isinstance(outcome, Exception):
            self.close()
            reason = str(outcome).removeprefix(f"{self._name}: ")
            raise ConfigurationError(f"{self._name}: the model cannot be run: {reason}") from outcome
        return outcome

    def _prefill_s(self, prompt_lengths: Sequence[int]) -> float:
        if not prompt_lengths or self._prompt_tokens_per_s is None:
            return 0.0
        tokens: int = max(max(prompt_lengths), min(sum(prompt_lengths), self._step_tokens))
        return tokens / self._prompt_tokens_per_s

    def _prepare(self, request: GenerateRequest) -> EngineCoreRequest:
        """vLLM's form of the request. It takes 0.1 ms, which the engine's thread need not spend."""
        from vllm.inputs.engine import tokens_input

        if reason := self.why_not(request.sampling):
            raise EngineError(self._name, f"request {request.request_id} was refused: {reason}")
        try:
            return self._inputs.process_inputs(
                request.request_id,
                tokens_input(list(request.context_ids)),
                sampling_params(request),
                supported_tasks=self._tasks,
                priority=request.priority,
            )
        except Exception as error:  # vLLM raises its own errors, ValueError and TypeError for what it does not take
            raise EngineError(self._name, f"request {request.request_id} was refused: {one_line(error)}") from error

    def _handle(self, outputs: EngineCoreOutputs) -> None:
        """Take what one step brought, a token or so for each running request. The hot path."""
        ended: list[Ended] = []
        with self._changed:
            running_by_id = self._running
            num_generated = 0
            for output in outputs.outputs:
                core_id = output.request_id
                running = running_by_id.get(core_id)
                if running is None:
                    continue  # aborted; the core had this on its way
                num_generated += len(output.new_token_ids)
                end = self._take_output(running, output)
                if end is not None:
                    ended.append(end)
                    self._release(core_id)
                    if output.finish_reason is None:
                        self._drop(core_id)
            self._tally.generated(num_generated)
            if outputs.scheduler_stats is not None:
                self._num_scheduled = outputs.scheduler_stats.num_running_reqs
                self._cache_usage = outputs.scheduler_stats.kv_cache_usage
                if (drafts := outputs.scheduler_stats.spec_decoding_stats) is not None:
                    self._tally.drafted(drafts.num_drafts, drafts.num_draft_tokens, drafts.num_accepted_tokens)
        for running, finish in ended:
            self._deliver(running, finish)

    def _take_output(self, running: Running, output: EngineCoreOutput) -> Ended | None:
        token_ids = output.new_token_ids
        running.num_generated_tokens += len(token_ids)
        if running.first_token_at is None:
            _note_first(running, output)
        reason = output.finish_reason
        rows = _Rows(output.new_logprobs) if output.new_logprobs is not None and token_ids else None
        if reason is None:
            return self._take(running, token_ids, None, rows)
        if reason not in self._finishes:  # ended by vLLM: an internal fault of this request
            request_id = running.request.request_id
            return running, EngineUnavailable(self._name, f"request {request_id} ended with {reason}")
        kept = token_ids[:-1] if reason is self._stop else token_ids
        return self._take(running, kept, self._finishes[reason], rows)


def _note_first(running: Running, output: EngineCoreOutput) -> None:
    """Times and cache hits, which come with the first token. The core's clock is this machine's monotonic clock."""
    from vllm.v1.engine import EngineCoreEventType

    if output.new_token_ids:
        running.first_token_at = time.monotonic()
    if output.prefill_stats is not None:
        running.num_cached_tokens = output.prefill_stats.num_cached_tokens
    for event in output.events or ():
        if event.type is EngineCoreEventType.SCHEDULED and running.scheduled_at is None:
            running.scheduled_at = max(event.timestamp, running.submitted_at)


class _Rows:
    """The core's log-probabilities of one request and step.

    Column 0 is the drawn token's; then come the most likely ones, as many as the request of the batch that asks for
    most wants: a request reads its own number of them.
    """

    __slots__ = ("_lists",)

    def __init__(self, lists: LogprobsLists) -> None:
        self._lists = lists

    def drawn(self, row: int) -> float:
        return float(self._lists.logprobs[row, 0])

    def top(self, row: int) -> Top:
        columns = slice(1, NUM_TOP + 1)
        return Top(self._lists.logprob_token_ids[row, columns].tolist(), self._lists.logprobs[row, columns].tolist())


def sampling_params(request: GenerateRequest) -> SamplingParams:
    """Every number explicit: a model's generation_config.json must not change how a job samples."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        top_k=request.sampling.top_k,
        min_p=request.sampling.min_p,
        presence_penalty=request.sampling.presence_penalty,
        frequency_penalty=request.sampling.frequency_penalty,
        repetition_penalty=request.sampling.repetition_penalty,
        max_tokens=request.max_new_tokens,
        seed=request.seed,
        # Only ever this one: a request with logprob_token_ids takes the log-probabilities of its neighbours away.
        logprobs=request.num_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
