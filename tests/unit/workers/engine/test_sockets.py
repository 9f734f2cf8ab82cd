"""The folder of an engine's sockets: it is removed with the engine, and what killed workers left is found."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from workers.engine.vllm import sockets
from workers.engine.vllm.sockets import VARIABLE, SocketFolder, remove_told_folder

HOLD = """
import sys
from workers.engine.vllm.sockets import SocketFolder
folder = SocketFolder()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders are made: by a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="rpc-", dir="/tmp") as folder:
        monkeypatch.setenv(VARIABLE, folder)
        yield Path(folder)


def test_vllm_is_told_the_folder_and_nobody_else(base: Path) -> None:
    folder = SocketFolder()
    with folder.told():
        assert os.environ[VARIABLE] == str(folder.path)
    assert os.environ[VARIABLE] == str(base)
    assert len(os.fsencode(folder.path)) + len("/") + 36 <= 107
    folder.remove()
    folder.remove()
    assert not list(base.iterdir())


def test_folder_goes_with_its_process_and_a_killed_ones_with_the_next_start(base: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    ended, killed = processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout]
    ended.communicate("")
    assert [folder.exists() for folder in folders] == [False, True]
    mine = SocketFolder()
    assert folders[1].exists()  # its process lives
    killed.kill()
    killed.communicate()
    SocketFolder().remove()
    assert list(base.iterdir()) == [mine.path]
    mine.remove()


def test_engines_process_removes_what_it_was_told_and_nothing_else(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SocketFolder()
    remove_told_folder()
    assert folder.path.exists()
    monkeypatch.setenv(VARIABLE, str(folder.path))
    remove_told_folder()
    assert list(base.iterdir()) == []
    folder.remove()


def test_folder_for_temporary_files_with_a_long_name_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv(VARIABLE, str(long))
    folder = SocketFolder()
    assert folder.path.parent == Path("/tmp")
    folder.remove()
    monkeypatch.setattr(sockets, "_LONGEST_FOLDER", 5)
    with pytest.raises(ConfigurationError, match="let VLLM_RPC_BASE_PATH name a short one"):
        SocketFolder()
