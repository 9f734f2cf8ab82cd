"""vLLM behind the Engine protocol. The only module that imports it, together with workers.engine.vllm.lifeline.

Two arrangements (settings.engine.process), the same code but for who steps the engine:

inline: the engine core lives in this process and one thread steps it, taking additions and aborts between steps.
separate: the core has a process of its own; one thread here reads what it sends.

Both talk to vLLM's EngineCoreClient, the layer under its LLMEngine and AsyncLLM, and read the core's raw outputs:
these hold ids, end reasons and cache hits, which is all that is wanted. Measured with 128 requests in flight on a
0.1 M-parameter model: 4 to 9 µs of Python per token here, decoding included, against 30 µs through AsyncLLM.

vLLM reads its environment when it is imported, so nothing here imports it before ``load_engine`` has set that up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import structlog

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, EngineError, EngineUnavailable, PipelineError
from pipeline.samples import ModelRole, SegmentFinish
from pipeline.settings import EngineSettings
from workers.engine.base import EngineInfo, GenerateRequest, GenerateResult, Sampling
from workers.engine.running import Running, Tally
from workers.engine.threaded import Ended, ThreadedEngine, one_line

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
    from vllm.v1.engine.core_client import EngineCoreClient, InprocClient, SyncMPClient
    from vllm.v1.engine.input_processor import InputProcessor

log = structlog.get_logger()

FAILURE_FILE_VARIABLE = "SPECTHINK_ENGINE_FAILURE_FILE"
"""Environment variable: where the engine's process writes in one line why its model could not be loaded."""

_CPU_BLOCK_SIZE = 32
"""Tokens per KV block on a CPU, the least its attention takes. The default, 128, would let a resumed sample compute
up to 127 tokens again at every hop."""

_LOOK_S = 0.5
"""How often an idle reader looks whether the engine's process is still there."""

_TRIAL_S = 300.0
"""A GPU engine may compile kernels for its first token."""


def load_engine(model: str, revision: str | None, role: ModelRole, settings: EngineSettings) -> VllmEngine:
    """Load a model; takes 15 to 50 s on a CPU.

    model: a local folder or a hub id. Raises ConfigurationError, in one line, where it cannot be loaded.
    Call it from a process that may have children (not a daemonic one).
    """
    name = Path(model).name if Path(model).is_dir() else model
    chat = ChatModel.load(model, revision)
    set_environment(model, settings)
    started_at = time.monotonic()
    with _failure_file() as read_failure:
        try:
            parts = _start(model, revision, settings)
        except PipelineError:
            raise
        except Exception as error:
            reason = read_failure() or one_line(error)
            raise ConfigurationError(f"{name}: the model cannot be loaded: {reason}") from error
    engine_class = InlineEngine if parts.process == "inline" else SeparateEngine
    engine = engine_class(name, _describe(name, revision, settings, parts), chat, parts)
    engine.try_out()
    seconds = round(time.monotonic() - started_at, 1)
    log.info("engine loaded", model=name, role=role, process=parts.process, seconds=seconds)
    return engine


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is used of vLLM."""

    process: Literal["inline", "separate"]
    cpu_threads: int
    config: VllmConfig
    inputs: InputProcessor
    client: EngineCoreClient
    tasks: tuple[Any, ...]
    """What the model can do, in vLLM's words ("generate", ...)."""


