"""What may come of asking a server, by what is to be done about it.

ServerError
├── ServerAway        it cannot be reached, or its stream broke off: wait for it
│   └── NoSuchHost    its name is not known: at start a wrong address
├── ServerForbids     it does not take the key, or does not know the model or the path: a person must look
├── ServerOverloaded  it takes nothing more for now: wait, and send less
├── ServerFaulty      it failed at this request, or is about to go away: ask whether it is well
└── ServerRefuses     it will never take this request
"""

from __future__ import annotations

import json
from typing import Any

_SHOWN = 300
"""Characters of a server's own words in an error."""
_FORBIDS = (401, 403, 404, 405)
_OVERLOADED = (429, 503)
_AWAY = (408, 502, 504)
"""A gateway speaks for a server that it cannot reach."""


class ServerError(Exception):
    """What a server said, or did not say."""


class ServerAway(ServerError):
    """It cannot be reached, or its stream broke off."""


class NoSuchHost(ServerAway):
    """Its name is not known."""


class ServerForbids(ServerError):
    """It does not take the key, or does not know the model or the path."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class ServerOverloaded(ServerError):
    """It takes nothing more for now. retry_after_s: as it says itself."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class ServerFaulty(ServerError):
    """It failed at this request."""


class ServerRefuses(ServerError):
    """It will never take this request."""


def of_status(status: int, text: str, retry_after: str | None = None) -> ServerError:
    """The error that an HTTP status other than 200 is, with the server's words."""
    told = f"it answers {status}: {words(text)}" if words(text) else f"it answers {status}"
    if status in _FORBIDS:
        return ServerForbids(told, status)
    if status in _OVERLOADED:
        return ServerOverloaded(told, _seconds(retry_after))
    if status in _AWAY:
        return ServerAway(told)
    return ServerFaulty(told) if status >= 500 else ServerRefuses(told)


def words(text: str) -> str:
    """What an answer's text says, in one line: the message of its JSON, where it has one."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        content = text
    for key in ("error", "message", "detail"):
        if isinstance(content, dict) and content.get(key):
            content = content[key]
    told = content if isinstance(content, str) else json.dumps(content)
    return " ".join(told.split())[:_SHOWN]


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header; the other form, a date, counts as none."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
