from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.embedded.folder import StateFolder
from pipeline.embedded.supervision import Program, ProgramPhase, last_lines, phase_of, worker_service, write_service
from pipeline.errors import ConfigurationError


@pytest.mark.parametrize("name", ["", "Small", "a b", "a;b", "[x]", "postgres", "redis", "supervisord", "x" * 64])
def test_a_program_name_that_cannot_be_used_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="program name"):
        worker_service(StateFolder(tmp_path), Program(name=name, argv=("true",)))


def test_a_program_finds_its_state_folder_and_the_callers_environment_wins(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    plain = worker_service(folder, Program(name="small", argv=("true",)))
    assert plain.launch["env"] == {"SPECTHINK_STATE_DIR": str(tmp_path)}
    assert plain.launch["cwd"] == str(tmp_path)
    given = worker_service(
        folder, Program(name="small", argv=("true",), env={"SPECTHINK_STATE_DIR": "/x", "A": '%;#"'})
    )
    assert given.launch["env"] == {"SPECTHINK_STATE_DIR": "/x", "A": '%;#"'}


def test_writing_a_service_tells_whether_it_changed(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.create()
    assert write_service(folder, worker_service(folder, Program(name="small", argv=("true",))))
    assert not write_service(folder, worker_service(folder, Program(name="small", argv=("true",))))
    assert write_service(folder, worker_service(folder, Program(name="small", argv=("true",), stop_wait_s=60)))


@pytest.mark.parametrize(
    ("statename", "exit_status", "has_ended", "expected"),
    [
        ("STOPPED", 0, False, (ProgramPhase.STOPPED, None)),
        ("STOPPED", 0, True, (ProgramPhase.STOPPED, 0)),
        ("STARTING", 0, False, (ProgramPhase.STARTING, None)),
        ("RUNNING", 1, True, (ProgramPhase.RUNNING, None)),
        ("EXITED", 0, True, (ProgramPhase.EXITED, 0)),
        ("EXITED", 2, True, (ProgramPhase.CONFIGURATION_ERROR, 2)),
        ("EXITED", 75, True, (ProgramPhase.GAVE_UP, 75)),
        ("EXITED", 1, True, (ProgramPhase.RESTARTING, 1)),
        ("EXITED", -1, True, (ProgramPhase.RESTARTING, None)),
        ("BACKOFF", 0, True, (ProgramPhase.RESTARTING, None)),
        ("FATAL", 0, True, (ProgramPhase.GAVE_UP, None)),
    ],
)
def test_phase_of(statename: str, exit_status: int, has_ended: bool, expected: tuple[ProgramPhase, int | None]) -> None:
    assert phase_of(statename, exit_status, has_ended=has_ended) == expected


def test_last_lines_name_the_log_even_when_it_is_absent(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == f"see {log}"
    log.write_text("".join(f"{number}\n" for number in range(9)))
    assert last_lines(log, 2) == f"see {log}\n  7\n  8"
