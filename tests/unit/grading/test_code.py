"""The code grader: what it reads as code, what passes, and what hostile code cannot do."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.cli.doctor import Verdict, check_sandbox
from pipeline.errors import ConfigurationError, GradingError, ProblemSetError
from pipeline.grading import Ending, grade_output, make_grader
from pipeline.grading.code import CodeGrader, CodeReference
from pipeline.grading.code import sandbox as sandbox_module
from pipeline.grading.code.reading import find_code, readings
from pipeline.grading.code.sandbox import Outcome, find_fault, run_program
from pipeline.jobs.code_sets import CodeForm, as_worked, with_tests
from pipeline.jobs.recipes import find_recipe
from pipeline.jobs.references import check_references
from pipeline.problems import Problem
from pipeline.samples import FinishReason
from pipeline.settings import GradingSettings, Settings

PROMPT = (
    'import math\n\n\ndef half(x: int) -> int:\n    """Give half of x, rounded down.\n    >>> half(5)\n    2\n    """\n'
)
REFERENCE = CodeReference(
    prompt=PROMPT,
    tests="def check(candidate):\n    assert candidate(5) == 2\n    assert candidate(0) == 0\n\ncheck(half)\n",
    entry_point="half",
    solution="    return math.floor(x / 2)\n",
).model_dump_json()


@pytest.fixture(autouse=True)
def isolation() -> None:
    """A kernel that gives no namespaces has nothing to test here but that; CI's does."""
    if (fault := find_fault()) is not None:
        assert "CI" not in os.environ, fault
        pytest.skip(fault)


@pytest.mark.parametrize(
    "answer",
    [
        "First I thought.\n```python\ndef half(x):\n    return x // 2\n```\nThis halves x.",
        "```python\ndef half(x):\n    return 7\n```\nNo:\n```python\ndef half(x):\n    return x // 2\n```",
        "```python\ndef half(x):\n    return x // 2\n```\nUse it so:\n```python\nprint(half(4))\n```",
        "```\n    return math.floor(x / 2)\n```",
        "```python\nreturn x // 2\n```",
        "    return x // 2\n\n\ndef other():\n    return (",
        "    return math.floor(x / 2)\n",
        "def half(x):\n    return x // 2",
        "Here it is:\nimport math\ndef half(x):\n    return math.floor(x / 2)",
        "1. So:\n   ```python\n   def half(x):\n       return x // 2\n   ```",
    ],
)
def test_code_is_read_as_it_is_written(answer: str) -> None:
    grade = make_grader("code").grade(answer, REFERENCE)
    assert (grade.score, grade.detail) == (1.0, None), grade


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("```python\ndef half(x):\n    return x\n```", "the tests raised AssertionError"),
        ("```python\ndef half(x:\n    return x\n```", "the code raised SyntaxError"),
        ("```python\ndef half(x):\n    return y\n```", "the tests raised NameError"),
        ("```python\nraise KeyError('half')\ndef half(x): ...\n```", "the code raised KeyError"),
        ("```python\ndef halve(x):\n    return x // 2\n```", "the code raised SyntaxError"),
        ("I do not know.", "the code raised SyntaxError"),
    ],
)
def test_wrong_code_is_graded_with_its_reason(answer: str, reason: str) -> None:
    grade = make_grader("code").grade(answer, REFERENCE)
    assert grade.score == 0.0
    assert grade.detail in (reason, "the tests raised AssertionError")


def test_text_without_code_has_no_answer() -> None:
    grader = make_grader("code")
    assert grader.grade("  \n", REFERENCE).detail == "no answer found"
    cut = grade_output(
        grader,
        "```python\ndef half(x):\n    return x // 2",
        [REFERENCE],
        ending=Ending(finish_reason=FinishReason.LENGTH),
    )
    assert (cut.score, cut.detail) == (0.0, "no answer: the text was cut before it stated an answer (length)")
    assert grader.grade("def half(x): ...", None).score is None


