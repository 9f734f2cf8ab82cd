"""Finds the code in an answer, and the ways in which it may be meant."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

MAX_CODE_CHARS = 100_000
_BLOCK = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<code>.*?)^[ \t]*(?P=fence)", re.DOTALL | re.MULTILINE)
_OPENED = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^\n`]*\n", re.MULTILINE)
_NEXT = re.compile(r"\n(?:class|def|if|print|#|@|assert|```)")
"""Where a continuation ends, as in the released evaluation of HumanEval."""
_DEFINED = re.compile(r"^(?:async def|def|class)[ \t]+(\w+)", re.MULTILINE)
_PROSE = re.compile(r"(?:[A-Z*>-][^\n=]*(?:\n(?![ \t])[^\n=]*)*)")
"""A paragraph behind a function that stands in no block: it begins as a sentence, and nothing in it is indented."""
_MAX_READINGS = 6
_CODE_LINE = re.compile(r"^(?:from|import|def|class|async def|@)\b", re.MULTILINE)


def find_code(text: str, entry_point: str) -> str | None:
    """The last fenced block that defines the entry point, else the last one, else the text; None where it is blank.

    Blocks before it that define what it calls, and does not define, are part of it.
    """
    text = text[-MAX_CODE_CHARS:]
    blocks = [textwrap.dedent(block["code"]) for block in _BLOCK.finditer(text)]
    defining = [index for index, block in enumerate(blocks) if defines(block, entry_point)]
    if blocks:
        last = defining[-1] if defining else len(blocks) - 1
        code = _with_helpers(blocks[:last], blocks[last], entry_point)
    else:
        opened = _OPENED.split(text)
        code = opened[-1] if len(opened) > 1 else text
    return code if code.strip() else None


def _with_helpers(before: Sequence[str], code: str, entry_point: str) -> str:
    for block in reversed(before):
        names = set(_DEFINED.findall(block))
        called = {name for name in names if re.search(rf"(?<![\w.]){name}\b", code)} - set(_DEFINED.findall(code))
        if called and not defines(block, entry_point):
            code = f"{block}\n{code}"
    return code


def has_code_block(text: str) -> bool:
    """Whether a text has a fenced block that is closed."""
    return _BLOCK.search(text[-MAX_CODE_CHARS:]) is not None


def readings(code: str, *, prompt: str, entry_point: str) -> Sequence[str]:
    """Programs that the code may mean, the likeliest first; of these the first that compiles is run.

    One that defines the entry point stands for itself, behind the prompt for the helpers there. Any other is the
    continuation of the prompt.
    """
    if defines(code, entry_point) or not prompt:
        start = _CODE_LINE.search(code)
        bare = [code, *([code[start.start() :]] if start else [])]
        paragraphs = re.split(r"\n[ \t]*\n", bare[-1].rstrip())
        while len(paragraphs) > 1 and _PROSE.fullmatch(paragraphs[-1]) and len(bare) < _MAX_READINGS:
            paragraphs.pop()
            bare.append("\n\n".join(paragraphs) + "\n")
        return [*(f"{prompt}\n{each}" for each in bare if prompt), *bare]
    ended = _NEXT.split(code, maxsplit=1)[0]
    bodies = [code, ended, textwrap.indent(code, "    "), textwrap.indent(ended, "    ")]
    return [prompt + body for body in bodies]


def defines(code: str, entry_point: str) -> bool:
    """Whether a text has the line that begins a function of this name."""
    return (
        re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}[ \t]*\(", code, re.MULTILINE) is not None
    )
