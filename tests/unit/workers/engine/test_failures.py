"""Why an engine failed: one line, also out of its own process."""

import os
import subprocess
import sys
from pathlib import Path

from workers.engine.failures import failure_file, leave_failure, one_line


def test_error_becomes_one_short_line() -> None:
    assert one_line(ValueError("no\n  such\tmodel")) == "ValueError: no such model"
    assert len(one_line(ValueError("x" * 1000))) == 500


def test_failure_of_another_process_is_read() -> None:
    program = "from workers.engine.failures import leave_failure; leave_failure(RuntimeError('no\\nmemory'))"
    with failure_file() as read_failure:
        assert read_failure() == ""
        subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[4], env=dict(os.environ))
        assert read_failure() == "RuntimeError: no memory"


def test_failure_that_nobody_reads_is_left_nowhere() -> None:
    before = dict(os.environ)
    with failure_file():
        assert dict(os.environ) != before
    assert dict(os.environ) == before
    leave_failure(RuntimeError("no memory"))
