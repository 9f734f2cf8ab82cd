from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.embedded.connections import (
    Connections,
    find_connections,
    is_running,
    resolve_connections,
    resolve_redis,
    write_running,
)
from pipeline.embedded.folder import StateFolder
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.logins import DatabaseRole
from pipeline.settings import Settings, load_settings
from pipeline.workforce import WorkerKind

EMBEDDED = Connections(
    SecretStr("postgresql://a:b@/c"),
    SecretStr("redis://:d@127.0.0.1:1/0"),
    SecretStr("postgresql://r:s@/c"),
    {
        DatabaseRole.WRITER: SecretStr("postgresql://w:1@/c"),
        DatabaseRole.GRADER: SecretStr("postgresql://g:2@/c"),
        DatabaseRole.UPKEEP: SecretStr("postgresql://u:3@/c"),
    },
)


def this_process() -> ProcessIdentity:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return identity


def make_settings(state_dir: Path, **urls: str) -> Settings:
    return load_settings(state_dir=state_dir, **urls)


def test_connections_are_found_while_their_supervisord_lives(tmp_path: Path) -> None:
    write_running(StateFolder.of(tmp_path), this_process(), EMBEDDED)
    assert find_connections(tmp_path) == EMBEDDED
    assert is_running(tmp_path)


def test_connections_of_a_dead_supervisord_are_not_found(tmp_path: Path) -> None:
    dead = dataclasses.replace(this_process(), start_ticks=1)  # its id belongs to this process now
    write_running(StateFolder.of(tmp_path), dead, EMBEDDED)
    assert find_connections(tmp_path) is None
    assert not is_running(tmp_path / "absent")


def test_connections_hide_their_passwords() -> None:
    assert ":b@" not in repr(EMBEDDED)


def test_urls_in_the_settings_win(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, database_url="postgresql://mine", redis_url="redis://mine")
    assert resolve_connections(settings) == Connections(SecretStr("postgresql://mine"), SecretStr("redis://mine"), None)


def test_a_url_that_is_left_out_is_the_embedded_one(tmp_path: Path) -> None:
    write_running(StateFolder.of(tmp_path), this_process(), EMBEDDED)
    assert resolve_connections(make_settings(tmp_path)) == EMBEDDED
    own_redis = resolve_connections(make_settings(tmp_path, redis_url="redis://mine"))
    assert own_redis == dataclasses.replace(EMBEDDED, redis_url=SecretStr("redis://mine"))
    own_database = resolve_connections(make_settings(tmp_path, database_url="postgresql://mine"))
    assert own_database == Connections(SecretStr("postgresql://mine"), EMBEDDED.redis_url, None)


def test_each_kind_of_worker_connects_as_its_role() -> None:
    urls = {kind: EMBEDDED.worker_url(kind).get_secret_value() for kind in WorkerKind}
    assert urls == {
        WorkerKind.SMALL: "postgresql://w:1@/c",
        WorkerKind.LARGE: "postgresql://w:1@/c",
        WorkerKind.JUDGE: "postgresql://w:1@/c",
        WorkerKind.GRADE: "postgresql://g:2@/c",
        WorkerKind.UPKEEP: "postgresql://u:3@/c",
    }
    own = Connections(SecretStr("postgresql://mine"), EMBEDDED.redis_url, None)
    assert {own.worker_url(kind) for kind in WorkerKind} == {own.database_url}


def test_reader_of_a_database_of_ones_own_is_its_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_LOGINS__READER", "asker:p@ss:word/7")
    settings = make_settings(tmp_path, database_url="postgresql://o:q@host:1/c?x=y", redis_url="redis://mine")
    reader_url = resolve_connections(settings).reader_url
    assert reader_url is not None
    assert reader_url.get_secret_value() == "postgresql://asker:p%40ss%3Aword%2F7@host:1/c?x=y"


def test_people_submit_by_a_login_of_their_own_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, database_url="postgresql://o:q@host:1/c", redis_url="redis://mine")
    assert resolve_connections(settings).submitter_url == SecretStr("postgresql://o:q@host:1/c")
    monkeypatch.setenv("SPECTHINK_LOGINS__SUBMITTER", "ann:word")
    settings = make_settings(tmp_path, database_url="postgresql://o:q@host:1/c", redis_url="redis://mine")
    found = resolve_connections(settings)
    assert found.submitter_url == SecretStr("postgresql://ann:word@host:1/c")
    assert found.worker_url(WorkerKind.GRADE) == found.database_url == SecretStr("postgresql://o:q@host:1/c")
    write_running(StateFolder.of(tmp_path), this_process(), EMBEDDED)
    assert resolve_connections(make_settings(tmp_path)).submitter_url == EMBEDDED.database_url


def test_broker_is_found_without_a_database(tmp_path: Path) -> None:
    assert resolve_redis(make_settings(tmp_path, redis_url="redis://mine")) == SecretStr("redis://mine")


@pytest.mark.parametrize("login", ["", ":word", "name:"])
def test_login_without_a_name_or_a_password_is_refused(login: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_LOGINS__WRITER", login)
    with pytest.raises(ConfigurationError, match=r"SPECTHINK_LOGINS: .*NAME:PASSWORD, or NAME alone"):
        load_settings()


def test_two_roles_do_not_share_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_LOGINS__WRITER", "one:never-shown")
    monkeypatch.setenv("SPECTHINK_LOGINS__GRADER", "one:never-shown")
    with pytest.raises(ConfigurationError, match="a name of its own") as refused:
        load_settings()
    assert "never-shown" not in str(refused.value)


def test_a_file_in_the_place_of_the_state_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match=r"state is a file, and no folder; choose another --state-dir"):
        find_connections(tmp_path / "state")


def test_without_servers_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="specthink up"):
        resolve_connections(make_settings(tmp_path, redis_url="redis://mine"))
