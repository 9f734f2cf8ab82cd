"""What a policy's spec is: the values that a job stores of it, and how the policy is built from them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pipeline.policies.protocol import Policy


class PolicySpec(BaseModel):
    """A policy as a job stores it: a name, every number, and nothing that cannot be written as JSON.

    A spec of your own derives from this class, gives ``name`` a default (``name: Literal["mine"] = "mine"``), every
    other field a default, too, and ``build`` a body. Where several specs share a name, each has a ``preset`` with a
    default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    control_at: ClassVar[Literal["break", "word"]] = "break"
    """What ``random`` draws where it is matched to a job of this policy: the places at which this one calls large."""

    @abstractmethod
    def build(self) -> Policy:
        """The policy with these values."""
        raise NotImplementedError
