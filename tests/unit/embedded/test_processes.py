from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

from pipeline.embedded.processes import ProcessIdentity


def test_this_process_is_alive_and_itself() -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    assert identity.is_alive()


def test_another_process_with_the_same_id_is_not_the_one_meant() -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    assert not dataclasses.replace(identity, start_ticks=identity.start_ticks - 1).is_alive()
    assert not dataclasses.replace(identity, boot_id="an earlier boot").is_alive()


def test_an_ended_process_is_gone_even_before_it_is_collected() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.is_alive()
        assert ProcessIdentity.of(process.pid) is None
