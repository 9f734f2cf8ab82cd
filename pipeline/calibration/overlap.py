"""Whether a pilot has problems that will be scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Overlap:
    """num_shared: problems of the pilot that will be scored, too. num_asked: all that will be."""

    num_shared: int
    num_asked: int

    def __str__(self) -> str:
        return f"{self.num_shared} of the {self.num_asked}"


def require_others(overlap: Overlap, told: str, *, otherwise: str) -> None:
    """Raises ConfigurationError where problems of a pilot will be scored, too. told: what will be scored. otherwise:
    what one does who wants it all the same."""
    if overlap.num_shared:
        raise ConfigurationError(
            f"{overlap} problems of {told} are in the pilot: a threshold or a word must not be chosen on what it is "
            f"scored on; run a pilot on other problems, or {otherwise}"
        )


def overlap_caveats(overlap: Overlap | None) -> Iterator[str]:
    """What speaks against a pilot's answer. overlap: None where nobody said what will be scored."""
    if overlap is None:
        yield "nobody said what will be scored: --for checks that it is other problems"
    elif overlap.num_shared:
        yield f"calibrated on its own problems: {overlap} that will be scored are in the pilot"
