"""The embedded servers on real Postgres, Redis and supervisord: their life, their death and what comes after."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

import pipeline.embedded
from pipeline.embedded import (
    Connections,
    EmbeddedState,
    Program,
    ProgramPhase,
    ProgramState,
    find_connections,
    is_running,
    postgres,
    purge,
    start,
    stop,
)
from pipeline.embedded.folder import StateFolder
from pipeline.embedded.processes import find_processes
from pipeline.embedded.supervision import SupervisorClient, wait_until
from pipeline.errors import ConfigurationError, NotFound, ServiceUnavailable

pytestmark = pytest.mark.integration

CHECKOUT = Path(pipeline.embedded.__file__).parents[2]
SLEEP = ("sleep", "1000")
PATIENCE_S = 60.0


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    stop(tmp_path / "state")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedState]:
    """Running servers for the tests that leave them running."""
    state_dir = tmp_path_factory.mktemp("shared") / "state"
    yield start(state_dir)
    stop(state_dir)


def connect(connections: Connections) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(connections.database_url.get_secret_value(), autocommit=True)


def connect_redis(connections: Connections) -> redis.Redis:
    return redis.Redis.from_url(connections.redis_url.get_secret_value())


def write_data(connections: Connections) -> None:
    with connect(connections) as database:
        database.execute("CREATE TABLE kept (x int)")
        database.execute("INSERT INTO kept VALUES (42)")
    with contextlib.closing(connect_redis(connections)) as broker:
        broker.set("kept", "43")
        wait_for(lambda: broker.info("persistence")["aof_pending_bio_fsync"] == 0)


def read_data(connections: Connections) -> tuple[object, object]:
    with connect(connections) as database, contextlib.closing(connect_redis(connections)) as broker:
        row = database.execute("SELECT x FROM kept").fetchone()
        assert row is not None
        return row[0], broker.get("kept")


def wait_for(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, PATIENCE_S)


def log_has(path: Path, text: str) -> bool:
    return text in path.read_text()


def program_state(state: EmbeddedState, name: str) -> ProgramState:
    return next(found for found in state.program_states() if found.name == name)


def wait_for_phase(state: EmbeddedState, name: str, phase: ProgramPhase) -> ProgramState:
    wait_for(lambda: program_state(state, name).state == phase)
    return program_state(state, name)


def processes_naming(path: Path) -> list[str]:
    """Command lines of this machine that hold the path, found without the code under test."""
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return [line for line in lines if str(path) in line]


def nothing_runs(state_dir: Path) -> bool:
    return not find_processes(StateFolder.of(state_dir)) and not processes_naming(state_dir)


def name_of(process: psutil.Process) -> str | None:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return None


def supervisord_pid(state_dir: Path) -> int:
    return SupervisorClient(StateFolder.of(state_dir)).pid()


def run_python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_up_connect_down(state_dir: Path) -> None:
    state = start(state_dir)
    write_data(state.connections)
    assert read_data(state.connections) == (42, b"43")
    assert find_connections(state_dir) == state.connections
    assert is_running(state_dir)
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert processes_naming(state_dir)

    assert stop(state_dir) == ["redis", "postgres"]
    assert nothing_runs(state_dir)
    assert find_connections(state_dir) is None
    assert stop(state_dir) == []

    assert read_data(start(state_dir).connections) == (42, b"43")


def test_down_where_nothing_ever_was_makes_nothing(tmp_path: Path) -> None:
    assert stop(tmp_path / "absent") == []
    assert not (tmp_path / "absent").exists()


def test_servers_are_set_up_for_durable_work(shared: EmbeddedState) -> None:
    with connect(shared.connections) as database:
        row = database.execute(
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('synchronous_commit'),"
            " current_setting('fsync'), current_setting('data_checksums'), current_setting('server_encoding'),"
            " current_setting('listen_addresses')"
        ).fetchone()
    assert row == (18, "on", "on", "on", "UTF8", "")
    with contextlib.closing(connect_redis(shared.connections)) as broker:
        settings = broker.config_get("*")
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    assert {name: settings[name] for name in wanted} == wanted


def test_sqlalchemy_takes_the_address(shared: EmbeddedState) -> None:
    import sqlalchemy

    url = sqlalchemy.make_url(shared.connections.database_url.get_secret_value()).set(drivername="postgresql+psycopg")
    db_engine = sqlalchemy.create_engine(url)
    try:
        with db_engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "specthink"
    finally:
        db_engine.dispose()


def test_nobody_enters_without_the_password(shared: EmbeddedState) -> None:
    url = shared.connections.database_url.get_secret_value()
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(psycopg.conninfo.make_conninfo(url, password=password))
    port = redis.connection.parse_url(shared.connections.redis_url.get_secret_value())["port"]
    with contextlib.closing(redis.Redis(port=port)) as broker, pytest.raises(redis.AuthenticationError):
        broker.ping()


def test_the_reader_may_connect_and_no_more(shared: EmbeddedState) -> None:
    with connect(shared.connections) as owner:
        owner.execute("CREATE TABLE IF NOT EXISTS answers (x int)")
    assert shared.connections.reader_url is not None
    with psycopg.connect(shared.connections.reader_url.get_secret_value(), autocommit=True) as reader:
        row = reader.execute(
            "SELECT current_user, current_setting('default_transaction_read_only'),"
            " current_setting('statement_timeout')"
        ).fetchone()
        assert row == ("specthink_reader", "on", "30s")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT * FROM answers")
        reader.execute("SET default_transaction_read_only = off")
        for statement in ("CREATE TABLE mine (x int)", "CREATE TEMP TABLE mine (x int)", "CREATE ROLE mine"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(statement)
    elsewhere = psycopg.conninfo.make_conninfo(shared.connections.reader_url.get_secret_value(), dbname="postgres")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(elsewhere)


def test_no_secret_shows_in_processes_or_logs_or_to_others(shared: EmbeddedState) -> None:
    folder = StateFolder.of(shared.state_dir)
    shared.add_programs([Program(name="shown", argv=SLEEP)])
    shared.start_program("shown")
    secrets = [folder.password(role) for role in ("specthink", "specthink_reader", "redis")]
    seen = [" ".join(process.cmdline()) for process in find_processes(folder)]
    seen += [path.read_text(errors="replace") for path in folder.logs.iterdir()]
    assert len(seen) > 5
    assert not [text for text in seen for secret in secrets if secret in text]
    for path in (folder.secrets_file, folder.running_file, *folder.programs.glob("*.json")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shared.stop_program("shown")


def test_a_refused_row_is_not_written_to_the_log(shared: EmbeddedState) -> None:
    with connect(shared.connections) as database:
        database.execute("CREATE TABLE guarded (x text CHECK (length(x) < 3))")
        with pytest.raises(psycopg.errors.CheckViolation):
            database.execute("INSERT INTO guarded VALUES ('the answer is 17')")
    log = program_state(shared, "postgres").log_path
    wait_for(lambda: "guarded" in log.read_text())
    assert "the answer is 17" not in log.read_text()


def test_two_states_run_side_by_side(shared: EmbeddedState, state_dir: Path) -> None:
    other = start(state_dir)
    write_data(other.connections)
    assert other.connections.redis_url != shared.connections.redis_url
    assert stop(state_dir) == ["redis", "postgres"]
    with connect(shared.connections) as database, contextlib.closing(connect_redis(shared.connections)) as broker:
        assert database.execute("SELECT to_regclass('kept')").fetchone() == (None,)
        assert broker.get("kept") is None


def test_a_second_up_finds_the_first(shared: EmbeddedState) -> None:
    pid = supervisord_pid(shared.state_dir)
    assert start(shared.state_dir).connections == shared.connections
    assert supervisord_pid(shared.state_dir) == pid


def test_two_ups_at_once_make_one_state(state_dir: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: start(state_dir), range(2))
    assert first.connections == second.connections
    assert len(processes_naming(state_dir / "redis")) == 1


def test_a_deep_path_with_odd_letters(tmp_path: Path) -> None:
    state_dir = tmp_path / ("deep" * 20) / ("er " * 20) / "it's 100% ü;#"
    try:
        state = start(state_dir)
        state.add_programs([Program(name="small", argv=(*SLEEP, "0"), env={"ODD": "%(x)s \"';#"})])
        state.start_program("small")
        pid = program_state(state, "small").pid
        assert pid is not None
        wait_for(lambda: psutil.Process(pid).cmdline() == [*SLEEP, "0"])
        assert psutil.Process(pid).environ()["ODD"] == "%(x)s \"';#"
        write_data(state.connections)
        assert read_data(state.connections) == (42, b"43")
    finally:
        assert stop(state_dir) == ["small", "redis", "postgres"]
    assert nothing_runs(state_dir)
    assert not StateFolder.of(state_dir).run.exists()


def test_a_wrong_stored_password_is_named(state_dir: Path) -> None:
    start(state_dir)
    stop(state_dir)
    (state_dir / "secrets.json").unlink()
    with pytest.raises(ConfigurationError, match=r"secrets\.json does not hold the password"):
        start(state_dir)
    assert nothing_runs(state_dir)


def test_an_interrupted_initdb_is_begun_again(state_dir: Path) -> None:
    start(state_dir)
    stop(state_dir)
    (state_dir / "postgres").rename(state_dir / "postgres.new")
    with connect(start(state_dir).connections) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


def test_a_taken_redis_port_is_replaced(state_dir: Path) -> None:
    first = redis.connection.parse_url(start(state_dir).connections.redis_url.get_secret_value())["port"]
    stop(state_dir)
    with socket.create_server(("127.0.0.1", first)):
        state = start(state_dir)
        assert redis.connection.parse_url(state.connections.redis_url.get_secret_value())["port"] != first
        with contextlib.closing(connect_redis(state.connections)) as broker:
            assert broker.ping()


def test_killed_supervisord_is_mended(state_dir: Path) -> None:
    state = start(state_dir)
    write_data(state.connections)
    state.add_programs([Program(name="small", argv=SLEEP)])
    state.start_program("small")
    worker = psutil.Process(program_state(state, "small").pid)
    os.kill(supervisord_pid(state_dir), signal.SIGKILL)
    wait_for(lambda: not is_running(state_dir))
    worker.wait(PATIENCE_S)  # nobody watches it any more
    assert read_data(start(state_dir).connections) == (42, b"43")
    assert len(processes_naming(state_dir / "redis")) == 1


def test_killed_everything_is_mended(state_dir: Path) -> None:
    state = start(state_dir)
    write_data(state.connections)
    killed = find_processes(StateFolder.of(state_dir))
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(killed, timeout=PATIENCE_S)
    assert find_connections(state_dir) is None
    assert read_data(start(state_dir).connections) == (42, b"43")


def test_down_ends_what_a_killed_supervisord_left(state_dir: Path) -> None:
    """Processes that left their group, as engines of a worker may, and so got no signal from anybody."""
    state = start(state_dir)
    state.add_programs([Program(name="small", argv=("sh", "-c", "setsid sleep 1000 & exec sleep 1000"))])
    state.start_program("small")
    folder = StateFolder.of(state_dir)

    def sleepers() -> list[psutil.Process]:
        return [process for process in find_processes(folder) if name_of(process) == "sleep"]

    wait_for(lambda: len(sleepers()) == 2)
    os.kill(supervisord_pid(state_dir), signal.SIGKILL)
    wait_for(lambda: len(sleepers()) == 1)
    left = sleepers()[0]
    assert f"sleep left over (pid {left.pid})" in stop(state_dir)
    assert not left.is_running()
    assert nothing_runs(state_dir)


def test_servers_orphaned_without_a_signal_are_stopped_before_a_clean_start(state_dir: Path) -> None:
    state = start(state_dir)
    write_data(state.connections)
    stopped = [psutil.Process(program_state(state, name).pid) for name in ("postgres", "redis")]
    for process in stopped:
        process.suspend()  # they cannot act on their parent's death
    os.kill(supervisord_pid(state_dir), signal.SIGKILL)
    wait_for(lambda: not is_running(state_dir))
    resumed = threading.Timer(1.0, lambda: [process.resume() for process in stopped])  # type: ignore[func-returns-value]
    resumed.start()
    assert read_data(start(state_dir).connections) == (42, b"43")
    resumed.join()
    wait_for(lambda: not any(process.is_running() for process in stopped))


def test_a_recycled_process_id_harms_nobody(state_dir: Path) -> None:
    state = start(state_dir)
    write_data(state.connections)
    running = (state_dir / "running.json").read_text()
    pid = supervisord_pid(state_dir)
    lock = (state_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    stop(state_dir)
    with subprocess.Popen(SLEEP) as bystander:
        try:
            (state_dir / "running.json").write_text(running.replace(f'"pid": {pid}', f'"pid": {bystander.pid}'))
            (state_dir / "supervisord.pid").write_text(f"{bystander.pid}\n")
            (state_dir / "postgres" / "postmaster.pid").write_text("\n".join([str(bystander.pid), *lock[1:]]) + "\n")
            assert not is_running(state_dir)
            assert stop(state_dir) == []
            (state_dir / "running.json").write_text(running.replace(f'"pid": {pid}', f'"pid": {bystander.pid}'))
            assert read_data(start(state_dir).connections) == (42, b"43")
            stop(state_dir)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_process_that_only_names_the_folder_is_no_part_of_it(state_dir: Path) -> None:
    start(state_dir)
    env = {**os.environ, "SPECTHINK_STATE_DIR": str(state_dir)}
    with subprocess.Popen(
        [*run_python("import signal; signal.pause()", str(state_dir))], env=env, cwd=state_dir
    ) as shell:
        try:
            stop(state_dir)
            assert shell.poll() is None
        finally:
            shell.kill()


def test_a_program_runs_with_its_environment_and_log(shared: EmbeddedState) -> None:
    code = "import os; print(os.environ['GREETING'], os.environ['SPECTHINK_STATE_DIR'], os.getcwd())"
    shared.add_programs([Program(name="greeter", argv=(sys.executable, "-c", code), env={"GREETING": "hello"})])
    assert program_state(shared, "greeter").state == ProgramPhase.STOPPED
    shared.start_program("greeter")
    ended = wait_for_phase(shared, "greeter", ProgramPhase.EXITED)
    assert ended.exit_code == 0
    wait_for(lambda: ended.log_path.read_text() == f"hello {shared.state_dir} {shared.state_dir}\n")


def test_servers_and_unknown_programs_are_not_stopped_by_name(shared: EmbeddedState) -> None:
    shared.add_programs([Program(name="bystander", argv=SLEEP)])
    shared.start_program("bystander")
    with pytest.raises(ConfigurationError, match="specthink down stops all"):
        shared.stop_programs(["bystander", "redis"])
    with pytest.raises(NotFound, match="there is no program 'nobody'"):
        shared.stop_programs(["bystander", "nobody"])
    assert program_state(shared, "bystander").state is ProgramPhase.RUNNING
    assert shared.stop_programs(["bystander"]) == ["bystander"]
    assert shared.stop_programs(["bystander"]) == []


def test_a_failed_start_shows_its_own_log_alone(shared: EmbeddedState) -> None:
    for said in ("first", "second"):
        shared.add_programs([Program(name="telling", argv=("sh", "-c", f"echo the {said} start; exit 2"))])
        shared.start_program("telling")
        wait_for(lambda: program_state(shared, "telling").state is ProgramPhase.CONFIGURATION_ERROR)
    wait_for(lambda: "the second start" in shared.last_lines("telling"))
    assert "the first start" not in shared.last_lines("telling")


def test_an_unknown_program_is_not_found(shared: EmbeddedState) -> None:
    with pytest.raises(NotFound, match="nobody"):
        shared.start_program("nobody")


def test_a_configuration_error_is_reported_and_not_tried_again(shared: EmbeddedState) -> None:
    shared.add_programs([Program(name="wrong", argv=("sh", "-c", "echo no such model; exit 2"))])
    shared.start_program("wrong")
    ended = wait_for_phase(shared, "wrong", ProgramPhase.CONFIGURATION_ERROR)
    assert ended.exit_code == 2
    shared.add_programs([Program(name="later", argv=("true",))])  # gives supervisord several turns to start it again
    shared.start_program("later")
    wait_for_phase(shared, "later", ProgramPhase.EXITED)
    assert ended.log_path.read_text() == "no such model\n"


def test_a_command_that_does_not_exist_is_a_configuration_error(shared: EmbeddedState) -> None:
    shared.add_programs([Program(name="absent", argv=("/no/such/command",))])
    shared.start_program("absent")
    ended = wait_for_phase(shared, "absent", ProgramPhase.CONFIGURATION_ERROR)
    wait_for(lambda: "/no/such/command cannot be run" in ended.log_path.read_text())


def test_servers_that_cannot_be_seen_are_not_doubled(state_dir: Path) -> None:
    """Those of another container, which hold the folder and show no process here."""
    start(state_dir)
    stop(state_dir)
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print('held', flush=True); input()"
    holder = subprocess.Popen(run_python(hold, str(state_dir / "alive")), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ServiceUnavailable, match="another container"):
            start(state_dir)
        holder.kill()
    start(state_dir)


def test_a_killed_program_is_started_again(shared: EmbeddedState) -> None:
    shared.add_programs([Program(name="victim", argv=SLEEP)])
    shared.start_program("victim")
    first = program_state(shared, "victim").pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: program_state(shared, "victim").pid not in (first, None))
    assert program_state(shared, "victim").state == ProgramPhase.RUNNING
    assert shared.stop_program("victim")
    assert program_state(shared, "victim").state == ProgramPhase.STOPPED
    assert not shared.stop_program("victim")


def test_a_program_that_keeps_failing_is_given_up_and_may_be_started_anew(shared: EmbeddedState) -> None:
    shared.add_programs([Program(name="failing", argv=("sh", "-c", "echo failed; exit 1"), max_starts=3)])
    for attempts in (3, 6):
        shared.start_program("failing")
        ended = wait_for_phase(shared, "failing", ProgramPhase.GAVE_UP)
        wait_for(partial(log_has, ended.log_path, "gave up"))
        assert ended.log_path.read_text().count("failed") == attempts


def test_a_stopped_program_may_change_and_a_running_one_may_not(shared: EmbeddedState) -> None:
    shared.add_programs([Program(name="changing", argv=SLEEP)])
    shared.start_program("changing")
    shared.add_programs([Program(name="changing", argv=SLEEP)])
    changed = Program(name="changing", argv=("sleep", "2000"), stop_wait_s=5)
    before = (shared.state_dir / "programs" / "changing.json").read_bytes()
    with pytest.raises(ConfigurationError, match=r"changing is running with 1000; nothing was changed"):
        shared.add_programs([Program(name="unharmed", argv=SLEEP), changed])
    assert (shared.state_dir / "programs" / "changing.json").read_bytes() == before
    assert "unharmed" not in {state.name for state in shared.program_states()}
    assert shared.stop_programs(["changing"]) == ["changing"]
    shared.add_programs([changed])
    shared.start_program("changing")
    pid = program_state(shared, "changing").pid
    assert pid is not None
    wait_for(lambda: psutil.Process(pid).cmdline() == ["sleep", "2000"])
    shared.stop_program("changing")


def test_a_program_that_ignores_the_stop_signal_is_killed(state_dir: Path) -> None:
    deaf = ("sh", "-c", "trap '' TERM; echo deaf; while true; do sleep 1000; done")
    state = start(state_dir, [Program(name="large", argv=SLEEP), Program(name="deaf", argv=deaf, stop_wait_s=1)])
    state.start_program("deaf")
    state.start_program("large")
    wait_for(lambda: "deaf" in program_state(state, "deaf").log_path.read_text())
    assert [found.name for found in state.program_states()] == ["postgres", "redis", "large", "deaf"]
    assert stop(state_dir) == ["deaf", "large", "redis", "postgres"]
    assert nothing_runs(state_dir)


def test_postgres_killed_alone_comes_back_with_its_data(state_dir: Path) -> None:
    state = start(state_dir)
    write_data(state.connections)
    pid = program_state(state, "postgres").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: program_state(state, "postgres").pid not in (pid, None))
    assert read_data(start(state_dir).connections) == (42, b"43")


OWN_PROCESS = """
import sys
from pathlib import Path
from pipeline.embedded import Program, start
state = start(Path(sys.argv[1]), [Program(name="small", argv=("sleep", "1000"))], die_with_parent=sys.argv[2] == "die")
state.start_program("small")
print("up", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def own_process(state_dir: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """A process that starts the state and waits until its input ends."""
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = run_python(OWN_PROCESS, str(state_dir), mode)
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def test_everything_dies_with_its_parent(state_dir: Path) -> None:
    with own_process(state_dir, "die") as parent:
        assert is_running(state_dir)
        wait_for(lambda: any(name_of(process) == "sleep" for process in find_processes(StateFolder.of(state_dir))))
        parent.send_signal(signal.SIGKILL)
        parent.wait(PATIENCE_S)
        wait_for(lambda: nothing_runs(state_dir))
    assert find_connections(state_dir) is None
    start(state_dir)


def test_without_that_servers_outlive_the_process_that_started_them(state_dir: Path) -> None:
    with own_process(state_dir, "stay") as parent:
        parent.send_signal(signal.SIGKILL)
        parent.wait(PATIENCE_S)
        assert parent.stdout is not None
        assert parent.stdout.read() == ""  # no server holds the caller's pipe open
    connections = find_connections(state_dir)
    assert connections is not None
    with connect(connections) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
    assert stop(state_dir) == ["small", "redis", "postgres"]


def test_dying_with_a_thread_is_refused(state_dir: Path) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigurationError, match="main thread"):
        pool.submit(start, state_dir, die_with_parent=True).result()
    assert nothing_runs(state_dir)


AS_ANOTHER_USER = """
import sys
from pathlib import Path
from pipeline.embedded import start, stop
import psutil, psycopg
state_dir = Path(sys.argv[1]) / "state"
state = start(state_dir)
with psycopg.connect(state.connections.database_url.get_secret_value()) as database:
    assert database.execute("SELECT current_user").fetchone() == ("specthink",)
owners = {psutil.Process(found.pid).username() for found in state.program_states()}
assert owners == {psutil.Process().username()}, owners
assert stop(state_dir) == ["redis", "postgres"]
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_needs_no_other(tmp_path: Path) -> None:
    """In a namespace where root's files belong to an ordinary user, who this then is."""
    owner = pwd.getpwnam("nobody")
    become = ["unshare", "--user", f"--map-user={owner.pw_uid}", f"--map-group={owner.pw_gid}"]
    if shutil.which("unshare") is None or subprocess.run([*become, "true"], capture_output=True).returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [*become, *run_python(AS_ANOTHER_USER, str(tmp_path))]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=4 * PATIENCE_S)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for its servers")
