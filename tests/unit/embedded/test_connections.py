from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.embedded.connections import Connections, find_connections, is_running, resolve_connections, write_running
from pipeline.embedded.folder import StateFolder
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import ServiceUnavailable
from pipeline.settings import Settings, load_settings

EMBEDDED = Connections(
    SecretStr("postgresql://a:b@/c"), SecretStr("redis://:d@127.0.0.1:1/0"), SecretStr("postgresql://r:s@/c")
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


def test_without_servers_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="specthink up"):
        resolve_connections(make_settings(tmp_path, redis_url="redis://mine"))
