"""What Postgres and its drivers complain of, in one line with what can be done about it, chosen by SQLSTATE.

A connection that is refused brings no SQLSTATE along: these are told by the server's message.
"""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError

_MIGRATE = "run specthink migrate"
_LOGIN = "use the login of another role, or name this one in SPECTHINK_LOGINS__… for its role and run specthink migrate"
_REMEDIES: dict[str, str] = {
    "28P01": "correct the password in SPECTHINK_DATABASE_URL",
    "28000": "correct the user in SPECTHINK_DATABASE_URL, or let it in (pg_hba.conf on the server)",
    "3D000": "create it (CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0), or correct SPECTHINK_DATABASE_URL",
    "3F000": "let the login's search_path lead to schema public: ALTER ROLE name SET search_path = public",
    "42501": _LOGIN,
    "42P01": f"the tables are another version's, or not in the login's search_path: {_MIGRATE}",
    "42703": f"the tables are another version's: {_MIGRATE}",
    "42883": f"the functions are another version's: {_MIGRATE}",
    "25006": "the server takes no writes: name the primary in SPECTHINK_DATABASE_URL, not a standby",
    "08P01": "a pooler that keeps no sessions may be in between: name the server itself, or a pool in session mode",
    "26000": "a pooler in transaction mode is in between: name the server itself, or a pool in session mode",
    "42P05": "a pooler in transaction mode is in between: name the server itself, or a pool in session mode",
    "22P05": "the database cannot hold this text: it must be created with ENCODING 'UTF8'",
    "22021": "the database cannot hold this text: it must be created with ENCODING 'UTF8'",
    "53100": "the server's disk is full: make room, then everything goes on by itself",
    "53200": "the server is out of memory: give it more, or lower its work_mem",
    "53300": "the server takes no more connections: raise its max_connections, or run fewer workers",
    "57014": "a time limit of the server's or the login's ended it: raise statement_timeout",
    "55P03": "something else holds what it needs: try again, or end that",
    "40P01": "two transactions waited for each other: try again",
    "40001": "another transaction changed the same rows: try again",
    "XX001": "the server's data is damaged: look at its log, restore a backup",
    "XX002": "an index on the server is damaged: look at its log, REINDEX",
}
_REMEDIES_OF_CLASS: dict[str, str] = {
    "08": "see that the server runs (specthink up), and what SPECTHINK_DATABASE_URL says",
    "57": "the server is shutting down or starting up: try again",
    "53": "the server lacks a resource: look at its log",
    "58": "the server's own files cannot be read or written: look at its log",
    "XX": "an internal error of the server: look at its log",
}
_MESSAGES: tuple[tuple[str, str], ...] = (
    (r"password authentication failed|no password supplied", "28P01"),
    (r'role ".*" does not exist|no pg_hba\.conf entry|Peer authentication failed|is not permitted to log in', "28000"),
    (r'database ".*" does not exist', "3D000"),
    (r"too many clients|remaining connection slots|too many connections", "53300"),
    (r"transaction blocks not allowed in statement pooling mode", "08P01"),
    (r"prepared statement .* does not exist", "26000"),
    (r"prepared statement .* already exists", "42P05"),
)

_TLS: tuple[tuple[str, str], ...] = (
    (
        r"certificate verify failed|root certificate file",
        "name the CA that signed the server's certificate by sslrootcert=/path/ca.pem in SPECTHINK_DATABASE_URL",
    ),
    (r"does not match host name", "name the server in SPECTHINK_DATABASE_URL as its certificate does"),
    (
        r"does not support SSL",
        "the server has no TLS: turn it on there, or leave sslmode out of SPECTHINK_DATABASE_URL",
    ),
    (
        r"no encryption",
        "the server wants TLS: add ?sslmode=verify-full&sslrootcert=/path/ca.pem to SPECTHINK_DATABASE_URL",
    ),
)
"""What can be done where the two ends do not agree on TLS, by what the driver says: no SQLSTATE tells."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def sqlstate_of(error: BaseException | None) -> str | None:
    """The SQLSTATE of a driver's error, as it says it or as its message tells; None where neither does."""
    if error is None:
        return None
    given: str | None = getattr(error, "sqlstate", None)
    return given or next((state for pattern, state in _MESSAGES if re.search(pattern, str(error))), None)


def remedy_of(sqlstate: str | None) -> str | None:
    """What can be done about an error; None where nothing is known."""
    if sqlstate is None:
        return None
    return _REMEDIES.get(sqlstate) or _REMEDIES_OF_CLASS.get(sqlstate[:2])


def describe(error: DBAPIError, *, otherwise: str | None = None) -> str:
    """An error of the database in one line: what the server said, its SQLSTATE, and the remedy where one is known.

    otherwise: the SQLSTATE whose remedy is given where the error has none.
    """
    orig = error.orig or error
    sqlstate = sqlstate_of(orig)
    said = f"{first_line(orig)} (SQLSTATE {sqlstate})" if sqlstate else first_line(orig)
    of_tls = next((remedy for pattern, remedy in _TLS if re.search(pattern, said)), None)
    remedy = of_tls or remedy_of(sqlstate or otherwise)
    return f"{said}: {remedy}" if remedy else said


def line_of(error: Exception) -> str | None:
    """One line about an error that no code foresaw, at the edge of a process; None where it is not the database's."""
    return f"Postgres could not do it: {describe(error)}" if isinstance(error, DBAPIError) else None
