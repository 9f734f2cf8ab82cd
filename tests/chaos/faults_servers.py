"""Faults of Postgres and Redis: killed, stopped, frozen, emptied, cut off, without room on their disk, migrated."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pipeline.db import migrate
from pipeline.db.schema_objects import wanted_sha256
from pipeline.db.session import transaction
from pipeline.errors import MigrationRefused, PipelineError
from pipeline.workforce import WorkerKind
from tests.chaos.faults import Fault, Strike, as_one
from tests.chaos.harness import QUICKLY_S, Broken, Harness
from tests.chaos.models import REPOSITORY
from tests.chaos.proxy import Proxy, target_of, through
from tests.chaos.workload import ChaosJob
from tests.jumping_clock import why_no_clock

_CLONE_NEWNS = 0x00020000


def forget_starts(harness: Harness, server: str) -> None:
    """Let supervisord start a server at once, however often this matrix has killed it."""
    (harness.state.state_dir / "programs" / f"{server}.starts").unlink(missing_ok=True)


def wait_postgres(harness: Harness) -> None:
    harness.until(lambda: harness.rows("SELECT 1") == [(1,)], "Postgres to answer", timeout_s=60)


def wait_redis(harness: Harness) -> None:
    def answers() -> bool:
        with harness.redis() as client:
            return bool(client.ping())

    harness.until(answers, "Redis to answer", timeout_s=60)


# -- Redis ------------------------------------------------------------------------------------------------------------


class FlushRedis(Fault):
    """FLUSHALL, three times: no message, no queue, no binding is left."""

    name, component = "FLUSHALL", "Redis"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        strike = Strike()
        with harness.redis() as client:
            for _ in range(3):
                client.flushall()
                time.sleep(rng.uniform(0.05, 0.5))
        return strike


class KillRedis(Fault):
    """kill -9; supervisord starts it again, with its append-only file or without."""

    component = "Redis"

    def __init__(self, name: str, *, keep_file: bool) -> None:
        self.name = name
        self._keep_file = keep_file

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        forget_starts(harness, "redis")
        strike = Strike()
        pid = harness.signal("redis", signal.SIGSTOP)
        if not self._keep_file:
            for path in (harness.state.state_dir / "redis").glob("*.aof"):
                path.unlink()
        os.kill(pid, signal.SIGKILL)
        wait_redis(harness)
        with harness.redis() as client:
            strike.note = f"{client.dbsize()} keys came back"
        return strike


class FreezeServer(Fault):
    """SIGSTOP of a server and all its processes beyond the leases, then SIGCONT."""

    name = "SIGSTOP beyond the leases, SIGCONT"
    lasts_s = 12.0

    def __init__(self, server: str, component: str) -> None:
        self.component = component
        self._server = server
        self._frozen: list[psutil.Process] = []

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        pid = harness.pid(self._server)
        strike = Strike()
        self._frozen = _freeze(pid)
        time.sleep(harness.lease_s * rng.uniform(1.2, 4.0))
        self.heal(harness, job)
        return strike

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._frozen = []


# -- Postgres ---------------------------------------------------------------------------------------------------------


class StopPostgres(Fault):
    """A signal to the postmaster that ends it; supervisord starts it again, and it recovers."""

    component = "Postgres"

    def __init__(self, name: str, sign: signal.Signals) -> None:
        self.name = name
        self._signal = sign

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        forget_starts(harness, "postgres")
        pid = harness.pid("postgres")
        strike = Strike()
        os.kill(pid, self._signal)
        harness.until(lambda: harness.pid("postgres") != pid, "Postgres to start again", timeout_s=60)
        wait_postgres(harness)
        strike.note = f"away for {time.time() - strike.at:.1f} s"
        return strike


class RestorePostgres(Fault):
    """The data of an earlier moment put back, while workers live that it knows, and workers that it does not know.

    A moment ago: so short a time ago that workers have stored segments since, and most have not renewed their leases.
    """

    component = "Postgres"
    lasts_s = 12.0

    def __init__(self, name: str, *, is_long_ago: bool) -> None:
        self.name = name
        self._is_long_ago = is_long_ago

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng, latest=0.3)
        forget_starts(harness, "postgres")
        data = harness.state.state_dir / "postgres"
        backup, lost = data.with_name("postgres.backup"), data.with_name("postgres.lost")
        frozen = _freeze(harness.pid("postgres"))
        subprocess.run(["cp", "-a", str(data), str(backup)], check=True)
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        before = harness.num_commits(job)
        if self._is_long_ago:
            for kind in ("small", "large"):
                name = rng.choice(harness.names(kind))
                harness.kill(name)
                harness.wait_registered(name)
            time.sleep(rng.uniform(0.0, 1.0))
        else:
            harness.until(
                lambda: harness.num_commits(job) > before or harness.is_over(job), "a segment", every_s=QUICKLY_S
            )
        undone = harness.num_commits(job) - before
        strike = Strike(note=f"{undone} segments undone")
        frozen = _freeze(pid := harness.pid("postgres"))
        data.rename(lost)
        backup.rename(data)
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        harness.until(lambda: harness.pid("postgres") != pid, "Postgres to start again", timeout_s=60)
        wait_postgres(harness)
        shutil.rmtree(lost)
        return strike


def _freeze(pid: int) -> list[psutil.Process]:
    """Stop a server's process and all its children."""
    process = psutil.Process(pid)
    process.suspend()
    children = process.children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.suspend()
    return [process, *children]


