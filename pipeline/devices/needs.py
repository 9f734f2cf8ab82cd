"""How much of a GPU's memory an engine needs. The numbers are assumptions, taken from how vLLM accounts for memory.

A worker fits on tp GPUs where, on each,

    weights / tp + activations + runtime + KV of the least tokens  ≤  its share of the memory

The least tokens are KV_TOKENS_PER_SAMPLE for each sample in flight, and never fewer than the longest context, without
which vLLM does not start.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.devices.machine import GIB
from pipeline.devices.sizes import ModelSize
from pipeline.settings import EngineSettings

RUNTIME = 3 * GIB // 2
"""CUDA's context, the kernels' workspaces and CUDA graphs."""
RUNTIME_OF_MANY = GIB // 2
"""Beside it, where an engine has several GPUs: NCCL's buffers."""
BATCHED_TOKENS = 8192
"""Tokens of one step, for which vLLM keeps activations: its default on large GPUs."""
KV_TOKENS_PER_SAMPLE = 1024
"""With less, samples in flight push each other out of the cache as soon as they have thought a little."""
_DTYPE_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes on each of an engine's GPUs; the KV cache is for ``tokens``, the least."""

    weights: int
    activations: int
    runtime: int
    tokens: int
    bytes_per_token: int

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.runtime

    @property
    def total(self) -> int:
        return self.fixed + self.tokens * self.bytes_per_token

    def cache_tokens(self, room: int) -> int:
        """Tokens that the KV cache holds where the engine has so many bytes."""
        return max(0, room - self.fixed) // self.bytes_per_token

    def __str__(self) -> str:
        """E.g. "15.3 GiB (weights 3.0, activations 1.2, runtime 1.5, KV of 131,072 tokens 9.6)"."""
        kv = self.tokens * self.bytes_per_token
        return (
            f"{self.total / GIB:.1f} GiB (weights {self.weights / GIB:.1f}, activations {self.activations / GIB:.1f}, "
            f"runtime {self.runtime / GIB:.1f}, KV of {self.tokens:,} tokens {kv / GIB:.1f})"
        )


def need_on_gpu(size: ModelSize, engine: EngineSettings, tp: int) -> Need:
    """What an engine of this model needs on each of tp GPUs."""
    given = engine.vllm.arguments
    width = 4 * size.hidden_size + 2 * max(size.intermediate_size, size.expert_width) // tp
    batched = (
        int(given["max_num_batched_tokens"]) if given.get("max_num_batched_tokens", "").isdigit() else BATCHED_TOKENS
    )
    logits = 2 * 4 * engine.max_in_flight * size.vocabulary  # float32, and once more for what is drawn from them
    number_bytes = 1 if given.get("kv_cache_dtype", "auto").startswith("fp8") else _DTYPE_BYTES
    return Need(
        weights=-(-size.weight_bytes(engine.vllm.dtype, on_gpu=True) // tp),
        activations=batched * width * _DTYPE_BYTES + logits,
        runtime=RUNTIME + (RUNTIME_OF_MANY if tp > 1 else 0),
        tokens=least_tokens(size, engine),
        bytes_per_token=size.kv_bytes(tp, number_bytes=number_bytes),
    )


def least_tokens(size: ModelSize, engine: EngineSettings) -> int:
    """The fewest tokens that a KV cache is to hold."""
    longest = engine.max_model_len or size.max_model_len or 0
    return max(engine.max_in_flight * KV_TOKENS_PER_SAMPLE, longest)


def remedy(size: ModelSize, engine: EngineSettings, tp: int, room: int) -> str:
    """What would make it fit into so many bytes on each of tp GPUs, as the end of a message; '' where nothing does."""
    need = need_on_gpu(size, engine, tp)
    tokens = need.cache_tokens(room)
    in_flight = tokens // KV_TOKENS_PER_SAMPLE
    if in_flight < 1:
        return ""
    changes = []
    if in_flight < engine.max_in_flight:
        changes.append(f"max_in_flight {in_flight} (SPECTHINK_ENGINE__MAX_IN_FLIGHT)")
    if tokens < (engine.max_model_len or size.max_model_len or 0):
        changes.append(f"max_model_len {tokens // 1024 * 1024} (SPECTHINK_ENGINE__MAX_MODEL_LEN)")
    return f"; with {' and '.join(changes)} it fits" if changes else ""
