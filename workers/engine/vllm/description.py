"""Describes a loaded engine by all that may change its numbers."""

from __future__ import annotations

from pipeline.settings import EngineSettings
from workers.engine.base import EngineInfo
from workers.engine.vllm.adapter import Parts


def describe(name: str, revision: str | None, settings: EngineSettings, parts: Parts) -> EngineInfo:
    import torch
    from vllm import __version__
    from vllm.platforms import current_platform

    config = parts.config
    return EngineInfo(
        kind="vllm",
        version=__version__,
        has_own_device=not current_platform.is_cpu(),
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
            "tensor_parallel_size": settings.vllm.tensor_parallel_size,
            "cpu_threads": settings.vllm.cpu_threads if current_platform.is_cpu() else None,
            **_drafts(parts),
            **{f"argument {name}": value for name, value in sorted(settings.vllm.arguments.items())},
        },
    )


def _drafts(parts: Parts) -> dict[str, str | int]:
    """Which tokens are drawn with a seed depends on them."""
    accelerator = parts.accelerator
    return {} if accelerator is None else {"accelerate": accelerator.label, "draft_tokens": accelerator.draft_tokens}
