"""Joining the servers of another host: the token that it gives, and what a state folder keeps of it.

The token has the passwords of the writer's logins, and the certificate of the authority that the servers prove
themselves by. It is a secret: a file of mode 0600, never printed, removed when the servers are closed.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer

from pipeline.embedded.folder import StateFolder, write_private
from pipeline.errors import ConfigurationError

_SERVERS = "servers.json"
_AUTHORITY = "ca.pem"


class Token(BaseModel):
    """Where servers are, and how a writer reaches them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    host: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._:-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    database: str
    login: str
    database_password: SecretStr
    redis_password: SecretStr
    authority: str | None
    """PEM; None: the network is trusted, nothing is encrypted."""

    @field_serializer("database_password", "redis_password")
    def _as_it_is(self, secret: SecretStr) -> str:
        return secret.get_secret_value()

    @classmethod
    def read(cls, path: Path) -> Token:
        """Raises ConfigurationError for a file that is none, or that others can read; none of its values is told."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: {getattr(error, 'strerror', None) or 'is no token'}") from error
        if mode & 0o077:
            raise ConfigurationError(f"{path} holds passwords and has mode {mode:o}: chmod 600 {path}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            places = ", ".join(sorted({".".join(map(str, fault["loc"])) or "its form" for fault in error.errors()}))
            raise ConfigurationError(
                f"{path} is no token of `specthink up --listen` ({places}): take the file that it names"
            ) from None

    def database_url(self, authority: Path) -> SecretStr:
        tls = f"sslmode=verify-full&sslrootcert={_quoted(str(authority))}" if self.authority else "sslmode=disable"
        password = _quoted(self.database_password.get_secret_value())
        return SecretStr(f"postgresql://{self.login}:{password}@{self._place}/{self.database}?{tls}")

    def redis_url(self, authority: Path) -> SecretStr:
        scheme, tls = ("rediss", f"?ssl_ca_certs={_quoted(str(authority))}") if self.authority else ("redis", "")
        password = _quoted(self.redis_password.get_secret_value())
        return SecretStr(f"{scheme}://{self.login}:{password}@{self._place}/0{tls}")

    @property
    def _place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _quoted(text: str) -> str:
    return quote(text, safe="")


def store_token(folder: StateFolder, token: Token, check: Callable[[SecretStr, SecretStr], None]) -> None:
    """Make the folder use these servers from now on, once they let this host in and prove who they are.

    check: is given the addresses of database and Redis, and raises where they will not do: nothing is changed then.
    Call with the folder's lock held.
    """
    new = folder.path / "joined.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    try:
        write_private(new / _AUTHORITY, token.authority or "")
        write_private(new / _SERVERS, token.model_dump_json(indent=1))
        check(token.database_url(new / _AUTHORITY), token.redis_url(new / _AUTHORITY))
        shutil.rmtree(folder.joined, ignore_errors=True)
        new.rename(folder.joined)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def find_token(state_dir: Path) -> Token | None:
    """Of the servers that a state folder has joined; None: of none. Raises ConfigurationError."""
    path = StateFolder.of(state_dir).joined / _SERVERS
    return Token.read(path) if path.exists() else None


def authority_file(state_dir: Path) -> Path:
    return StateFolder.of(state_dir).joined / _AUTHORITY


def leave(state_dir: Path) -> bool:
    """Forget the servers of another host; False where none were joined."""
    joined = StateFolder.of(state_dir).joined
    if not joined.exists():
        return False
    shutil.rmtree(joined)
    return True
