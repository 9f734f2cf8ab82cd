"""ThinkBrake: the think phase ends where its closing tag would nearly have been the next token.

Source: ThinkBrake, arXiv 2510.00546, and its released code. Its rule, at every break:

    log-probability of the most likely next token - log-probability of the closing tag <= threshold:   end the phase

The released code reads the tag after ".\\n", before the break is whole, and asks for it. Here it is read after the
whole break, of the token that small writes anyway: nothing is asked, and one token is thrown away where the phase ends.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.policies.exits.protocol import Token
from pipeline.policies.exits.spec import ExitSpec
from pipeline.policies.protocol import PolicyState, Reading, SampleContext
from pipeline.samples import ModelRole, WritingRole
from pipeline.signals import Signal


class ThinkBrakeExit(ExitSpec):
    """Every number of the rule. The threshold does not carry over to another model: try several on a pilot job."""

    name: Literal["think_brake"] = "think_brake"
    threshold: Annotated[float, Field(ge=0)] = 0.25
    """The margin in nats up to which the tag is near. Paper: 0.1, 0.25, 1.0, 2.5 and 5.0 were tried. A tag that is not
    among the 20 most likely tokens is never near."""
    agree: Annotated[int, Field(ge=1)] = 1
    """So many breaks in a row, at which the margin was read, have to agree. Ours; paper: 1."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer. Ours; paper: the one model there is."""

    @property
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.FIRST_MARGIN})

    def reader(self, context: SampleContext, state: PolicyState, num_tokens: int) -> _MarginReader:
        return _MarginReader(self, state.get("num_near", 0))


class _MarginReader:
    """Compares the margins of steps' first tokens. Steps that large begins have none, and change nothing."""

    num_back = 1

    def __init__(self, spec: ThinkBrakeExit, num_near: int) -> None:
        self.reading: Reading | None = None
        self._spec = spec
        self._num_near = num_near

    @property
    def state(self) -> PolicyState:
        return {"num_near": self._num_near}

    def feed(self, token: Token) -> bool:
        if not token.begins_step or token.readings is None:
            return False
        margin = token.readings.get(Signal.FIRST_MARGIN)
        if margin is None or margin > self._spec.threshold:
            self._num_near = 0
            return False
        self._num_near += 1
        if self._num_near < self._spec.agree:
            return False
        self.reading = Reading(value=margin, threshold=self._spec.threshold, outcome="exit")
        return True
