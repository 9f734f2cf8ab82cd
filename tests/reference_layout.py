"""Which breaks end a step in text with layout, looked up in the whole text at each token: the plain form of
``pipeline.policies.reading.layout``."""

from __future__ import annotations

import re
from collections.abc import Sequence

OPENING = ("\\[", "\\begin", "$$", "```", "~~~")
"""What opens a display formula or a block of code."""


def step_end(texts: Sequence[str], breaks: Sequence[int], start: int) -> int | None:
    """Tokens up to the end of the step that the last of these tokens shows to have ended; breaks up to ``start`` are
    none of this request."""
    count = len(texts)
    place = max((place for place in breaks if start < place < count), default=None)
    if place is None or is_inside("".join(texts[:place])):
        return None
    own = texts[place - 1]
    rest = own[own.rfind("\n") :]
    if any(shows("".join([rest, *texts[place:read]])) for read in range(place + 1, count)):
        return None  # decided before
    after = "".join([rest, *texts[place:]])
    return place if shows(after) and begins_step(after) else None


def is_inside(text: str) -> bool:
    """Whether a break at the end of this text is inside a step."""
    formulas, dollars, in_code, last = 0, 0, False, ""
    for line in text.split("\n")[:-1]:
        if not line.strip():
            continue
        if is_fence(line.strip()):
            in_code, last = not in_code, ""
        elif not in_code:
            for mark in re.findall(r"\\\[|\\\]|\$\$|\\begin\{[^}]*\}|\\end\{[^}]*\}", line.replace(r"\\", " ")):
                dollars += mark == "$$"
                formulas = max(0, formulas + (mark[:2] in ("\\[", "\\b")) - (mark[:2] in ("\\]", "\\e")))
            last = line.strip()
    return formulas > 0 or dollars % 2 == 1 or in_code or introduces(last)


def is_fence(line: str) -> bool:
    """Whether a line opens or closes a block of code; one that does both is code within a line."""
    return line.startswith("~~~") or (line.startswith("```") and "`" not in line.lstrip("`"))


def introduces(line: str) -> bool:
    """Whether what follows a line belongs to it."""
    if not line:
        return False
    if line.endswith("\\\\") or line.rstrip("*")[-1:] in tuple(":：,，、=+(（"):
        return True
    heading = re.match(r"#+\s", line)
    if heading is not None and heading.end() <= 7:
        return True
    for mark in ("**", "__"):
        body = line.removesuffix(":").removesuffix("：")
        if body.startswith(mark) and body.endswith(mark) and len(body) > 4 and not set(body[2:-2]) & set("*_"):
            return True
    number = re.fullmatch(r"\(?(\w{1,5})[.)]", line, flags=re.ASCII)
    if number is not None:
        word = number[1]
        return (
            (word.isdigit() and len(word) <= 3) or (word.isalpha() and len(word) == 1) or not set(word) - set("ivxIVX")
        )
    return line in ("-", "*", "•")


def shows(after: str) -> bool:
    """Whether this text behind a break shows what kind of line begins there."""
    shown = after.lstrip()
    return bool(shown) and not any(shown != whole and whole.startswith(shown) for whole in OPENING)


def begins_step(after: str) -> bool:
    """Whether the line that begins there is a step of its own: neither an open formula nor indented."""
    shown = after.lstrip()
    indent = re.split(r"[\n\r]", after[: len(after) - len(shown)])[-1]
    return not shown.startswith(OPENING) and not ("\t" in indent or len(indent) >= 2)