class StepClock(Fault):
    """The clock of its machine is set ahead or back, while upkeep works or just as it ends.

    Ahead: nobody's lease has run out because of it. Back: what is lost in the same moment, all messages and a worker
    with what it holds, is found before the clock has caught up.
    """

    component = "Postgres"
    lasts_s = 12.0

    def __init__(self, name: str, *, ahead_s: int, victims: Sequence[str]) -> None:
        """victims: kinds of which one worker is killed beside it."""
        self.name = name
        self._ahead_s = ahead_s
        self._victims = victims
        self._spared: list[int] = []

    def skipped_because(self) -> str | None:
        return why_no_clock()

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        assert harness.clock is not None
        harness.at_some_moment(job, rng, latest=0.4)
        struck = [rng.choice(harness.names(kind)) for kind in self._victims]
        for name in struck:
            harness.until_busy(job, name)
        pids = [harness.pid(name) for name in struck]
        live = "SELECT id FROM workers WHERE ended_at IS NULL AND expires_at > clock_timestamp() AND pid <> ALL(:pids)"
        self._spared = [row[0] for row in harness.rows(live, pids=pids)]
        for name in struck:
            harness.kill(name)
        if self._ahead_s < 0:
            with harness.redis() as client:
                client.flushall()
        harness.clock.set(ahead_s=self._ahead_s)
        return Strike(is_blow=False)  # the times of what follows are not those of what came before

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        assert harness.clock is not None
        harness.clock.set(ahead_s=0)

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        lapsed = "SELECT id, kind FROM workers WHERE id = ANY(:spared) AND end_reason = 'lapsed'"
        return [f"{kind} worker {id} lapsed" for id, kind in harness.rows(lapsed, spared=self._spared)]


class CutAll(Fault):
    """pg_terminate_backend of every connection there is, five times."""

    name, component = "pg_terminate_backend of all", "Postgres"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        strike = Strike()
        cut = 0
        for _ in range(5):
            cut += harness.rows(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )[0][0]
            time.sleep(rng.uniform(0.05, 0.3))
        strike.note = f"{cut} cut"
        return strike


# -- the network between a worker and a server ------------------------------------------------------------------------


