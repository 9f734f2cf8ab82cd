"""The law of a step's time, against arithmetic by hand."""

from __future__ import annotations

import pytest

from bench.paces import CONTEXT_TOKENS, H100, LLAMA_70B, PACES, QWEN_1_5B, QWEN_7B, QWEN_32B, Shape, step_law

GPU_BYTES = 0.9 * 80e9


def test_a_step_of_a_small_model() -> None:
    law = step_law(QWEN_1_5B, H100, gpus=1)
    assert law.step_s == pytest.approx(3.08e9 / 2.68e12 + 0.002)  # 1.15 ms for the weights
    assert law.prompt_token_s == pytest.approx(3.08e9 / 494.5e12)  # 6.2 µs
    assert law.token_s == pytest.approx(1024 * 28_672 / 2.68e12 + 3.08e9 / 494.5e12)  # 11.0 + 6.2 µs
    assert law.request_s == 0


def test_gpus_share_weights_and_arithmetic_and_wait_for_each_other() -> None:
    one, four = step_law(LLAMA_70B, H100, gpus=1), step_law(LLAMA_70B, H100, gpus=4)
    assert four.step_s - 0.002 - 160 * 10e-6 == pytest.approx((one.step_s - 0.002) / 4)
    assert four.token_s == pytest.approx(one.token_s / 4)


@pytest.mark.parametrize(("shape", "gpus"), [(QWEN_1_5B, 1), (QWEN_7B, 1), (QWEN_32B, 2), (LLAMA_70B, 4)])
def test_gpus_are_as_few_as_hold_the_weights_and_256_contexts(shape: Shape, gpus: int) -> None:
    needed = shape.weight_bytes + 256 * CONTEXT_TOKENS * shape.context_bytes
    assert needed <= gpus * GPU_BYTES
    assert gpus == 1 or needed > gpus / 2 * GPU_BYTES  # tensor parallelism goes by powers of two


def test_a_larger_model_is_slower() -> None:
    for pace in PACES.values():
        small, large = pace.values()
        assert small.step_seconds(256) < large.step_seconds(256)
