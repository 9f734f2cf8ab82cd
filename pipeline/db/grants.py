"""Who may read: the role behind ``specthink sql``."""

from __future__ import annotations

from pydantic import SecretStr
from sqlalchemy import Connection, make_url, text


def grant_reading(connection: Connection, reader_url: SecretStr) -> None:
    """Let the role of this URL read every table and view that there is now. Idempotent; run after each migration.

    Reference answers are included: a person asks here, not a worker that generates.
    """
    role = connection.dialect.identifier_preparer.quote(make_url(reader_url.get_secret_value()).username or "")
    connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {role}"))
    connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