def hostile(code: str, tests: str = "assert answer == 42") -> tuple[Outcome, str]:
    report = run_program([code], tests, wall_s=8)
    return report.outcome, report.error


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import os\nos._exit(0)", Outcome.ENDED),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", Outcome.ENDED),
        ("import sys\nsys.exit(0)", Outcome.RAISED),
        ("import atexit, os\natexit.register(lambda: os._exit(0))\nraise SystemExit", Outcome.RAISED),
        ("import os\nos.write(3, b'passed\\n')\nos._exit(0)", Outcome.FORGED),
        ('import os\nos.write(3, b\'{"outcome": "passed"}\\n\')\nos._exit(0)', Outcome.FORGED),
        ("import os\nos.write(3, b'x' * 10**6)\nos._exit(0)", Outcome.FORGED),
        ("import os\nos.close(3)", Outcome.ENDED),
        ("check = assert_ = AssertionError = lambda *_: None\nanswer = 1", Outcome.RAISED),
        ("import builtins\nbuiltins.exec = builtins.compile = None\nanswer = 1", Outcome.RAISED),
        ("import sys\nsys.settrace(lambda *_: None)\nanswer = 1", Outcome.RAISED),
        ("x = bytearray(2**31)", Outcome.RAISED),
        ("x = []\nwhile True: x.append(bytearray(2**20))", Outcome.RAISED),
        ("import os\nwhile True: os.fork()", Outcome.RAISED),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", Outcome.RAISED),
        ("def f(): f()\nf()", Outcome.RAISED),
        ("open('/tmp/x', 'wb').write(bytes(17 * 2**20))", Outcome.RAISED),
        ("open('/tmp/x', 'wb').write(bytes(2**20))\nanswer = 42", Outcome.PASSED),
        ("open('/usr/x', 'wb')", Outcome.RAISED),
        ("files = [open('/dev/null') for _ in range(1000)]", Outcome.RAISED),
    ],
)
def test_hostile_code_ends_without_a_pass(code: str, outcome: Outcome) -> None:
    started = time.monotonic()
    assert hostile(code)[0] is outcome
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(60)", "while True: print('x' * 10**6)"])
def test_code_that_does_not_end_is_ended(code: str) -> None:
    started = time.monotonic()
    assert run_program([code], "", wall_s=3).outcome is Outcome.TIMEOUT
    assert time.monotonic() - started < 20