class VllmEngine(ThreadedEngine["EngineCoreRequest"]):
    """One loaded model. Made by ``load_engine``."""

    def __init__(self, name: str, info: EngineInfo, chat: ChatModel, parts: _Parts) -> None:
        from vllm.v1.engine import FinishReason

        super().__init__(
            info,
            chat.decode_stream,
            name=name,
            max_model_len=parts.config.model_config.max_model_len,
            max_in_flight=parts.config.scheduler_config.max_num_seqs,
            cache_tokens=(parts.config.cache_config.num_gpu_blocks or 0) * parts.config.cache_config.block_size or None,
        )
        self._inputs = parts.inputs
        self._tasks = parts.tasks
        self._stop = FinishReason.STOP
        self._finishes = {FinishReason.STOP: SegmentFinish.EOS, FinishReason.LENGTH: SegmentFinish.LENGTH}

    def try_out(self) -> None:
        """Generate one token: some models load and then cannot run (a head size that the CPU's attention lacks).

        Raises ConfigurationError, with the engine closed.
        """
        outcomes: queue.SimpleQueue[GenerateResult | Exception] = queue.SimpleQueue()
        request = GenerateRequest(request_id="trial", prompt_ids=[0], max_tokens=1, sampling=Sampling())
        self.submit(request, outcomes.put)
        try:
            outcome = outcomes.get(timeout=_TRIAL_S)
        except queue.Empty:
            outcome = EngineError(self._name, f"no token came within {_TRIAL_S:.0f} s")
        if isinstance(outcome, Exception):
            self.close()
            reason = str(outcome).removeprefix(f"{self._name}: ")
            raise ConfigurationError(f"{self._name}: the model cannot be run: {reason}") from outcome
        with self._changed:
            self._tally = Tally()

    def _prepare(self, request: GenerateRequest) -> EngineCoreRequest:
        """vLLM's form of the request. It takes 0.1 ms, which the engine's thread need not spend."""
        from vllm.inputs.engine import tokens_input

        try:
            return self._inputs.process_inputs(
                request.request_id,
                tokens_input(list(request.prompt_ids)),
                _sampling_params(request),
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
        for running, finish in ended:
            self._deliver(running, finish)

    def _take_output(self, running: Running, output: EngineCoreOutput) -> Ended | None:
        token_ids = output.new_token_ids
        running.num_generated_tokens += len(token_ids)
        if running.first_token_at is None:
            _note_first(running, output)
        reason = output.finish_reason
        if reason is None:
            return self._take(running, token_ids, None)
        if reason not in self._finishes:  # ended by vLLM: an internal fault of this request
            request_id = running.request.request_id
            return running, EngineUnavailable(self._name, f"request {request_id} ended with {reason}")
        return self._take(running, token_ids[:-1] if reason is self._stop else token_ids, self._finishes[reason])


class InlineEngine(VllmEngine):
    """The core in this process, stepped by the engine's thread."""

    def __init__(self, name: str, info: EngineInfo, chat: ChatModel, parts: _Parts) -> None:
        super().__init__(name, info, chat, parts)
        self._client: InprocClient = cast("InprocClient", parts.client)
        self._cpu_threads = parts.cpu_threads
        self._additions: list[EngineCoreRequest] = []
        self._aborts: list[str] = []
        self._thread.start()

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
        self._handle(self._client.get_output())
        return True

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


class SeparateEngine(VllmEngine):
    """The core in its own process; the engine's thread reads what it sends.

    The socket to the core is used with the lock held only: it is not thread-safe.
    """

    def __init__(self, name: str, info: EngineInfo, chat: ChatModel, parts: _Parts) -> None:
        super().__init__(name, info, chat, parts)
        self._client: SyncMPClient = cast("SyncMPClient", parts.client)
        self._thread.start()

    def _run(self) -> None:
        while self._death is None:
            try:
                outputs = self._client.outputs_queue.get(timeout=_LOOK_S)
            except queue.Empty:
                self._client.ensure_alive()  # a killed core sends nothing, not even an error
                continue
            if isinstance(outputs, Exception):
                raise outputs
            self._handle(outputs)

    def _add(self, core_id: str, core_request: EngineCoreRequest) -> None:
        core_request.request_id = core_id
        try:
            self._client.add_request(core_request)
        except Exception as error:
            if not self._is_core_dead():  # else the engine's thread finds and reports it
                raise EngineError(self._name, f"request not sent to the engine: {one_line(error)}") from error

    def _is_core_dead(self) -> bool:
        try:
            self._client.ensure_alive()
        except Exception:
            return True
        return False

    def _drop(self, core_id: str) -> None:
        with contextlib.suppress(Exception):
            self._client.abort_requests([core_id])

    def _shut_down(self) -> None:
        self._client.shutdown()


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


def _sampling_params(request: GenerateRequest) -> SamplingParams:
    """Every number explicit: a model's generation_config.json must not change how a job samples."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        top_k=request.sampling.top_k,
        max_tokens=request.max_tokens,
        seed=request.seed,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def set_environment(model: str, settings: EngineSettings) -> None:
    """What vLLM and OpenMP read from the environment. Measured reasons: two OpenMP threads on two cores, or a thread
    bound to a core that another engine has, make a step ten times as long."""
    os.environ["OMP_NUM_THREADS"] = str(settings.cpu_threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(settings.cpu_threads)
    defaults = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    for variable, value in defaults.items():
        os.environ.setdefault(variable, value)


def _start(model: str, revision: str | None, settings: EngineSettings) -> _Parts:
    from vllm.platforms import current_platform

    process = settings.process or ("inline" if current_platform.is_cpu() else "separate")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if process == "inline" else "1"

    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers import renderer_from_config
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.executor import Executor

    config = EngineArgs(**engine_arguments(model, revision, settings, process=process)).create_engine_config()
    renderer = renderer_from_config(config)
    gc.freeze()  # vLLM collects garbage three times while it loads a model: 0.9 s of a core each with all it imports
    client = EngineCoreClient.make_client(
        multiprocess_mode=process == "separate",
        asyncio_mode=False,
        vllm_config=config,
        executor_class=Executor.get_class(config),
        log_stats=True,  # brings queue times and cache usage along
        renderer=renderer,
    )
    return _Parts(
        process=process,
        cpu_threads=settings.cpu_threads,
        config=config,
        inputs=InputProcessor(config, renderer),
        client=client,
        tasks=client.get_supported_tasks(),
    )


def engine_arguments(model: str, revision: str | None, settings: EngineSettings, *, process: str) -> dict[str, Any]:
    """EngineArgs' keyword arguments. Imports vLLM: ``set_environment`` comes first."""
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "tokenizer_revision": revision,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_in_flight,
        "dtype": _dtype(model, revision, settings),
        "tensor_parallel_size": settings.tensor_parallel_size,
        "seed": 0,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "generation_config": "vllm",  # its sampling defaults are not for us; the EOS ids in it count all the same
        "use_tqdm_on_load": False,
    }
    if process == "separate":
        from workers.engine.vllm.lifeline import TiedMultiprocExecutor, TiedUniProcExecutor

        one = settings.tensor_parallel_size == 1
        arguments["distributed_executor_backend"] = TiedUniProcExecutor if one else TiedMultiprocExecutor
    if current_platform.is_cpu():
        arguments |= {
            "block_size": _CPU_BLOCK_SIZE,
            "kv_cache_memory_bytes": int(settings.cpu_kv_cache_gib * 2**30),
            "enforce_eager": True,  # compiling takes minutes
            # A seeded request whose prompt is computed in two parts kills vLLM's CPU engine ("CPU Generator does not
            # use offset"), so prompts are computed whole.
            "enable_chunked_prefill": False,
        }
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments


