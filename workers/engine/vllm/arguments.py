"""Makes vLLM's environment and arguments from our settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.accelerators import Accelerator, DraftMethod
from pipeline.errors import ConfigurationError
from pipeline.settings import EngineSettings
from workers.engine.vllm.given import typed_arguments

_CPU_BLOCK_SIZE = 32
"""Tokens per KV block on a CPU, the least its attention takes. The default, 128, would let a resumed sample compute
up to 127 tokens again at every hop."""


def set_environment(model: str, settings: EngineSettings) -> None:
    """What vLLM and OpenMP read from the environment. Measured reasons: two OpenMP threads on two cores, or a thread
    bound to a core that another engine has, make a step ten times as long."""
    os.environ["OMP_NUM_THREADS"] = str(settings.vllm.cpu_threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(settings.vllm.cpu_threads)
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


def engine_arguments(model: str, revision: str | None, settings: EngineSettings, *, process: str) -> dict[str, Any]:
    """EngineArgs' keyword arguments. Imports vLLM: ``set_environment`` comes first.

    Raises ConfigurationError for an argument that a person gave and that vLLM, or its engine here, does not take.
    """
    from vllm.platforms import current_platform

    given = typed_arguments(settings.vllm.arguments)
    arguments: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "tokenizer_revision": revision,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_in_flight,
        "dtype": _dtype(model, revision, settings, trusts_code=bool(given.get("trust_remote_code"))),
        "tensor_parallel_size": settings.vllm.tensor_parallel_size,
        "seed": 0,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "generation_config": "vllm",  # its sampling defaults are not for us; the EOS ids in it count all the same
        "use_tqdm_on_load": False,
    }
    if settings.vllm.accelerator is not None:
        arguments["speculative_config"] = _drafts(model, revision, settings, settings.vllm.accelerator, given)
    if process == "separate":
        from workers.engine.vllm.lifeline import TiedMultiprocExecutor, TiedUniProcExecutor

        one = settings.vllm.tensor_parallel_size == 1
        arguments["distributed_executor_backend"] = TiedUniProcExecutor if one else TiedMultiprocExecutor
    if current_platform.is_cpu():
        if given.get("enable_chunked_prefill"):
            raise ConfigurationError("engine argument enable_chunked_prefill ends vLLM's engine on a CPU: leave it out")
        arguments |= {
            "block_size": _CPU_BLOCK_SIZE,
            "kv_cache_memory_bytes": int(settings.vllm.cpu_kv_cache_gib * 2**30),
            "enforce_eager": True,  # compiling takes minutes
            # A seeded request whose prompt is computed in two parts kills vLLM's CPU engine ("CPU Generator does not
            # use offset"), so prompts are computed whole.
            "enable_chunked_prefill": False,
        }
    else:
        arguments["gpu_memory_utilization"] = settings.vllm.gpu_memory_utilization
    return arguments | given


def _drafts(
    model: str, revision: str | None, settings: EngineSettings, accelerator: Accelerator, given: Mapping[str, Any]
) -> dict[str, Any]:
    """vLLM's speculative_config. Raises ConfigurationError for what cannot be: without a package, and for a draft model
    with another vocabulary."""
    if accelerator.method is DraftMethod.SUFFIX and find_spec("arctic_inference") is None:
        raise ConfigurationError("accelerate suffix needs the package arctic-inference, which is not installed")
    if accelerator.method is DraftMethod.DRAFT and accelerator.model is not None:
        trusts_code = bool(given.get("trust_remote_code"))
        own = _vocabulary(model, revision, trusts_code=trusts_code)
        other = _vocabulary(accelerator.model, None, trusts_code=trusts_code)
        if own != other:
            raise ConfigurationError(
                f"accelerate {accelerator.label}: a draft model has the vocabulary of the model that it drafts for: "
                f"it has {other} ids, and {Path(model).name} has {own}"
            )
    return accelerator.speculative_config(tensor_parallel_size=settings.vllm.tensor_parallel_size)


def _vocabulary(model: str, revision: str | None, *, trusts_code: bool) -> int:
    import vllm.config  # noqa: F401  # before the next one, which imports it in a circle
    from vllm.transformers_utils.config import get_config

    config = get_config(model, trust_remote_code=trusts_code, revision=revision)
    return int(config.get_text_config().vocab_size)


def _dtype(model: str, revision: str | None, settings: EngineSettings, *, trusts_code: bool) -> str:
    """ "auto" on a CPU leaves a float32 checkpoint as it is.

    vLLM would make it bfloat16, which loses digits and, on a CPU without instructions for it, half of the speed.
    """
    from vllm.platforms import current_platform

    if settings.vllm.dtype != "auto" or not current_platform.is_cpu():
        return settings.vllm.dtype

    import torch
    import vllm.config  # noqa: F401  # before the next two, which import it in a circle
    from vllm.transformers_utils.config import get_config
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    config = get_config(model, trust_remote_code=trusts_code, revision=revision)
    stored = ModelArchConfigConvertorBase.get_torch_dtype(config, model, revision=revision, config_format="hf")
    return "float32" if stored is torch.float32 else "auto"