def test_root_hands_the_servers_to_another_user_and_opens_no_folder(state_dir: Path) -> None:
    state_dir.parent.chmod(0o700)
    state = start(state_dir)
    owners = {psutil.Process(found.pid).uids().real for found in state.program_states()}
    assert 0 not in owners
    assert [stat.S_IMODE(path.stat().st_mode) for path in (state_dir.parent, state_dir)] == [0o700, 0o700]
    status = Path(f"/proc/{program_state(state, 'postgres').pid}/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    assert effective in (1 << 1, 1 << 2)  # CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH, nothing else


def test_purge_stops_everything_and_leaves_nothing(state_dir: Path) -> None:
    state = start(state_dir)
    pids = [found.pid for found in state.program_states()]
    made_user = state.made_system_user
    done = purge(state_dir)
    assert done[:2] == ["stopped: redis, postgres", f"removed: {state_dir}"]
    assert len(done) == 2 + made_user
    assert not state_dir.exists()
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)
    assert purge(state_dir) == []


def test_purge_leaves_a_folder_alone_that_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    assert purge(tmp_path) == []
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users")
def test_a_system_user_that_a_start_made_can_be_removed(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"specthink-{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr(postgres, "SYSTEM_USER", name)
    folder = StateFolder.of(state_dir)
    folder.create()
    user = postgres.service_user(folder)
    assert user == postgres.service_user(folder)
    assert folder.made_user_file.exists()
    assert pwd.getpwnam(name).pw_uid == (user or (0,))[0]
    assert purge(state_dir) == [f"removed: {state_dir}", f"removed: the system user {name}"]
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    assert postgres.remove_system_user() is None, "one that is gone already is removed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users")
def test_first_starts_at_the_same_time_find_one_system_user(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "SYSTEM_USER", f"specthink-{uuid.uuid4().hex[:8]}")
    folders = [StateFolder.of(state_dir / str(number)) for number in range(8)]
    for folder in folders:
        folder.create()
    try:
        with ThreadPoolExecutor(len(folders)) as starts:
            users = set(starts.map(postgres.service_user, folders))
        assert users == {postgres.service_user(folders[0])}
        assert sum(folder.made_user_file.exists() for folder in folders) == 1, "one of them made it"
    finally:
        assert postgres.remove_system_user() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_servers_user_with_a_new_id_gets_its_files_back(state_dir: Path) -> None:
    write_data(start(state_dir).connections)
    stop(state_dir)
    for part in ("postgres", "redis"):
        for path in (state_dir / part, *(state_dir / part).rglob("*")):
            os.chown(path, 54321, 54321)
    assert read_data(start(state_dir).connections) == (42, b"43")
