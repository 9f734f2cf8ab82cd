"""Has a grader read reference answers, in this process's main thread or in a process of its own.

``python -m pipeline.grading.checking GRADER`` reads a JSON list of references on standard input, and writes a JSON
list: for each the reason why the grader cannot read it, or null.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence

from pipeline.errors import ConfigurationError, GradingError
from pipeline.grading import Grader, limit_memory, make_grader
from pipeline.grading.base import check_reference


def find_faults(grader_name: str, references: Sequence[str]) -> list[str | None]:
    """Why the grader cannot read each reference; None where it can. No reason quotes a reference.

    A grader may work in a main thread only, as math-verify does: called from another one, a process does it.
    """
    grader = make_grader(grader_name)
    if grader.is_instant or threading.current_thread() is threading.main_thread():
        return [_fault(grader, reference) for reference in references]
    command = [sys.executable, "-m", "pipeline.grading.checking", grader_name]
    done = subprocess.run(command, input=json.dumps(references), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise ConfigurationError(f"the grader {grader_name!r} broke on the reference answers: {' '.join(last)[:200]}")
    faults: list[str | None] = json.loads(done.stdout)
    return faults


def _fault(grader: Grader, reference: str) -> str | None:
    """A reference is unreadable where the grader says so twice: on a busy machine it may run out of time once."""
    reason = None
    for _ in range(2):
        try:
            check_reference(grader, reference)
        except GradingError as error:
            reason = str(error)
        else:
            return None
    return reason


if __name__ == "__main__":
    limit_memory()
    print(json.dumps(find_faults(sys.argv[1], json.load(sys.stdin))))
