"""Five hosts, a job, a cut cable: embedded servers on one host, and workers on others that have joined it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.client import Client
from pipeline.embedded import stop
from pipeline.embedded.connections import find_joined
from pipeline.settings import load_settings
from tests.chaos.harness import SETTINGS
from tests.chaos.models import REPOSITORY
from tests.chaos.texts import NUM_PROBLEMS, expected_text
from tests.chaos.worker import ORDERS_VARIABLE, PROGRAM_VARIABLE
from tests.chaos.workload import submit_job
from tests.networks import Network, network, why_no_networks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(why_no_networks() is not None, reason=why_no_networks() or ""),
]

SPECTHINK = str(Path(sys.executable).with_name("specthink"))
SERVERS = 1
WORKERS = {2: "small", 3: "small", 4: "large", 5: "large"}
CUT = 2
SEED, NUM_SAMPLES = 11, 12


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    with network(1 + len(WORKERS)) as made:
        yield made


def environment_of(folder: Path, number: int) -> dict[str, str]:
    """Of a host's processes: a state folder of its own, and nothing of this process's settings."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    own = {
        "SPECTHINK_STATE_DIR": str(folder / f"host-{number}"), ORDERS_VARIABLE: str(folder),
        PROGRAM_VARIABLE: f"host-{number}", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    return given | SETTINGS | own


@pytest.fixture(scope="module")
def fleet(hosts: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Servers on the first host, open to the others; these have joined. Each host's state folder is below this one."""
    folder = tmp_path_factory.mktemp("fleet")
    state_dir = folder / f"host-{SERVERS}"
    try:
        up = hosts.run(
            SERVERS, SPECTHINK, "up", "--no-flower", "--listen", hosts.address(SERVERS), env=environment_of(folder, 1)
        )
        assert up.returncode == 0, up.stderr
        require_no_secret(up, state_dir)
        for number in WORKERS:
            joined = hosts.run(
                number, SPECTHINK, "join", str(state_dir / "join-token"), env=environment_of(folder, number)
            )
            assert joined.returncode == 0, joined.stderr
            assert "joined 10.77.0.1 port 7432 as specthink_writer, TLS" in joined.stdout
            require_no_secret(joined, state_dir)
        yield folder
    finally:
        stop(state_dir)


def require_no_secret(done: subprocess.CompletedProcess[str], state_dir: Path) -> None:
    import json

    said = done.stdout + done.stderr
    for secret in json.loads((state_dir / "secrets.json").read_text()).values():
        assert secret not in said


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 500) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)


def test_a_job_on_five_hosts_outlives_a_cut_cable(hosts: Network, fleet: Path) -> None:
    for number, role in WORKERS.items():
        worker = (sys.executable, "-m", "tests.chaos.worker", role)
        with (fleet / f"host-{number}.log").open("w") as log:
            hosts.start(number, *worker, env=environment_of(fleet, number), stdout=log, stderr=log, cwd=REPOSITORY)
    with Client.connect(load_settings(state_dir=fleet / f"host-{SERVERS}")) as client:

        def count(query: str) -> int:
            return int(client.sql(query).rows[0][0])

        live = (
            "SELECT count(*) FROM workers WHERE kind IN ('small', 'large') AND ended_at IS NULL AND expires_at > now()"
        )
        until(lambda: count(live) == len(WORKERS), "workers of four hosts")
        job = submit_job(client, SEED, num_samples=NUM_SAMPLES)
        writers = "SELECT count(DISTINCT worker_id) FROM segments"
        until(lambda: count(writers) == len(WORKERS), "texts of each host")
        hosts.cut(CUT)
        until(lambda: count("SELECT count(*) FROM workers WHERE end_reason = 'lapsed'") == 1, "the lost host's rescue")
        until(lambda: count("SELECT count(*) FROM jobs WHERE state = 'completed'") == 1, "the job's end")
        assert count(
            "SELECT count(*) FROM segments g JOIN workers w ON w.id = g.worker_id WHERE w.end_reason = 'lapsed'"
        )
        texts = {(row.problem, row.sample_index): row.output for row in client.results(job)}
        assert texts == {
            (str(number), index): expected_text(SEED, number, index)
            for number in range(NUM_PROBLEMS)
            for index in range(NUM_SAMPLES)
        }
        hosts.plug_in(CUT)
        until(lambda: count(live) == len(WORKERS), "the host whose cable is whole again")


def test_a_host_that_joined_has_a_writers_rights_alone(hosts: Network, fleet: Path) -> None:
    grade = hosts.run(3, SPECTHINK, "worker", "grade", env=environment_of(fleet, 3))
    assert grade.returncode == 2
    assert "joined with the writer's rights alone" in grade.stderr
    asked = "SELECT answer FROM reference_answers"
    here = environment_of(fleet, 3)
    joined = find_joined(Path(here["SPECTHINK_STATE_DIR"]))
    assert joined is not None
    address = {"SPECTHINK_DATABASE_URL": joined.database_url.get_secret_value()}
    sql = hosts.run(3, SPECTHINK, "sql", asked, env=here | address)
    assert sql.returncode != 0
    assert "permission denied for table reference_answers" in sql.stderr
    up = hosts.run(3, SPECTHINK, "up", env=environment_of(fleet, 3))
    assert up.returncode == 2
    assert "has joined the servers of another host" in up.stderr


def test_a_second_up_closes_the_servers_again_and_says_so(hosts: Network, fleet: Path) -> None:
    here = environment_of(fleet, SERVERS)
    again = hosts.run(SERVERS, SPECTHINK, "up", "--no-flower", "--listen", hosts.address(SERVERS), env=here)
    assert "open as it was" in again.stdout, again.stderr
    closed = hosts.run(SERVERS, SPECTHINK, "up", "--no-flower", env=here)
    assert "are closed now" in closed.stderr, closed.stderr
    assert not reaches(hosts, 3)
    assert not (fleet / f"host-{SERVERS}" / "join-token").exists()


def reaches(hosts: Network, number: int) -> bool:
    ask = "import socket; socket.create_connection(('10.77.0.1', 7432), timeout=5)"
    environment: Mapping[str, str] = os.environ
    return hosts.run(number, sys.executable, "-c", ask, env=environment).returncode == 0
