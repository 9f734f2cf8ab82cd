"""Kinds of servers that people may have, and what must come of each: a job runs, or one line says why not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.servers.certificates import Authority
from tests.servers.job import Failed, environment_of, must, refused_in_one_line, run_job
from tests.servers.programs import (
    OWNER,
    PASSWORD,
    NotHere,
    Server,
    find_program,
    pgbouncer,
    postgres,
    postgres_folders,
    redis_server,
    sentinel,
    server_user,
)

NEWEST, OLDEST = 18, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """name: as the table shows it. run: returns what was seen. Raises NotHere, or Failed."""

    name: str
    run: Callable[[Path], str]


def database_url(port: int, *, host: str = "127.0.0.1", query: str = "") -> str:
    return f"postgresql://{OWNER}:{PASSWORD}@{host}:{port}/postgres{query}"


def redis_url(port: int, *, scheme: str = "redis", host: str = "127.0.0.1", query: str = "", user: str = "") -> str:
    return f"{scheme}://{user}:{PASSWORD}@{host}:{port}/0{query}"


@contextmanager
def any_postgres(folder: Path) -> Iterator[Server]:
    """The newest there is."""
    found = postgres_folders()
    if not found:
        raise NotHere("no Postgres with initdb here: Debian's package postgresql, or POSTGRES_BINS=folder")
    place = folder / "postgres"
    place.mkdir()
    with postgres(found[max(found)], place) as server:
        yield server


@contextmanager
def plain_redis(folder: Path) -> Iterator[Server]:
    with redis_server(folder) as server:
        yield server


# -- Postgres ---------------------------------------------------------------------------------------------------------


def version(number: int) -> Kind:
    def run(folder: Path) -> str:
        found = postgres_folders()
        if number not in found:
            raise NotHere(f"no Postgres {number} here")
        with postgres(found[number], folder) as server, plain_redis(folder) as broker:
            return run_job(environment_of(database_url(server.port), redis_url(broker.port)), folder)

    return Kind(name=f"Postgres {number}", run=run)


def postgres_tls(folder: Path) -> str:
    """With the right CA and name a job; with another CA, another name, or without TLS one line."""
    found = postgres_folders()
    if not found:
        raise NotHere("no Postgres with initdb here")
    find_program("openssl")
    authority, other = Authority(folder / "ca"), Authority(folder / "other-ca")
    certificate = authority.issue("localhost", owner=server_user())
    place = folder / "postgres"
    place.mkdir()
    with postgres(found[max(found)], place, tls=certificate) as server, plain_redis(folder) as broker:

        def url(authority: Authority, host: str) -> str:
            path = quote(str(authority.certificate), safe="")
            return database_url(server.port, host=host, query=f"?sslmode=verify-full&sslrootcert={path}")

        def refused(database: str, reason: str) -> None:
            _refused(environment_of(database, redis_url(broker.port)), reason)

        refused(url(other, "localhost"), "certificate verify failed")
        refused(url(authority, "127.0.0.1"), "does not match host name")
        refused(database_url(server.port, query="?sslmode=disable"), "no encryption")
        return run_job(environment_of(url(authority, "localhost"), redis_url(broker.port)), folder)


def _refused(environment: dict[str, str], reason: str, *commands: tuple[str, ...]) -> str:
    """The line by which each command refuses."""
    line = ""
    for command in commands or (("migrate",), ("worker", "upkeep"), ("status",)):
        line = refused_in_one_line(environment, *command)
        if reason not in line:
            raise Failed(f"specthink {' '.join(command)} says {line!r}, and not {reason!r}")
    return line


def pooled(mode: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        find_program("pgbouncer")
        with (
            any_postgres(folder) as server,
            plain_redis(folder) as broker,
            pgbouncer(folder, server.port, mode=mode) as pooler,
        ):
            through = environment_of(database_url(pooler.port), redis_url(broker.port))
            if mode == "session":
                return run_job(through, folder)
            return f"refused: {_refused(through, 'session')}"

    return run


# -- Redis ------------------------------------------------------------------------------------------------------------


def plain(folder: Path) -> str:
    with any_postgres(folder) as server, plain_redis(folder) as broker:
        return run_job(environment_of(database_url(server.port), redis_url(broker.port)), folder)


def redis_tls(folder: Path) -> str:
    """With the right CA and name a job; with another CA, another name, or without TLS one line."""
    find_program("openssl")
    authority, other = Authority(folder / "ca"), Authority(folder / "other-ca")
    certificate = authority.issue("localhost", owner=server_user())
    with any_postgres(folder) as server, redis_server(folder, tls=certificate) as broker:

        def environment(authority: Authority, host: str) -> dict[str, str]:
            query = f"?ssl_cert_reqs=required&ssl_ca_certs={quote(str(authority.certificate), safe='')}"
            url = redis_url(broker.port, scheme="rediss", host=host, query=query)
            return environment_of(database_url(server.port), url)

        right = environment(authority, "localhost")
        must(right, "migrate")
        for wrong in (environment(other, "localhost"), environment(authority, "127.0.0.1")):
            _refused(wrong, "CERTIFICATE_VERIFY_FAILED", ("worker", "upkeep"), ("flower",))
        return run_job(right, folder)


def without_dangerous_commands(folder: Path) -> str:
    """A login that may do what managed servers let one do."""
    rules = ["--user", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-@dangerous", "-@admin"]
    with any_postgres(folder) as server, redis_server(folder, *rules) as broker:
        return run_job(environment_of(database_url(server.port), redis_url(broker.port, user="app")), folder)


def with_renamed_commands(folder: Path) -> str:
    """Commands that nobody can call any more, as older managed servers have it."""
    names = ("FLUSHALL", "FLUSHDB", "KEYS", "CONFIG", "DEBUG", "SHUTDOWN", "SAVE", "BGSAVE", "MONITOR")
    options = [part for name in names for part in ("--rename-command", name, "")]
    with any_postgres(folder) as server, redis_server(folder, *options) as broker:
        return run_job(environment_of(database_url(server.port), redis_url(broker.port)), folder)


def without_a_needed_command(folder: Path) -> str:
    rules = ["--user", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-publish"]
    with any_postgres(folder) as server, redis_server(folder, *rules) as broker:
        return _refused_by_redis(folder, server, redis_url(broker.port, user="app"), "publish")


def wrong_password(folder: Path) -> str:
    with any_postgres(folder) as server, redis_server(folder, "--requirepass", "another", login=False) as broker:
        return _refused_by_redis(folder, server, redis_url(broker.port), "WRONGPASS|invalid username-password")


def cluster(folder: Path) -> str:
    with any_postgres(folder) as server, redis_server(folder, "--cluster-enabled", "yes") as broker:
        return _refused_by_redis(folder, server, redis_url(broker.port), "cluster mode off")


def _refused_by_redis(folder: Path, server: Server, url: str, reason: str) -> str:
    environment = environment_of(database_url(server.port), url)
    must(environment, "migrate")
    lines = {command: refused_in_one_line(environment, *command) for command in (("worker", "upkeep"), ("flower",))}
    for command, line in lines.items():
        if not any(word in line for word in reason.split("|")):
            raise Failed(f"specthink {' '.join(command)} says {line!r}, and not {reason!r}")
    return f"refused: {line}"


def by_sentinel(folder: Path) -> str:
    """The master is killed while the job runs, and its replica takes over."""
    with any_postgres(folder) as server, redis_server(folder) as master:
        follow = ["--replicaof", "127.0.0.1", str(master.port)]
        with redis_server(folder, *follow), sentinel(folder, master.port) as watch:
            url = redis_url(watch.port, scheme="sentinel", query="?master_name=main")

            def fail_over() -> None:
                master.process.kill()
                time.sleep(1.0)

            told = run_job(environment_of(database_url(server.port), url), folder, meanwhile=fail_over)
            return f"{told}; its master was killed meanwhile"


KINDS = (
    *(version(number) for number in range(OLDEST, NEWEST + 1)),
    Kind(name="Postgres by TLS, verify-full, own CA", run=postgres_tls),
    Kind(name="PgBouncer, session mode", run=pooled("session")),
    Kind(name="PgBouncer, transaction mode", run=pooled("transaction")),
    Kind(name="PgBouncer, statement mode", run=pooled("statement")),
    Kind(name="Redis", run=plain),
    Kind(name="Redis by TLS, own CA", run=redis_tls),
    Kind(name="Redis without its dangerous commands", run=without_dangerous_commands),
    Kind(name="Redis with commands renamed away", run=with_renamed_commands),
    Kind(name="Redis without a command that is needed", run=without_a_needed_command),
    Kind(name="Redis with another password", run=wrong_password),
    Kind(name="Redis Sentinel", run=by_sentinel),
    Kind(name="Redis Cluster", run=cluster),
)