class BrokenNetwork(Fault):
    """A proxy between some workers and one server that stops forwarding, closes nothing, and acknowledges everything.

    One worker of each kind is behind it; of writers another one goes on beside it.
    """

    lasts_s = 12.0

    def __init__(self, kinds: Sequence[str], server: str) -> None:
        self.component = f"{'+'.join(kinds)}–{server}"
        self._kinds = kinds
        self._server = server
        self._proxy: Proxy | None = None
        self._victims: list[str] = []

    @property
    def proxy(self) -> Proxy:
        assert self._proxy is not None
        return self._proxy

    def setup(self, harness: Harness) -> None:
        variable = "SPECTHINK_REDIS_URL" if self._server == "Redis" else "SPECTHINK_DATABASE_URL"
        urls = {harness.names(kind)[0]: self._url(harness, kind) for kind in self._kinds}
        self._victims = list(urls)
        self._proxy = Proxy(target_of(urls[self._victims[0]]))  # each kind has its login, all have the same server
        harness.change_programs({victim: {variable: through(url, self._proxy)} for victim, url in urls.items()})

    def _url(self, harness: Harness, kind: str) -> str:
        """Of the server, as a worker of this kind is given it."""
        connections = harness.connections
        url = connections.redis_url if self._server == "Redis" else connections.worker_url(WorkerKind(kind))
        return url.get_secret_value()

    def teardown(self, harness: Harness) -> None:
        harness.change_programs(dict.fromkeys(self._victims))
        self.proxy.close()

    def _begin(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.until(lambda: self.proxy.num_connections > 0, f"{self._victims} to connect")
        harness.at_some_moment(job, rng)
        for victim in self._victims:
            harness.until_busy(job, victim)
        at = time.time()
        return as_one(
            [
                Strike(at=at, pids=[harness.pid(victim)], kind=kind)
                for kind, victim in zip(self._kinds, self._victims, strict=True)
            ]
        )

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        self.proxy.forward()


class BlackHole(BrokenNetwork):
    """Nothing goes through for some leases, then everything, what was held back first."""

    name = "black hole for 2 to 4 leases"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        strike = self._begin(harness, job, rng)
        self.proxy.black_hole()
        time.sleep(harness.lease_s * rng.uniform(2.0, 4.0))
        self.proxy.forward()
        strike.note = "over before the hole was" if harness.is_over(job) else ""
        return strike


class HalfOpen(BrokenNetwork):
    """The connections that there are never carry anything again, and are never closed; new ones work."""

    name = "half-open for ever"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        strike = self._begin(harness, job, rng)
        strike.note = f"{self.proxy.forget()} connections"
        return strike

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        """What is dead stays dead: the worker must come to itself. Only afterwards is the next run's way made free."""
        for victim in self._victims:
            self._wait_renewing(harness, victim)
            if self._server == "Redis":
                self._wait_reading(harness, victim)

    def _wait_renewing(self, harness: Harness, victim: str) -> None:
        pid = harness.pid(victim)
        renewed = (
            "SELECT count(*) FROM workers WHERE pid = :pid AND ended_at IS NULL AND renewed_at > now() - interval '1 s'"
        )
        harness.until(lambda: harness.rows(renewed, pid=pid)[0][0] > 0, f"{victim} to renew its lease", timeout_s=60)

    def _wait_reading(self, harness: Harness, victim: str) -> None:
        """Until it takes messages again: none waits in its own queue or, for others, in its kind's."""
        queues = harness.rows(
            "SELECT queue FROM workers WHERE pid = :pid AND ended_at IS NULL", pid=harness.pid(victim)
        )

        def empty() -> bool:
            with harness.redis() as client:
                return all(client.llen(queue) == 0 for (queue,) in queues)

        harness.until(empty, f"{victim} to read its queue", timeout_s=60)


# -- full disks -------------------------------------------------------------------------------------------------------


class SmallDisk:
    """A file system of its own for one server's folder, in memory. Needs the right to mount."""

    def __init__(self, harness: Harness, server: str, megabytes: int) -> None:
        self._harness = harness
        self._server = server
        self._folder = harness.state.state_dir / server
        self._megabytes = megabytes
        self._beside = self._folder.with_name(f"{server}.on-disk")

    @property
    def ballast(self) -> Path:
        return self._folder / "ballast"

    def mount(self) -> None:
        """Stop the server, move its data there, start it."""
        self._harness.state.stop_program(self._server)
        self._folder.rename(self._beside)
        self._folder.mkdir(mode=0o700)
        options = f"size={self._megabytes}m,mode=0700"
        _mount("mount", "-t", "tmpfs", "-o", options, "specthink-chaos", str(self._folder))
        shutil.copytree(self._beside, self._folder, symlinks=True, dirs_exist_ok=True)
        for path in [self._beside, *self._beside.rglob("*")]:
            stat = path.lstat()
            there = self._folder / path.relative_to(self._beside)
            os.chown(there, stat.st_uid, stat.st_gid, follow_symlinks=False)
        self._start()

    def unmount(self) -> None:
        """The way back; what was stored meanwhile goes with it."""
        self._harness.state.stop_program(self._server)
        stored = self._folder.with_name(f"{self._server}.back")
        shutil.copytree(self._folder, stored, symlinks=True, ignore=lambda *_: {"ballast"})
        for path in [self._folder, *self._folder.rglob("*")]:
            there = stored / path.relative_to(self._folder)
            if there.exists():
                os.chown(there, path.lstat().st_uid, path.lstat().st_gid, follow_symlinks=False)
        _mount("umount", str(self._folder))
        self._folder.rmdir()
        stored.rename(self._folder)
        shutil.rmtree(self._beside)
        self._start()

    def fill(self, *, leave: int = 0) -> None:
        """Take all room but so many bytes."""
        with self.ballast.open("ab", buffering=0) as file, suppress(OSError):
            while (free := self.free() - leave) > 0:
                file.write(b"\0" * min(free, 2**20))

    def free(self) -> int:
        stat = os.statvfs(self._folder)
        return stat.f_bavail * stat.f_frsize

    def empty(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def _start(self) -> None:
        forget_starts(self._harness, self._server)
        self._harness.state.start_program(self._server)
        {"postgres": wait_postgres, "redis": wait_redis}[self._server](self._harness)


def _mount(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"{' '.join(command[:1])}: {done.stderr.strip()}")


def own_mounts() -> None:
    """Let what this process and its children mount be theirs alone, and end with them. Before any child is started."""
    if why_no_mount() is None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "no mount namespace")
        _mount("mount", "--make-rprivate", "/")


def why_no_mount() -> str | None:
    """Why this process cannot mount; None where it can."""
    capable = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) >> 21 & 1
    return None if capable and shutil.which("mount") else "it needs a file system of its own, and the right to mount it"


