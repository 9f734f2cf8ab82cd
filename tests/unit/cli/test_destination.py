"""Where a command writes what it was asked for: files, folders, devices, pipes, links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import typer

from pipeline.cli.queries import destination, require_place
from pipeline.command_line import run_command


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("before")

    def interrupted() -> None:
        with destination(output) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert output.read_text() == "before"
    with destination(output) as stream:
        stream.write(b"whole")
    assert output.read_text() == "whole"
    assert [*tmp_path.iterdir()] == [output]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    with destination(link) as stream:
        stream.write(b"whole")
    assert link.is_symlink()
    assert file.read_text() == "whole"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        require_place(pipe, option="--html")
        with destination(pipe) as stream:
            stream.write(b"as it comes")
        assert os.read(reading, 100) == b"as it comes"
    finally:
        os.close(reading)
    assert pipe.is_fifo()


@pytest.mark.parametrize(("name", "told"), [("", "it is a folder; name a file"), ("no/such", "No such file")])
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        require_place(tmp_path / name, option="--html")
    with pytest.raises(typer.BadParameter, match=told), destination(tmp_path / name):
        pytest.fail("it was opened")
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit) as ended:
        run_command(write)
    assert ended.value.code == 1
    assert capsys.readouterr().err == ("specthink: what was being written is not complete: No space left on device\n")
