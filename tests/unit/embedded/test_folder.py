from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.embedded.folder import StateFolder, read_json, write_private
from pipeline.errors import ConfigurationError, ServiceUnavailable


def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = StateFolder.of(tmp_path / "a" / "state")
    folder.create()
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_with_other_things_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="neither empty nor a state folder"):
        StateFolder.of(home).create()
    assert home.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in home.iterdir()] == ["letter.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match="choose another --state-dir"):
        StateFolder.of(tmp_path / "state").create()


@pytest.mark.parametrize("name", ["x" * 120, "with space", "quote'", "ünïcode", "a,b"])
def test_sockets_leave_a_path_that_is_too_long_or_odd(name: str) -> None:
    run = StateFolder(Path("/srv") / name).run
    assert run.parent == Path("/tmp")
    assert run == StateFolder(Path("/srv") / name).run
    assert run != StateFolder(Path("/srv") / f"{name}2").run


def test_sockets_of_a_plain_path_stay_inside() -> None:
    assert StateFolder(Path("/srv/specthink")).run == Path("/srv/specthink/run")


def test_symlinked_folders_are_the_same_state(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert StateFolder.of(tmp_path / "link") == StateFolder.of(tmp_path / "real")


def test_a_password_is_made_once_and_stored_privately(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    password = folder.password("owner")
    assert len(password) >= 32
    assert folder.password("owner") == password
    assert folder.password("reader") != password
    assert folder.secrets_file.stat().st_mode & 0o777 == 0o600
    assert json.loads(folder.secrets_file.read_text())["owner"] == password


def test_write_private_replaces_a_readable_file_by_a_private_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_read_json_tells_absent_from_damaged(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent") is None
    (tmp_path / "damaged").write_text('{"a": ')
    with pytest.raises(ConfigurationError, match="damaged is damaged"):
        read_json(tmp_path / "damaged")


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with (
        folder.lock(),
        pytest.raises(ServiceUnavailable, match="held by another"),
        StateFolder(tmp_path).lock(timeout_s=0.0),
    ):
        pytest.fail("locked twice")
    with folder.lock(timeout_s=0.0):
        pass


def test_a_foreign_folder_of_sockets_is_left_alone(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("")
    folder.run.symlink_to(elsewhere)
    folder.remove_run()
    assert (elsewhere / "file").exists()
    with pytest.raises(ConfigurationError, match="no folder for sockets"):
        folder.create_run()
