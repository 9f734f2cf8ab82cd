"""The sbatch file without SLURM: srun is a program of the test's, signals are real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_lines import parse
from tests.deployed import DEPLOY, require_setting

SBATCH = DEPLOY / "slurm" / "worker.sbatch"
_WORKER = """\
#!{python}
import signal, sys, time
print("worker", *sys.argv[1:], flush=True)
def drain(*_):
    time.sleep(0.2)
    print("drained", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
if "--crash" in sys.argv: sys.exit(3)
time.sleep(30)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun runs its command here, and scontrol says what it was told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(programs / "worker", _WORKER.format(python=sys.executable))
    write_program(
        programs / "srun",
        f'#!/bin/bash\n[[ $1 == --kill-on-bad-exit=1 ]] || exit 9\nshift 2\nexec {programs}/worker "$@"\n',
    )
    write_program(programs / "scontrol", f'#!/bin/bash\necho "scontrol $*" >> {tmp_path}/told\n')
    return {"PATH": f"{programs}:{os.environ['PATH']}", "ROLE": "small", "MODEL": "org/a b", "SLURM_JOB_ID": "77"}


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_sbatch_file_is_bash_and_its_options_are_sbatch_options() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True, timeout=20)
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SBATCH.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert options["signal"] == "B:TERM@120", "TERM, to the script, long enough before the end"
    assert {"array", "requeue", "open-mode", "gres"} <= options.keys()
    code = SBATCH.read_text().split("set -euo pipefail")[0]
    assert all(line.startswith("#") or not line for line in code.splitlines()), "options stand before all commands"
    parse("specthink worker small --model org/small-1b")


def test_term_drains_the_worker_and_the_task_queues_itself_again(cluster: dict[str, str], tmp_path: Path) -> None:
    script = subprocess.Popen([SBATCH], env=cluster, stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    assert script.stdout.readline() == "worker worker small --model org/a b\n"
    time.sleep(0.2)  # the worker has its handler
    script.send_signal(signal.SIGTERM)
    rest, _ = script.communicate(timeout=20)
    assert (rest, script.returncode) == ("drained\n", 0)
    assert (tmp_path / "told").read_text() == "scontrol requeue 77\n"


@pytest.mark.parametrize("never", [{"REQUEUE": "0"}, {}], ids=["told not to", "not told to stop"])
def test_a_task_does_not_queue_itself_again(never: dict[str, str], cluster: dict[str, str], tmp_path: Path) -> None:
    if never:
        script = subprocess.Popen([SBATCH], env=cluster | never, stdout=subprocess.PIPE, text=True)
        assert script.stdout is not None
        script.stdout.readline()
        time.sleep(0.2)
        script.send_signal(signal.SIGTERM)
        script.communicate(timeout=20)
        code = 0
    else:
        write_program(
            tmp_path / "bin" / "worker", _WORKER.format(python=sys.executable).replace('if "--crash" in sys.argv: ', "")
        )
        script = subprocess.Popen([SBATCH], env=cluster, stdout=subprocess.PIPE, text=True)
        script.communicate(timeout=20)
        code = 3
    assert script.returncode == code, "the worker's own exit code"
    assert not (tmp_path / "told").exists()


def test_a_file_of_passwords_that_others_can_read_is_refused(cluster: dict[str, str], tmp_path: Path) -> None:
    secrets = tmp_path / "worker.env"
    secrets.write_text("SPECTHINK_DATABASE_URL=postgresql://writer:secret@host/name\n")
    secrets.chmod(0o644)
    done = subprocess.run(
        [SBATCH],
        env=cluster | {"SPECTHINK_ENV_FILE": str(secrets)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "chmod 600" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    secrets.chmod(0o600)
    write_program(
        tmp_path / "bin" / "worker", "#!/bin/bash\n[[ -n $SPECTHINK_DATABASE_URL && $HF_HUB_OFFLINE == 1 ]]\n"
    )
    told = subprocess.run([SBATCH], env=cluster | {"SPECTHINK_ENV_FILE": str(secrets)}, timeout=20, check=False)
    assert told.returncode == 0, "the worker has what the file sets"


def test_settings_that_it_names_are_settings() -> None:
    for variable in set(re.findall(r"SPECTHINK_[A-Z_]+", SBATCH.read_text())) - {"SPECTHINK_ENV_FILE"}:
        require_setting(variable)