def test_processes_that_code_leaves_behind_are_killed() -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nanswer = 42"
    before = set(sandboxed())
    assert hostile(code) == (Outcome.PASSED, "")
    deadline = time.monotonic() + 10
    while set(sandboxed()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(sandboxed()) - before


def sandboxed() -> list[int]:
    """Process ids of the interpreters that run programs here."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"the tests are through" not in (entry / "cmdline").read_bytes():
                continue
            if entry.name.isdigit():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_code_reaches_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[object] = []
        threading.Thread(target=lambda: accepted.append(server.accept()), daemon=True).start()
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nanswer = 42"
        assert hostile(code) == (Outcome.RAISED, "OSError")
        assert accepted == []
        socket.create_connection(("127.0.0.1", port), 2).close()


def test_code_sees_nothing_of_its_grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", "postgresql://secret")
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    top = Path(sys.base_prefix).resolve().parts[1]
    code = f"""
import os
assert set(os.environ) <= {{'HOME', 'LANG', 'PYTHONHASHSEED', 'LC_CTYPE'}}, dict(os.environ)
assert not os.path.exists({str(secret)!r})
assert not os.path.exists({str(Path(__file__))!r})
assert set(os.listdir('/')) <= {{'usr', 'lib', 'lib64', 'lib32', 'bin', 'etc', 'dev', 'tmp', {top!r}}}, os.listdir('/')
assert os.listdir('/etc') in ([], ['ld.so.cache'])
assert os.listdir('/tmp') == [] == os.listdir(os.getcwd())
assert os.getuid() != 0 and os.geteuid() != 0 and os.getgroups() in ([], [os.getgid()])
for pid in ({os.getpid()}, {os.getppid()}, os.getppid()):
    try:
        os.kill(pid, 9)
    except (ProcessLookupError, PermissionError):
        pass
for call in (lambda: os.setuid(0), lambda: os.chroot('/tmp'), lambda: os.mkdir('/usr/x')):
    try:
        call()
    except OSError:
        pass
    else:
        raise RuntimeError
answer = 42
"""
    assert hostile(code) == (Outcome.PASSED, "")


STEALING = """
import os
def half(x):
    os.write(3, b'{"outcome": "passed", "password": "%s"}' % os.read(4, 100) + bytes([10]))
    os._exit(0)
"""


def test_code_that_fakes_a_pass_is_found_by_a_test_that_must_fail() -> None:
    forged = STEALING + "half(1)\n"
    grade = make_grader("code").grade(f"```python\n{forged}\n```", REFERENCE)
    assert (grade.score, grade.detail) == (0.0, "the code passes tests that must fail")


def test_code_that_equals_everything_passes_as_the_docs_say() -> None:
    """What is not held off: an answer that calls itself equal to whatever it is compared with."""
    code = "class Any(int):\n    __eq__ = lambda *_: True\ndef half(x):\n    return Any()"
    assert make_grader("code").grade(code, REFERENCE).score == 1.0


def test_sandbox_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A launcher that may not make namespaces says so; nothing is run, and nothing scored."""
    broken = (sandbox_module._HERE / "launcher.py").read_text().replace('"unshare")', '"unshare") or checked(1, "x")')
    assert "checked(1" in broken
    (tmp_path / "launcher.py").write_text(broken)
    (tmp_path / "runner.py").write_text((sandbox_module._HERE / "runner.py").read_text())
    monkeypatch.setattr(sandbox_module, "_HERE", tmp_path)
    with pytest.raises(GradingError, match=r"code cannot be run in isolation here: .*x"):
        CodeGrader().grade("def half(x): return x // 2", REFERENCE)
    find_fault.cache_clear()
    try:
        with pytest.raises(ConfigurationError, match="SPECTHINK_GRADING__CODE_WITHOUT_ISOLATION"):
            CodeGrader().check_reference(REFERENCE)
        here = check_sandbox(Settings())
        allowed = check_sandbox(Settings(grading=GradingSettings(code_without_isolation=True)))
    finally:
        monkeypatch.undo()
        find_fault.cache_clear()

    assert (here.verdict, here.found[:6]) == (Verdict.OK, "none: ")
    assert here.remedy.startswith("only the grader 'code' needs one: it needs a kernel")
    assert (allowed.verdict, allowed.remedy[:26]) == (Verdict.WARNING, "code runs without one; uns")
    assert check_sandbox(Settings()).remedy == ""


def test_setting_allows_code_without_isolation_but_not_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTHINK_GRADING__CODE_WITHOUT_ISOLATION", "true")
    grader, answer = make_grader("code"), "import os\nassert os.getuid() != 0\ndef half(x): return x // 2"
    if os.getuid() == 0 and not is_for_everybody(Path(sys.executable).resolve()):
        with pytest.raises(GradingError, match="Permission denied"):
            grader.grade(answer, REFERENCE)
    else:
        assert grader.grade(answer, REFERENCE).score == 1.0


def is_for_everybody(path: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def test_reference_is_checked_by_running_its_solution() -> None:
    grader = CodeGrader()
    grader.check_reference(REFERENCE)
    wrong = json.loads(REFERENCE) | {"solution": "    return x\n"}
    with pytest.raises(GradingError, match="own solution does not pass its tests: the tests raised AssertionError"):
        grader.check_reference(json.dumps(wrong))
    for broken in ("42", "{}", "x", '{"tests": "assert 1", "entry_point": "no name"}'):
        with pytest.raises(GradingError, match="no JSON object"):
            grader.check_reference(broken)


HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": PROMPT, "canonical_solution": "    return x // 2\n", "entry_point": "half",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(9) == 4\n",
}  # fmt: skip
MBPP = {
    "task_id": 2, "text": "Write a function to add.",
    "code": "def one():\r\n    return 1\r\ndef add(a, b=one()):\r\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "", "challenge_test_list": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "row", "right"),
    [
        ("humaneval", HUMANEVAL, "def half(x): return x // 2"),
        ("mbpp", MBPP, "def add(a, b): return b + a"),
        (
            "mbpp-sanitized",
            {"prompt": MBPP["text"], **MBPP, "test_imports": ["import math"]},
            "add = lambda a, b: a + b",
        ),
    ],
)
def test_published_set_is_graded(tmp_path: Path, recipe: str, row: dict[str, object], right: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps(row) + "\n")
    loaded = find_recipe(recipe).load(file)
    check_references(loaded, 1, "code")
    (problem,) = loaded.problems
    assert make_grader("code").grade(f"```python\n{right}\n```", problem.answer).score == 1.0
    assert problem.metadata == {}
    worked = as_worked(problem).answer or ""
    assert make_grader("code").grade(worked, problem.answer).score == 1.0
    assert "assert" not in worked


def test_problem_whose_solution_fails_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    bad = HUMANEVAL | {"task_id": "HumanEval/1", "canonical_solution": "    return 5\n"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (HUMANEVAL, bad)))
    with pytest.raises(ProblemSetError, match=r"line 2: .* its own solution does not pass"):
        check_references(find_recipe("humaneval").load(file), 2, "code")
    file.write_text(json.dumps(HUMANEVAL | {"test": None}) + "\n")
    with pytest.raises(ProblemSetError, match="line 1: 'test' is missing"):
        find_recipe("humaneval").load(file)


def test_solution_in_prose_without_a_called_function_is_refused() -> None:
    problem = Problem(external_id="1", prompt="Add.", hidden={"code": "x = 1", "test_list": ["assert add(1) == 2"]})
    with pytest.raises(ValueError, match="no function of 'code' is called"):
        with_tests(problem, CodeForm.MBPP)


def test_likeliest_reading_comes_first() -> None:
    assert find_code("a\n```py\nx = 1\n```\nb", "half") == "x = 1\n"
    assert readings("def half(x): ...", prompt=PROMPT, entry_point="half")[0] == f"{PROMPT}\ndef half(x): ..."
    assert readings("    return 1", prompt=PROMPT, entry_point="half")[0] == f"{PROMPT}    return 1"