class FullDisk(Fault):
    """No room for some leases: writes are refused. Then room again: all goes on by itself."""

    name = "disk full for 2 to 3 leases"
    timeout_s = 90.0
    lasts_s = 14.0

    def __init__(self, server: str, component: str, *, megabytes: int) -> None:
        self.component = component
        self._server = server
        self._megabytes = megabytes
        self._disk: SmallDisk | None = None

    @property
    def disk(self) -> SmallDisk:
        assert self._disk is not None
        return self._disk

    def skipped_because(self) -> str | None:
        return why_no_mount()

    def setup(self, harness: Harness) -> None:
        disk = SmallDisk(harness, self._server, self._megabytes)
        disk.mount()
        self._disk = disk

    def teardown(self, harness: Harness) -> None:
        self.disk.unmount()

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng, latest=0.4)
        self._log_size = self._log(harness).stat().st_size
        self.disk.fill()
        harness.until(lambda: self._refuses(harness), f"{self.component} to run out of room")
        time.sleep(harness.lease_s * rng.uniform(*self.leases))
        self.disk.empty()
        return Strike(note=self._note)

    leases = (2.0, 3.0)
    """How long there is no room."""
    _note = ""
    _log_size = 0

    @abstractmethod
    def _refuses(self, harness: Harness) -> bool:
        """Whether the server has said that it has no room; noted."""

    def _log(self, harness: Harness) -> Path:
        return harness.state.state_dir / "logs" / f"{self._server}.log"

    def _log_tells(self, harness: Harness, word: str) -> bool:
        """Whether a line of the server's log has it since the strike began; that line is noted."""
        with self._log(harness).open("rb") as log:
            log.seek(self._log_size)
            lines = log.read().decode(errors="replace").splitlines()
        found = [line for line in lines if word in line]
        if found:
            self._note = found[0].split("  ")[-1][:80]
        return bool(found)

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        self.disk.empty()


