from __future__ import annotations

import socket
from pathlib import Path

from pipeline.embedded.folder import StateFolder
from pipeline.embedded.redis_server import choose_port, last_port, prepare


def test_the_preferred_port_is_kept_while_it_is_free() -> None:
    port = choose_port(None)
    assert choose_port(port) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert choose_port(port) != port


def test_the_configuration_is_private_and_its_password_on_no_command_line(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert last_port(folder) is None
    service = prepare(folder, None, 4321)
    configuration = folder.redis / "redis.conf"
    assert configuration.stat().st_mode & 0o777 == 0o600
    assert f"requirepass {folder.password('redis')}\n" in configuration.read_text()
    assert folder.password("redis") not in repr(service)
    assert last_port(folder) == 4321
