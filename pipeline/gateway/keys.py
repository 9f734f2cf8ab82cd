"""Keys: how they are made and known again, and how many requests each may make."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine

from pipeline.batches import Caller
from pipeline.db.gateway.keys import find_caller, has_keys
from pipeline.db.session import transaction
from pipeline.errors import ConfigurationError
from pipeline.key_roles import KeyRole
from pipeline.texts import printable

PREFIX = "sk-specthink-"
MAX_KEY_CHARS = 200


def check_name(name: str) -> None:
    """Raises ConfigurationError for a name that no list could show."""
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise ConfigurationError(f"{printable(name)!r} is no name for a key: give 1 to 100 characters that can be seen")


def make_key() -> str:
    """A new key, of 256 random bits: nobody finds it by trying, so a plain hash of it is enough."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """Who a key belongs to. Where there is no key at all, and only programs of this machine connect, all are let in."""

    def __init__(self, db_engine: Engine, *, is_local: bool) -> None:
        self._db_engine = db_engine
        self._is_local = is_local

    def are_needed(self) -> bool:
        return not self._is_local or self.are_there()

    def are_there(self) -> bool:
        with transaction(self._db_engine) as connection:
            return has_keys(connection)

    def caller(self, key: str | None) -> Caller | None:
        """None: the key opens nothing, or there is none and one is needed.

        The database finds a hash by an index; what that takes tells nothing of a key, whose hash nobody can choose.
        """
        if key is None or not key or len(key) > MAX_KEY_CHARS:
            return None if self.are_needed() else Caller()
        with transaction(self._db_engine) as connection:
            found = find_caller(connection, hash_of(key))
        if found is not None:
            return found
        return None if self.are_needed() else Caller()


class Limiter:
    """Lets each key make so many requests a minute, with bursts of as many; counts of this process alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[int, tuple[float, float]] = {}

    def wait_s(self, caller: Caller) -> float:
        """Takes one request of the caller's; 0, or the seconds after which there is one, and none is taken."""
        if caller.requests_per_minute is None or caller.key_id is None:
            return 0.0
        most = float(caller.requests_per_minute)
        with self._lock:
            now = self._clock()
            left, seen = self._left.get(caller.key_id, (most, now))
            left = min(most, left + (now - seen) * most / 60)
            wait = 0.0 if left >= 1 else (1 - left) * 60 / most
            self._left[caller.key_id] = (left - 1 if wait == 0 else left, now)
            return wait


def may_change(caller: Caller) -> bool:
    return caller.role is not KeyRole.READ