class FullAppendOnlyFile(FullDisk):
    """Redis cannot write its append-only file, and refuses every write."""

    def __init__(self) -> None:
        super().__init__("redis", "Redis", megabytes=16)
        self._pids: dict[str, int] = {}

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        self._pids = {name: harness.pid(name) for name in harness.programs}
        return super().strike(harness, job, rng)

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        return [f"{name} did not live through it" for name, pid in self._pids.items() if harness.pid(name) != pid]

    def _refuses(self, harness: Harness) -> bool:
        try:
            with harness.redis() as client:
                client.set("chaos", "x" * 4096, ex=1)
        except redis.ResponseError as error:
            self._note = str(error)[:60]
            return "MISCONF" in self._note
        return False


class FullDatabase(FullDisk):
    """Postgres can extend no table: statements fail, the server goes on."""

    def __init__(self) -> None:
        super().__init__("postgres", "Postgres", megabytes=400)

    _word = "No space left on device"
    """Of the line in which the server's log says so."""

    def _refuses(self, harness: Harness) -> bool:
        with suppress(PipelineError, DBAPIError):
            self._need_room(harness)
        self.disk.fill()
        return self._log_tells(harness, self._word)

    def _need_room(self, harness: Harness) -> None:
        """A table is begun, and given up: a job that is nearly over may need no more room by itself."""
        with transaction(harness.db_engine) as connection:
            connection.execute(
                text("CREATE TABLE room AS SELECT repeat(md5(i::text), 40) AS used FROM generate_series(1, 2000) AS i")
            )
            connection.rollback()


class FullLog(FullDatabase):
    """Postgres has no room for its log either: it ends, cannot start, and is tried again until it can."""

    name = "no room for its log for 5 to 7 leases"
    lasts_s = 24.0
    leases = (5.0, 7.0)
    _word = "PANIC"

    def _need_room(self, harness: Harness) -> None:
        """Each log file that is begun needs 16 MB of its own."""
        harness.rows("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))")

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        forget_starts(harness, "postgres")
        strike = super().strike(harness, job, rng)
        wait_postgres(harness)
        return strike


# -- migrations -------------------------------------------------------------------------------------------------------


class MigrateAtHead(Fault):
    """``specthink migrate`` while a job runs: the schema is there, nothing changes, nobody waits."""

    name, component = "migrate, nothing to do", "schema"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        strike = Strike()
        before = _schema(harness)
        done = run_migrate(harness)
        if done.returncode or _schema(harness) != before:
            raise Broken(f"migrate ended with {done.returncode}, {_schema(harness)}: {done.stderr[-500:]}")
        return strike


