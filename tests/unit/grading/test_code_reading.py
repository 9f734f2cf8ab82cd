"""Where the code of an answer is found, and in which ways it may be meant."""

from __future__ import annotations

import pytest

from pipeline.grading.code.reading import find_code, readings

F = "def f(x):\n    return x\n"
G = "def g(x):\n    return 1\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{F}```\nso", F),
        (f"~~~python\n{F}~~~\n", F),
        (f"````python\n{F}s = '```'\n````", f"{F}s = '```'\n"),
        (f"```python\n{F}```\nUse it:\n```python\nprint(f(1))\n```", F),
        (f"```python\n{G}```\nand\n```python\ndef f(x):\n    return g(x)\n```", f"{G}\ndef f(x):\n    return g(x)\n"),
        (f"```python\n{G}```\nand\n```python\n{F}```", F),
        (f"```\n{F}```\nbetter\n```\ndef f(x):\n    return f(x - 1)\n```", "def f(x):\n    return f(x - 1)\n"),
        (f"```python\n{F}", F),
        ("  ", None),
    ],
)  # fmt: skip
def test_code_is_the_last_block_that_defines_what_is_asked(text: str, code: str | None) -> None:
    assert find_code(text, "f") == code


@pytest.mark.parametrize(
    "around", ["{}", "Here it is:\n\n{}", "{}\nThat works.", "Here:\n{}\nIt works\nin linear time.\n\nGood luck!"]
)
def test_function_in_no_block_is_read_without_the_prose_around_it(around: str) -> None:
    compiled = next(each for each in readings(around.format(F), prompt="", entry_point="f") if _compiles(each))
    names: dict[str, object] = {}
    exec(compiled, names)
    assert "f" in names


def test_code_that_does_not_compile_is_not_cut_until_it_does() -> None:
    broken = f"{F}\n\nclass G:\n    x = (\n"
    assert not any(map(_compiles, readings(broken, prompt="", entry_point="f")))


def _compiles(code: str) -> bool:
    try:
        compile(code, "answer", "exec")
    except SyntaxError:
        return False
    return True
