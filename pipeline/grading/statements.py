"""Where a text without a box states its answer: answer tags, #### as in GSM8K, "The final answer is …", 答案是 …"""

from __future__ import annotations

import re

from pipeline.grading.extract import MAX_TEXT_CHARS

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"^\s*####[ \t]*(\S.*)$", re.MULTILINE)
_MARK = r"(?:\*\*|__|\*)?"
_VERB = r"(?:is|are|would[ \t]+be|will[ \t]+be|must[ \t]+be|should[ \t]+be|equals|=)(?![A-Za-z])"
_STATED = re.compile(
    r"(?:(?<![A-Za-z])(?:final\s+answers?|answers?|final\s+result)"
    rf"{_MARK}(?:[ \t]+(?:to|of|for)\b[^.\n:=]{{0,80}}?)?{_MARK}(?:[ \t]*[:=：]|[ \t]+{_VERB})"
    rf"|答案(?:应该|应|就)?(?:是|为|[:：])|^[ \t]*A:|^{_MARK}[ \t]*(?:#+[ \t]*)?(?:final[ \t]+)?answer{_MARK}[ \t]*$)"
    rf"[ \t]*{_MARK}[ \t]*[:：]?[ \t]*{_MARK}",
    re.IGNORECASE | re.MULTILINE,
)
_MATHS = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$])+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_STOP = re.compile(
    r"\s+(?:because|since|as\s+the|so\s+that|which)\b|\.\s+(?=[A-Z\u4e00-\u9fff\"(])|\.\s*I hope|。|！|\n",
    re.IGNORECASE,
)
_SAID = re.compile(r"[.!?。！？$)\]}\"'”’*>|`]\s*$")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def find_stated(text: str) -> str | None:
    """The last answer that a text states; None where it states none."""
    text = text[-MAX_TEXT_CHARS:]
    for pattern in (_TAG, _HASHES):
        if found := [answer.strip() for answer in pattern.findall(text) if answer.strip()]:
            return str(found[-1])
    for match in reversed(list(_STATED.finditer(text))):
        if stated := _stated_behind(text[match.end() :]):
            return stated
    return None


def _stated_behind(rest: str) -> str | None:
    """What is stated at the beginning of a text: a formula between dollars, or up to the end of the sentence."""
    rest = rest.lstrip("\n ")
    if formula := _MATHS.match(rest):
        return next(part for part in formula.groups() if part is not None).strip() + _others(rest[formula.end() :])
    stop = _STOP.search(rest)
    stated = (rest[: stop.start()] if stop else rest).strip().rstrip("*_ ").strip()
    return stated or None


def _others(rest: str) -> str:
    """Further formulas of one statement: $3$ and $5$, $x = 1$ or $x = 2$."""
    joined = ""
    while link := re.match(r"\s*(?:,|;|and|or|,\s*and|,\s*or)\s*(?=\$|\\\()", rest):
        formula = _MATHS.match(rest, link.end())
        if formula is None:
            break
        joined += ", " + next(part for part in formula.groups() if part is not None).strip()
        rest = rest[formula.end() :]
    return joined


def looks_finished(text: str) -> bool:
    """Whether a text reads as if its writer had ended it: with a whole sentence, or a line that is a formula."""
    lines = [line for line in text[-MAX_TEXT_CHARS:].splitlines() if line.strip()]
    return bool(lines) and (_SAID.search(lines[-1]) is not None or _PROSE.search(lines[-1]) is None)