class MigrateRefused(Fault):
    """A migration is due while workers live: it is refused with the reason. It runs once they have stopped."""

    name, component = "migration due: refused, done after a stop", "schema"
    timeout_s = 60.0
    lasts_s = 24.0

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        strike = Strike()
        self._refuse(harness)
        self._stop_workers(harness)
        _note_objects(harness, "of another version")
        done = run_migrate(harness)
        if done.returncode or _schema(harness)[1] != wanted_sha256():
            raise Broken(f"migrate ended with {done.returncode}: {done.stderr[-500:]}")
        self._start_workers(harness)
        return strike

    def _refuse(self, harness: Harness) -> None:
        """Up, as if the views and functions had changed, and down; both with workers alive."""
        _note_objects(harness, "of another version")
        done = run_migrate(harness)
        _note_objects(harness, wanted_sha256())
        if done.returncode == 0 or "workers run on it" not in done.stderr:
            raise Broken(f"migrate ended with {done.returncode} while workers lived: {done.stderr[-500:]}")
        with suppress(MigrationRefused):
            migrate.downgrade(harness.db_engine, "base")
            raise Broken("the database was migrated down while workers lived")

    def _stop_workers(self, harness: Harness) -> None:
        """SIGTERM to all at once; each hands back what it writes. One whose lease had lapsed has seen and ended."""
        harness.absent = set(harness.programs)
        for name in harness.programs:
            if harness.find_pid(name) is not None:
                harness.signal(name, signal.SIGTERM, children=False)
        for name in harness.programs:
            harness.until(lambda name=name: harness.exit_code(name) is not None, f"{name} to end")  # type: ignore[misc]

    def _start_workers(self, harness: Harness) -> None:
        harness.absent = set()
        for name in harness.programs:
            harness.start_program(name)

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        migrate.upgrade(harness.db_engine)
        self._start_workers(harness)


def run_migrate(harness: Harness) -> subprocess.CompletedProcess[str]:
    """``specthink migrate``, typed beside the running pipeline."""
    environment = {**os.environ, **harness.environment, "SPECTHINK_STATE_DIR": str(harness.state.state_dir)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "migrate"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def _schema(harness: Harness) -> tuple[str, str]:
    """The revision of the tables, and the hash of the views and functions."""
    ((revision, sha256),) = harness.rows("SELECT version_num, sha256 FROM alembic_version, schema_objects")
    return str(revision), str(sha256)


def _note_objects(harness: Harness, sha256: str) -> None:
    with transaction(harness.db_engine) as connection:
        connection.execute(text("UPDATE schema_objects SET sha256 = :sha256"), {"sha256": sha256})


CLOCKS = (
    StepClock("clock set 1 h ahead", ahead_s=3600, victims=()),
    StepClock("clock set 1 day ahead, the leader killed", ahead_s=86_400, victims=("upkeep",)),
    StepClock("clock set 1 h back, messages lost, a worker killed", ahead_s=-3600, victims=("small",)),
    StepClock("clock set 1 day back, messages lost, the leader killed", ahead_s=-86_400, victims=("large", "upkeep")),
)
FAULTS: list[Fault] = [
    FlushRedis(),
    KillRedis("kill -9, append-only file kept", keep_file=True),
    KillRedis("kill -9, append-only file lost", keep_file=False),
    FreezeServer("redis", "Redis"),
    StopPostgres("kill -9", signal.SIGKILL),
    StopPostgres("stopped at once", signal.SIGQUIT),
    StopPostgres("fast stop", signal.SIGINT),
    FreezeServer("postgres", "Postgres"),
    RestorePostgres("restored to an earlier moment", is_long_ago=True),
    RestorePostgres("restored to a moment ago", is_long_ago=False),
    *(fault for fault in CLOCKS if fault.skipped_because() is None),
    CutAll(),
    *(
        broken(kinds, server)
        for server in ("Postgres", "Redis")
        for broken in (BlackHole, HalfOpen)
        for kinds in (("small", "large"), ("grade", "upkeep"))
    ),
    MigrateAtHead(),
    MigrateRefused(),
    *(fault for fault in (FullAppendOnlyFile(), FullDatabase(), FullLog()) if fault.skipped_because() is None),
]
SKIPPED: dict[str, str] = {
    str(fault): reason
    for fault in (FullAppendOnlyFile(), FullDatabase(), FullLog(), *CLOCKS)
    if (reason := fault.skipped_because()) is not None
}
"""What this machine cannot do, with the reason."""
