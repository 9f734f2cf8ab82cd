"""What a policy's spec is: the values that a job stores of it, and how the policy is built from them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigurationError

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

    @abstractmethod
    def build(self) -> Policy:
        """The policy with these values."""
        raise NotImplementedError

    def takeover_limit(self, trigger: str) -> int:
        """Most tokens of a takeover with this trigger, for the control that is to match this policy.

        Raises ConfigurationError for a policy whose takeovers have no such limit, or that has none.
        """
        raise ConfigurationError(f"policy {self.name!r} does not say how long its takeovers are; it cannot be matched")

    def handing_back(self) -> dict[str, Any]:
        """How takeovers end, as fields of the control that is to match this policy: its own, else after n tokens."""
        own: dict[str, Any] = {
            name: getattr(self, name) for name in ("handback", "handback_from") if name in type(self).model_fields
        }
        return own or {"handback": "tokens"}
