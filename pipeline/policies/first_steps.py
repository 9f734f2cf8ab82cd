"""First steps: the large model writes the beginning of the thoughts, the small one the rest.

Source: the priming of TrigReason, arXiv 2604.14847, alone. The paper says that without it accuracy falls by a quarter;
as a policy of its own it shows what the opening is worth, and what a trigger adds to it. Large writes so many steps in
one go; where it ends before that, small goes on from there.
"""

from __future__ import annotations

from typing import Literal

from pipeline.policies.protocol import SampleContext, Watcher
from pipeline.policies.requests import Trigger
from pipeline.policies.step_delegation import text_reader
from pipeline.policies.thinking_steps import (
    DraftWatcher,
    ThinkingStepsPolicy,
    ThinkingStepsSpec,
    ThinkingStepsState,
)
from pipeline.policies.turns import Tokens
from pipeline.samples import ModelRole


class FirstStepsSpec(ThinkingStepsSpec):
    """Every number of the policy. How many steps are enough depends on the pair, and on how long its steps are."""

    name: Literal["first-steps"] = "first-steps"
    first_steps: Tokens = 20
    """Steps that large writes first of all. Paper: 20."""

    def build(self) -> FirstStepsPolicy:
        return FirstStepsPolicy(self)


class FirstStepsPolicy(ThinkingStepsPolicy[ThinkingStepsState]):
    """The policy of a spec. Immutable."""

    _state_type = ThinkingStepsState

    def _first_state(self, role: ModelRole, max_tokens: int, trigger: Trigger) -> ThinkingStepsState:
        return ThinkingStepsState(role=role, max_tokens=max_tokens, trigger=trigger, is_open=False)

    def _watch_small(self, context: SampleContext, state: ThinkingStepsState) -> Watcher | None:
        return super()._watch_small(context, state) if self._ends_phase else None

    def _draft_watcher(self, context: SampleContext, state: ThinkingStepsState) -> DraftWatcher:
        return DraftWatcher(text_reader(context, state.text), state, ends_phase=self._ends_phase)
