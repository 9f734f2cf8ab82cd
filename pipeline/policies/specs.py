"""What a policy's spec is: the values that a job stores of it, and how the policy is built from them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pipeline.policies.protocol import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdRule:
    """What a threshold of a policy is compared with, so that it can be calibrated.

    field: the spec's field that holds the threshold. statistic: by the name that ``specthink calibrate`` gives it.
    side: "above" or "below", where the policy calls for the large model.
    """

    field: str = "threshold"
    statistic: str
    side: str


class PolicySpec(BaseModel):
    """A policy as a job stores it: a name, every number, and nothing that cannot be written as JSON.

    A spec of your own derives from this class, gives ``name`` a default (``name: Literal["mine"] = "mine"``), every
    other field a default, too, and ``build`` a body. Where several specs share a name, each has a ``preset`` with a
    default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has no such number

    name: str
    control_at: ClassVar[Literal["break", "word"]] = "break"
    """What ``random`` draws where it is matched to a job of this policy: the places at which this one calls large."""

    @abstractmethod
    def build(self) -> Policy:
        """The policy with these values."""
        raise NotImplementedError

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        """What its threshold is compared with; None where it has none. A spec with the fields ``threshold``,
        ``statistic`` and ``side`` says it with them."""
        said: dict[str, Any] = {name: getattr(self, name, None) for name in ("threshold", "statistic", "side")}
        if None in said.values():
            return None
        return ThresholdRule(statistic=str(said["statistic"]), side=str(said["side"]))
