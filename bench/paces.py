"""How long a step of a GPU takes, from published numbers: the paces of the engines in ``bench.paced``.

A step with n requests, of whose prompts p tokens are new to the prefix cache, takes a + b·n + c·p seconds:

    a   weights ÷ bandwidth, all-reduces of the layers, and the host's part
    b   a context's keys and values ÷ bandwidth, and a token's arithmetic
    c   a token's arithmetic

Nothing here was measured on a GPU: it is a roofline whose parts are added, so that steps are rather too long. Half as
long a step is twice as many hand-overs per second: that is what ``--faster`` of the benchmark tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.planning.pools import EngineRates
from pipeline.samples import ModelRole

BYTES = 2
"""Of a weight, a key or a value: bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model, as its configuration says. key_value_width: of one layer, key and value heads × their dimension."""

    parameters: float
    layers: int
    key_value_width: int

    @property
    def weight_bytes(self) -> float:
        return BYTES * self.parameters

    @property
    def context_bytes(self) -> float:
        """Keys and values of one token of a context."""
        return 2.0 * self.layers * self.key_value_width * BYTES

    @property
    def token_flop(self) -> float:
        """A multiplication and an addition per weight."""
        return 2 * self.parameters


QWEN_1_5B = Shape(parameters=1.54e9, layers=28, key_value_width=2 * 128)
QWEN_7B = Shape(parameters=7.61e9, layers=28, key_value_width=4 * 128)
QWEN_32B = Shape(parameters=32.5e9, layers=64, key_value_width=8 * 128)
LLAMA_70B = Shape(parameters=70.6e9, layers=80, key_value_width=8 * 128)
"""The bases of the DeepSeek-R1 distillates: model cards and config.json of Qwen2.5 (1.5B, 7B, 32B) and Llama 3.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU. bytes_per_s, flop_per_s: the maker's peaks; the shares of them are what kernels get.

    host_s: of a step, for scheduling, inputs and sampling, where the GPU waits. all_reduce_s: one between GPUs.
    """

    bytes_per_s: float
    flop_per_s: float
    share_of_bytes: float
    share_of_flop: float
    host_s: float
    all_reduce_s: float


H100 = Device(
    bytes_per_s=3.35e12,  # data sheet of the H100 SXM: HBM3
    flop_per_s=989e12,  # the same: dense bfloat16
    share_of_bytes=0.8,  # ours: what large copies and the matrix kernels of a step get
    share_of_flop=0.5,  # ours: what published training runs and prefills get
    host_s=0.002,  # ours: the engine's makers give some milliseconds before, less after their new core
    all_reduce_s=10e-6,  # ours: the latency of a small one over NVLink
)

CONTEXT_TOKENS = 1024
"""Mean context while it is written: prompt and half of a text of some 2,000 tokens."""


def step_law(shape: Shape, device: Device, *, gpus: int, context_tokens: int = CONTEXT_TOKENS) -> EngineRates:
    """a, b and c as ``step_s``, ``token_s`` and ``prompt_token_s``. gpus: of one engine, by tensor parallelism."""
    bytes_per_s = gpus * device.bytes_per_s * device.share_of_bytes
    token_compute_s = shape.token_flop / (gpus * device.flop_per_s * device.share_of_flop)
    num_all_reduces = 2 * shape.layers if gpus > 1 else 0
    return EngineRates(
        step_s=shape.weight_bytes / bytes_per_s + device.host_s + num_all_reduces * device.all_reduce_s,
        token_s=context_tokens * shape.context_bytes / bytes_per_s + token_compute_s,
        prompt_token_s=token_compute_s,
    )


Pace = Mapping[ModelRole, EngineRates]

PACES: Mapping[str, Pace] = {
    name: {
        ModelRole.SMALL: step_law(small, H100, gpus=small_gpus),
        ModelRole.LARGE: step_law(large, H100, gpus=large_gpus),
    }
    for name, small, small_gpus, large, large_gpus in (
        ("1.5B+7B", QWEN_1_5B, 1, QWEN_7B, 1),
        ("1.5B+32B", QWEN_1_5B, 1, QWEN_32B, 2),
        ("7B+70B", QWEN_7B, 1, LLAMA_70B, 4),
    )
}
"""By name. GPUs: as few as hold the weights and the contexts of 256 samples."""
