"""Loads a model into vLLM, in one of two arrangements (``settings.vllm.process``).

inline: the engine core lives in this process. separate: it has a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path

import structlog

from pipeline.chat.model import ChatModel
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.samples import ModelRole
from pipeline.settings import EngineSettings
from workers.engine.failures import failure_file, one_line
from workers.engine.vllm.adapter import Parts, VllmEngine
from workers.engine.vllm.arguments import engine_arguments, set_environment
from workers.engine.vllm.description import describe
from workers.engine.vllm.inline import InlineEngine
from workers.engine.vllm.separate import SeparateEngine
from workers.engine.vllm.sockets import SocketFolder
from workers.engine.vllm.versions import make_client

log = structlog.get_logger()


def load_vllm(chat: ChatModel, *, revision: str | None, role: ModelRole, settings: EngineSettings) -> VllmEngine:
    """Load a model; takes 15 to 50 s on a CPU.

    Raises ConfigurationError, in one line, where it cannot be loaded. Call it from a process that may have children
    (not a daemonic one).
    """
    model = chat.name
    name = Path(model).name if Path(model).is_dir() else model
    set_environment(model, settings)
    started_at = time.monotonic()
    with failure_file() as read_failure:
        try:
            parts = _start(model, revision, settings)
        except PipelineError:
            raise
        except Exception as error:
            reason = read_failure() or one_line(error)
            raise ConfigurationError(f"{name}: the model cannot be loaded: {reason}") from error
    engine_class = InlineEngine if parts.process == "inline" else SeparateEngine
    engine = engine_class(name, describe(name, revision, settings, parts), chat, parts)
    engine.try_out()
    seconds = round(time.monotonic() - started_at, 1)
    log.info("engine loaded", model=name, role=role, process=parts.process, seconds=seconds)
    return engine


def import_vllm() -> str:
    """Import what an engine is made of, and nothing more; returns vLLM's version."""
    import vllm
    from vllm.engine.arg_utils import EngineArgs  # noqa: F401
    from vllm.v1.engine.core_client import EngineCoreClient  # noqa: F401

    return str(vllm.__version__)


def _start(model: str, revision: str | None, settings: EngineSettings) -> Parts:
    from vllm.platforms import current_platform

    process = settings.vllm.process or ("inline" if current_platform.is_cpu() else "separate")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if process == "inline" else "1"

    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers import renderer_from_config
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.executor import Executor

    config = EngineArgs(**engine_arguments(model, revision, settings, process=process)).create_engine_config()
    renderer = renderer_from_config(config)
    gc.freeze()  # vLLM collects garbage three times while it loads a model: 0.9 s of a core each with all it imports
    sockets = SocketFolder() if process == "separate" else None
    with sockets.told() if sockets else contextlib.nullcontext():
        client = make_client(config, Executor.get_class(config), renderer, in_own_process=process == "separate")
    return Parts(
        process=process,
        cpu_threads=settings.vllm.cpu_threads,
        is_cpu=current_platform.is_cpu(),
        accelerator=settings.vllm.accelerator,
        config=config,
        inputs=InputProcessor(config, renderer),
        client=client,
        tasks=client.get_supported_tasks(),
        sockets=sockets,
    )
