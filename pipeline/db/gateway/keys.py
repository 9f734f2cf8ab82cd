"""The statements of keys, and of the names that requests may give for a pair of models."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from pipeline.batches import ApiKey, Caller
from pipeline.errors import ConfigurationError, NotFound
from pipeline.key_roles import KeyRole

_FIND_KEY = text("""
    SELECT id AS key_id, name, role, requests_per_minute, max_file_bytes, sha256 FROM api_keys
    WHERE sha256 = :sha256 AND revoked_at IS NULL
""")
_MARK_USED = text("""
    UPDATE api_keys SET last_used_at = clock_timestamp()
    WHERE id = :key AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
""")
_ANY_KEY = text("SELECT EXISTS (SELECT FROM api_keys WHERE revoked_at IS NULL)")


def find_caller(connection: Connection, sha256: str) -> Caller | None:
    """Who has the key with this hash; None: nobody, or it was revoked. Index: uq_api_keys_sha256."""
    row = connection.execute(_FIND_KEY, {"sha256": sha256}).mappings().first()
    if row is None:
        return None
    connection.execute(_MARK_USED, {"key": row["key_id"]})
    values = {name: value for name, value in row.items() if name != "sha256"}
    return Caller(**values | {"role": KeyRole(row["role"])})


def has_keys(connection: Connection) -> bool:
    """Whether there is a key that opens something."""
    return bool(connection.execute(_ANY_KEY).scalar_one())


_INSERT_KEY = text("""
    INSERT INTO api_keys (name, sha256, role, requests_per_minute, max_file_bytes)
    VALUES (:name, :sha256, :role, :requests_per_minute, :max_file_bytes)
""")
_LIST_KEYS = text("""
    SELECT id, name, role, created_at, last_used_at, revoked_at, requests_per_minute, max_file_bytes
    FROM api_keys ORDER BY id
""")
_REVOKE = text("UPDATE api_keys SET revoked_at = clock_timestamp() WHERE name = :name AND revoked_at IS NULL")


def insert_key(
    connection: Connection,
    *,
    name: str,
    sha256: str,
    role: KeyRole,
    requests_per_minute: int | None = None,
    max_file_bytes: int | None = None,
) -> None:
    """Store a key's hash. Raises ConfigurationError where a valid key has this name."""
    values = {
        "name": name,
        "sha256": sha256,
        "role": role.value,
        "requests_per_minute": requests_per_minute,
        "max_file_bytes": max_file_bytes,
    }
    try:
        with connection.begin_nested():
            connection.execute(_INSERT_KEY, values)
    except IntegrityError as error:
        raise ConfigurationError(f"a valid key is named {name!r}; revoke it first, or take another name") from error


def list_keys(connection: Connection) -> list[ApiKey]:
    rows = connection.execute(_LIST_KEYS).mappings()
    return [ApiKey(**{**row, "role": KeyRole(row["role"])}) for row in rows]


def revoke_key(connection: Connection, name: str) -> None:
    """From now on it opens nothing; what its owner has stays. Raises NotFound."""
    if connection.execute(_REVOKE, {"name": name}).rowcount == 0:
        raise NotFound(f"there is no valid key {name!r}; specthink key list shows them")


# Names of pairs

_SAVE_ALIAS = text("""
    INSERT INTO model_aliases (name, options) VALUES (:name, CAST(:options AS jsonb))
    ON CONFLICT (name) DO UPDATE SET options = excluded.options, created_at = clock_timestamp()
""")
_FIND_ALIAS = text("SELECT options FROM model_aliases WHERE name = :name")
_LIST_ALIASES = text("SELECT name, options, created_at FROM model_aliases ORDER BY name")
_DROP_ALIAS = text("DELETE FROM model_aliases WHERE name = :name")


def save_alias(connection: Connection, name: str, options: dict[str, Any]) -> None:
    """Give a pair this name; jobs that were asked by it before keep what they have."""
    connection.execute(_SAVE_ALIAS, {"name": name, "options": orjson.dumps(options).decode()})


def find_alias(connection: Connection, name: str) -> dict[str, Any] | None:
    """The options of a submission that a name stands for; None: it is no saved one."""
    found: dict[str, Any] | None = connection.execute(_FIND_ALIAS, {"name": name}).scalar()
    return found


def list_aliases(connection: Connection) -> dict[str, dict[str, Any]]:
    return {row.name: row.options for row in connection.execute(_LIST_ALIASES)}


def drop_alias(connection: Connection, name: str) -> None:
    """Raises NotFound."""
    if connection.execute(_DROP_ALIAS, {"name": name}).rowcount == 0:
        raise NotFound(f"there is no alias {name!r}; specthink alias list shows them")
