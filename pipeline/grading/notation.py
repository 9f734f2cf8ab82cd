"""Answers that are written in another way: words for no solution, real numbers, set builders, two units, options."""

from __future__ import annotations

import re

_WORDS = (
    (re.compile(r"(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+)?solutions?|(?:the\s+)?empty\s+set|\\varnothing|\\\{\s*\\\}"),
     r"\emptyset"),
    (re.compile(r"(?:the\s+limit\s+)?(?:does\s+not|doesn't)\s+exist"), "DNE"),
    (re.compile(r"\+?\s*infinity|\+\s*\\infty"), r"\infty"),
    (re.compile(r"-\s*infinity"), r"-\infty"),
    (re.compile(r"all\s+real\s+numbers|all\s+reals|\\mathbb\s*\{?\s*R\s*\}?|\\R"), r"(-\infty,\infty)"),
)  # fmt: skip
_ABOUT = re.compile(
    r"^(?:\\approx|\\simeq|\\sim|approximately|approx\.?|about|roughly|nearly)(?![a-zA-Z])\s*", re.IGNORECASE
)
_NUMBER = r"-?(?:\d+(?:\.\d+)?|\\frac\s*\{\s*-?\d+\s*\}\s*\{\s*-?\d+\s*\})"
_BUT_ONE = re.compile(rf"\\mathbb\s*\{{?\s*R\s*\}}?\s*(?:\\setminus|\\backslash|-)\s*\\?\{{\s*({_NUMBER})\s*\\?\}}")
_NOT = re.compile(rf"[a-z]\s*(?:\\neq?|\\not\s*=|!=)\s*({_NUMBER})")
_BUILDER = re.compile(
    r"\\?\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*(?:\\mid|\\vert|\||:)\s*(.*[<>=].*|.*\\(?:le|ge|lt|gt|ne).*?)\s*\\?\}"
)
_ABSOLUTE = re.compile(
    r"(?:\||\\vert|\\lvert)\s*([a-z])\s*(?:\||\\vert|\\rvert)\s*(<=?|\\leqslant|\\leq?|\\lt)\s*([^<>=|]+)"
)
_ROWS = re.compile(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])+)\s*\]")
_PLAIN_NAME = re.compile(r"(?<![A-Za-z\\])(pi|exp|sin|cos|tan|ln|log)(?=[^A-Za-z]|$)")
_PLAIN_POWER = re.compile(r"(?<=[\w)])\*\*(?=[\w(])")
_TO = re.compile(r"(\d+)\s+to\s+(\d+)")
_MODULUS = re.compile(r"\s*(?:\\pmod\s*\{?\s*\w+\s*\}?|\(?\s*(?:\\bmod|\\mod|mod)\s*\w+\s*\)?)$")
_OPTION = re.compile(r"(?:\\text\s*\{\s*)?\(\s*([A-E])\s*\)\s*\}?\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"(?:\\text\s*\{\s*)?\(?\s*([A-E])\s*\)?\s*\}?")


def usual_notation(text: str) -> str:
    """The same answer as most would write it, of a text that is in its plain form."""
    text = _PLAIN_NAME.sub(r"\\\1", _PLAIN_POWER.sub("^", text))
    text = _ABOUT.sub("", text, count=1) or text
    for pattern, meant in _WORDS:
        if pattern.fullmatch(text.casefold() if meant in ("DNE", r"\emptyset") else text):
            return meant
    if but := _BUT_ONE.fullmatch(text) or _NOT.fullmatch(text):
        return rf"(-\infty,{but[1]}) \cup ({but[1]},\infty)"
    if (built := _BUILDER.fullmatch(text)) and re.search(rf"(?<![a-zA-Z\\]){built[1]}(?![a-zA-Z])", built[2]):
        return built[2].rstrip("\\ ")
    if within := _ABSOLUTE.fullmatch(text):
        return f"-({within[3].strip()}) {within[2]} {within[1]} {within[2]} {within[3].strip()}"
    if rows := _ROWS.fullmatch(text):
        return _matrix(re.findall(r"\[([^\[\]]*)\]", rows[1])) or text
    if ratio := _TO.fullmatch(text):
        return f"{ratio[1]}:{ratio[2]}"
    return _unknown_first(text)


def without_modulus(text: str) -> str:
    """7 of "7 (mod 10)"."""
    return _MODULUS.sub("", text)


def _matrix(rows: list[str]) -> str | None:
    """Rows as programs write them; None where they are of several lengths."""
    cells = [[cell.strip() for cell in row.split(",")] for row in rows]
    if len({len(row) for row in cells}) != 1:
        return None
    return r"\begin{pmatrix}" + r" \\ ".join(" & ".join(row) for row in cells) + r"\end{pmatrix}"


def _unknown_first(text: str) -> str:
    """5 = x as x = 5."""
    before, equals, after = text.partition("=")
    if not equals or "=" in after or re.search(r"[<>!:\\]\s*$", before) or not before.strip():
        return text
    has_letters = [re.search(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", "", side)) is not None for side in (before, after)]
    return f"{after.strip()} = {before.strip()}" if has_letters == [False, True] else text


def split_option(text: str) -> tuple[str, str] | None:
    """The letter and the rest of "(B) 12", as contests print their answers; None for anything else."""
    option = _OPTION.fullmatch(text)
    return (option[1], option[2].strip()) if option and option[2].strip() else None


def option_letter(text: str) -> str | None:
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else None
