"""How many tokens a step of the inline engine may compute."""

from __future__ import annotations

import pytest

from workers.engine.vllm.inline import step_budget


@pytest.mark.parametrize(
    ("num_running", "head_tokens", "prompt_tokens_per_s", "budget"),
    [
        (0, 100, 50.0, 100),  # two seconds of prompts
        (8, 100, 50.0, 108),  # and a token for each that runs
        (8, 700, 50.0, 708),  # a prompt that takes longer is computed alone
        (8, 100, 50_000.0, 4096),  # a fast device has vLLM's own bound
    ],
)
def test_step_has_room_for_what_runs_and_for_prompts_of_two_seconds(
    num_running: int, head_tokens: int, prompt_tokens_per_s: float, budget: int
) -> None:
    found = step_budget(
        num_running=num_running, head_tokens=head_tokens, prompt_tokens_per_s=prompt_tokens_per_s, most=4096
    )
    assert found == budget


def test_step_has_room_for_the_drafts_of_what_runs() -> None:
    found = step_budget(num_running=8, head_tokens=100, prompt_tokens_per_s=50.0, most=4096, draft_tokens=4)
    assert found == 8 * 5 + 100
