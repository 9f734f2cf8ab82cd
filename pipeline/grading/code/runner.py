"""Runs an answer and its tests inside the sandbox. Its text is given to a bare interpreter with ``-c``.

Standard input: JSON with ``answers`` (the first that compiles is run) and ``tests``. The verdict, one JSON line, goes
to descriptor 3. What must be said for a pass waits unread on descriptor 4 until the tests are through.
"""

import json
import os
import sys

REPORT, PASSWORD = 3, 4


def verdict(answers: list[str], tests: str) -> dict[str, object]:
    """What became of the answer and then of its tests."""
    compiled = None
    for answer in answers:
        try:
            compiled = compile(answer, "the code", "exec")
            break
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            fault = type(error).__name__
    if compiled is None:
        return {"outcome": "raised", "error": fault, "where": "the code"}
    names: dict[str, object] = {"__name__": "answer", "__builtins__": __builtins__}
    where = "the code"
    try:
        exec(compiled, names)
        where = "the tests"
        exec(compile(tests, where, "exec"), names)
    except BaseException as error:
        return {"outcome": "raised", "error": type(error).__name__, "where": where}
    return {"outcome": "passed", "password": os.read(PASSWORD, 100).decode()}


if __name__ == "__main__":
    given = json.loads(sys.stdin.buffer.read())
    os.write(REPORT, json.dumps(verdict(given["answers"], given["tests"])).encode() + b"\n")
    os._exit(0)
