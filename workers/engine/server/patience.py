"""How long to wait for a server, and how many requests to have there at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

_FIRST_S = 1.0
_LONGEST_S = 30.0
_MOST_S = 60.0
"""Whatever the server asks for: it is looked at again."""
_SPREAD = 0.25
"""Of a delay, to and fro: many workers on one server must not come back in the same moment."""


def delays() -> Iterator[float]:
    """Seconds to wait before each try: about 1, 2, 4 … 30, for ever."""
    delay = _FIRST_S
    while True:
        yield delay * random.uniform(1 - _SPREAD, 1 + _SPREAD)
        delay = min(2 * delay, _LONGEST_S)


class Throttle:
    """Requests that may run at once: fewer after the server took one too many, then one more with each that it ends."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._delays = delays()
        self.limit = most

    def overloaded(self, num_running: int, retry_after_s: float | None) -> float:
        """The server turned a request away while so many others ran there; how long to send nothing."""
        self.limit = max(1, min(self.limit, num_running))
        return max(next(self._delays), min(retry_after_s or 0.0, _MOST_S))

    def accepted(self) -> None:
        """The server works on a request."""
        self._delays = delays()

    def ended(self) -> None:
        """A request came to its end."""
        self.limit = min(self._most, self.limit + 1)