def _dtype(model: str, revision: str | None, settings: EngineSettings) -> str:
    """ "auto" on a CPU leaves a float32 checkpoint as it is.

    vLLM would make it bfloat16, which loses digits and, on a CPU without instructions for it, half of the speed.
    """
    from vllm.platforms import current_platform

    if settings.dtype != "auto" or not current_platform.is_cpu():
        return settings.dtype

    import torch
    import vllm.config  # noqa: F401  # before the next two, which import it in a circle
    from vllm.transformers_utils.config import get_config
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    config = get_config(model, trust_remote_code=False, revision=revision)
    stored = ModelArchConfigConvertorBase.get_torch_dtype(config, model, revision=revision, config_format="hf")
    return "float32" if stored is torch.float32 else "auto"


def _describe(name: str, revision: str | None, settings: EngineSettings, parts: _Parts) -> EngineInfo:
    import torch
    from vllm import __version__
    from vllm.platforms import current_platform

    config = parts.config
    return EngineInfo(
        kind="vllm",
        version=__version__,
        settings={
            "model": name,
            "revision": revision,
            "process": parts.process,
            "device": current_platform.get_device_name(),
            "torch": torch.__version__,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "quantization": config.model_config.quantization,
            "max_model_len": config.model_config.max_model_len,
            "max_in_flight": settings.max_in_flight,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "block_size": config.cache_config.block_size,
            "enforce_eager": config.model_config.enforce_eager,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "cpu_threads": settings.cpu_threads if current_platform.is_cpu() else None,
        },
    )


@contextlib.contextmanager
def _failure_file() -> Iterator[Callable[[], str]]:
    """Where the engine's own process can leave why it failed; gives a function that reads it."""
    with tempfile.TemporaryDirectory(prefix="specthink-engine-") as folder:
        file = Path(folder) / "failure"
        os.environ[FAILURE_FILE_VARIABLE] = str(file)
        try:
            yield lambda: file.read_text(encoding="utf-8") if file.exists() else ""
        finally:
            del os.environ[FAILURE_FILE_VARIABLE]
