"""The state folder: where everything of one embedded installation lies, its lock, its secrets, its running servers.

lock              held by the process that starts or stops servers here
alive             held by the supervisord of this folder while it lives
secrets.json      0600, the passwords, made once
running.json      0600, the connections; there while servers run
supervisord.conf  programs/NAME.json  what runs, and how
logs/             one file a program, rotated
postgres/ redis/  their data
gate.json tls/    while the gate is open to other hosts: where it listens and whom it lets in; its certificates
join-token        0600, what another host needs to join; while the gate is open
joined/           there where this folder has joined the servers of another host: their addresses, 0600, and their CA
made-user         there where a start here made the system user that the servers run as
run/              sockets; in /tmp where this folder's path is too long for a socket or has odd characters
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigurationError, ServiceUnavailable

_SAFE_PATH = re.compile(r"[A-Za-z0-9/._@+-]+")
_MAX_SOCKET_PATH = 103  # sun_path holds 108 bytes on Linux, 104 elsewhere, with the closing zero
_LONGEST_SOCKET_NAME = len("/supervisor.sock.4194304")  # supervisord binds a name with its pid, then links it
LOCK_TIMEOUT_S = 300.0
"""A start on a busy machine may take a minute; others wait for it longer than that."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths inside one state folder. path: absolute, without symlinks."""

    path: Path

    @classmethod
    def of(cls, state_dir: Path) -> StateFolder:
        return cls(Path(state_dir).expanduser().resolve())

    @property
    def secrets_file(self) -> Path:
        return self.path / "secrets.json"

    @property
    def running_file(self) -> Path:
        return self.path / "running.json"

    @property
    def made_user_file(self) -> Path:
        """There where a start in this folder made the system user that the servers run as."""
        return self.path / "made-user"

    @property
    def gate_file(self) -> Path:
        """What the gate is told; there while it is open."""
        return self.path / "gate.json"

    @property
    def tls(self) -> Path:
        return self.path / "tls"

    @property
    def token_file(self) -> Path:
        return self.path / "join-token"

    @property
    def joined(self) -> Path:
        return self.path / "joined"

    @property
    def programs(self) -> Path:
        return self.path / "programs"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def run(self) -> Path:
        """Folder of the sockets: short enough for a socket's name, and made of letters that need no quoting."""
        inside = self.path / "run"
        longest = len(os.fsencode(inside)) + _LONGEST_SOCKET_NAME
        if longest <= _MAX_SOCKET_PATH and _SAFE_PATH.fullmatch(str(inside)):
            return inside
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path("/tmp") / f"specthink-{os.geteuid()}-{digest}"

    @property
    def postgres_sockets(self) -> Path:
        return self.run / "pg"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    def log_path(self, program: str) -> Path:
        return self.logs / f"{program}.log"

    def exists(self) -> bool:
        """Whether servers were ever started here."""
        return (self.path / "lock").exists()

    def create(self) -> None:
        """Make the folder, its owner's alone. Raises ConfigurationError if it is somebody else's or another thing."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"state folder {self.path}: {error.strerror}; choose another --state-dir"
            ) from error
        if self.path.stat().st_uid != os.geteuid():
            raise ConfigurationError(f"state folder {self.path} belongs to another user; choose another --state-dir")
        if (
            list(self.path.iterdir()) and not self.exists()
        ):  # in this order: another start makes the lock before the rest
            raise ConfigurationError(f"{self.path} is neither empty nor a state folder; choose another --state-dir")
        self.path.chmod(0o700)
        (self.path / "lock").touch(mode=0o600)
        for part in (self.programs, self.logs):
            part.mkdir(mode=0o700, exist_ok=True)

    def create_run(self) -> None:
        """Make the folder of the sockets, empty; the servers of before must have ended."""
        self.remove_run()
        try:
            self.run.mkdir(mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"no folder for sockets at {self.run}: {error.strerror}; choose a shorter --state-dir"
            ) from error

    def remove_run(self) -> None:
        """Remove the sockets. A folder of that name in /tmp that is not ours is left alone."""
        with contextlib.suppress(FileNotFoundError):
            found = self.run.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                shutil.rmtree(self.run)

    @contextlib.contextmanager
    def lock(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the folder against any other start or stop. The lock ends with the process, however that ends."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._acquire(descriptor, timeout_s)
            yield
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(
                        f"{self.path} has been held by another `specthink up` or `down` for {timeout_s:.0f} s; "
                        "wait for it or end it, then try again"
                    ) from None
                time.sleep(0.05)

    @property
    def alive_file(self) -> Path:
        return self.path / "alive"

    def is_held(self) -> bool:
        """Whether a supervisord of this folder lives, even one that this system's processes do not show."""
        descriptor = os.open(self.alive_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def password(self, name: str) -> str:
        """The password of a role, made on first use. Call with the lock held."""
        known: dict[str, str] = read_json(self.secrets_file) or {}
        if name not in known:
            known[name] = secrets.token_urlsafe(24)
            write_private(self.secrets_file, json.dumps(known, indent=1))
        return known[name]


def read_json(path: Path) -> Any:
    """The file's content, or None without a file. Raises ConfigurationError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigurationError(f"{path.parent} is a file, and no folder; choose another --state-dir") from error
    except PermissionError as error:
        raise ConfigurationError(f"{path} belongs to another user; run as the one who started it") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged ({error}); restore it, or remove the state folder") from error


def write_private(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file for its owner's eyes only, whole or not at all. owner: (uid, gid), this process's when None."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
