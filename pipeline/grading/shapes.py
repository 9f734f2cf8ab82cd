"""What an answer is made of: lists, tuples, intervals, sets, matrices, ratios, and formulas at the leaves.

Nothing is compared here, and no formula is understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_PARTS = 60
"""Longer lists are one formula: to compare every part with every other would take too long."""
_MAX_DEPTH = 6


class ShapeKind(StrEnum):
    ATOM = "atom"  # one formula, number or word
    LIST = "list"  # parts between commas, in any order
    SET = "set"  # parts in braces, in any order
    TUPLE = "tuple"  # parts in brackets, in this order: a point, a vector, an interval
    UNION = "union"  # of intervals
    MATRIX = "matrix"
    RATIO = "ratio"  # 1:2, also a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """text: all of it. label: x where it says x = …. marks: the brackets, or a matrix's kind and width."""

    kind: ShapeKind
    text: str
    parts: tuple[Shape, ...] = ()
    label: str | None = None
    marks: str = ""
    whole: str = ""
    """Of a formula with a label: with it."""


# Possessive: a name is read in one way, in one pass.
_NAME = r"(?:\\(?!in(?![a-zA-Z])|approx|equiv)[a-zA-Z]++|[A-Za-z]++)(?:_(?:\{[^{}]*+\}|\w))?+'*+"
_LABEL = re.compile(
    rf"^((?:\\angle\s*)?(?:{_NAME}\s*+){{1,3}}+(?:\([A-Za-z0-9, \\]*\))?|\\text\s*\{{[^{{}}]*\}}|\|[A-Z]{{2}}\|"
    r"|\([a-z](?:\s*,\s*[a-z])+\))\s*"
    r"(?::=|=|\\approx|\\in(?![a-zA-Z])|\\equiv)\s*(?=\S)(.*)$",
    re.DOTALL,
)
_RELATION = re.compile(
    r"\\leqslant|\\geqslant|\\leq(?![a-z])|\\geq(?![a-z])|\\le(?![a-z])|\\ge(?![a-z])|\\lt(?![a-z])|\\gt(?![a-z])|<=|>=|<|>"
)
_VARIABLE = re.compile(r"(?:[a-zA-Z]|\\(?:theta|alpha|beta|lambda|gamma|phi|omega))(?:_\{?\w+\}?)?")
_MATRIX = re.compile(r"^\\begin\{([pbvBV]?)matrix\}(.*)\\end\{\1matrix\}$", re.DOTALL)
_ARRAY = re.compile(r"^[(\[|]?\s*\\begin\{array\}\s*\{[^{}]*\}(.*)\\end\{array\}\s*[)\]|]?$", re.DOTALL)
_RATIO = re.compile(r"^[^:(){}\[\]]+(?::[^:(){}\[\]]+)+$")
_GROUPS_OF_THREE = re.compile(r"^-?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
_FRENCH = re.compile(r"^([\]\[])([^\[\]()]*,[^\[\]()]*)([\]\[])$")
_OPEN, _CLOSE = "([{", ")]}"
_ONE = {"<": ")", "\\lt": ")", "\\le": "]", "\\leq": "]", "\\leqslant": "]", "<=": "]"}
_TWO = {">": "(", "\\gt": "(", "\\ge": "[", "\\geq": "[", "\\geqslant": "[", ">=": "["}


def read_shapes(text: str) -> Iterator[Shape]:
    """What a text may be: 100,200,300 is a list of three numbers, or one."""
    text = text.strip()
    is_grouped = _GROUPS_OF_THREE.match(text) is not None
    if not (is_grouped and re.search(r",0", text)):  # 1,000 is no list of 1 and 000
        yield _read(text, 0)
    if is_grouped:
        yield Shape(kind=ShapeKind.ATOM, text=text.replace(",", ""))


def _read(text: str, depth: int) -> Shape:
    text = text.strip()
    if depth > _MAX_DEPTH:
        return Shape(kind=ShapeKind.ATOM, text=text)
    if (labelled := _LABEL.match(text)) and "=" not in _outside(labelled[2]):
        inner = _read(labelled[2], depth + 1)
        return (
            Shape(
                kind=inner.kind,
                text=text,
                parts=inner.parts or (inner,),
                marks=inner.marks,
                label=_plain_label(labelled[1]),
            )
            if inner.kind is not ShapeKind.ATOM
            else Shape(kind=ShapeKind.ATOM, text=inner.text, label=_plain_label(labelled[1]), whole=text)
        )
    if text[:1] in "[]" and (shape := _bracketed(text, depth)) is not None:
        return shape
    for read in (_matrix, _union, _list, _interval, _bracketed, _ratio, _signs):
        if (shape := read(text, depth)) is not None:
            return shape
    return Shape(kind=ShapeKind.ATOM, text=_last_side(text))


def _plain_label(text: str) -> str:
    return re.sub(r"\\text\s*|[\s{}]", "", text)


def _outside(text: str) -> str:
    """What is in no bracket."""
    return "".join(_split(text, lambda rest: 0, only_outside=True))


def _last_side(text: str) -> str:
    """The last side of a chain of equalities without letters before it, such as 2 + 3 = 5."""
    before, equals, after = text.rpartition("=")
    if (
        equals
        and after.strip()
        and not re.search(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", "", before))
        and not re.search(r"[<>!\\]$", before)
    ):
        return after.strip()
    return text


def _split(text: str, length_at: Callable[[str], int], *, only_outside: bool = False) -> list[str]:
    """The parts of a text between separators that stand in no bracket. length_at: of a separator that begins there."""
    parts, current, depth, index = [], "", 0, 0
    while index < len(text):
        two = text[index : index + 2]
        if two in (r"\{", r"\}"):
            depth, step = depth + (1 if two == r"\{" else -1), 2
        elif text.startswith(r"\begin{", index) or text.startswith(r"\end{", index):
            depth, step = depth + (1 if text[index + 1] == "b" else -1), 2
        elif depth <= 0 and (step := length_at(text[index:])):
            parts.append(current)
            current, index = "", index + step
            continue
        else:
            depth, step = depth + (text[index] in _OPEN) - (text[index] in _CLOSE), 1
        if not only_outside or depth <= 0:
            current += text[index : index + step]
        index += step
    return [*parts, current]


def _comma(rest: str) -> int:
    return 1 if rest[0] in ",;" else 0


def _cup(rest: str) -> int:
    return 4 if re.match(r"\\cup(?![a-zA-Z])", rest) else 0


def _many(kind: ShapeKind, text: str, parts: Sequence[str], depth: int, marks: str = "") -> Shape | None:
    stripped = [part.strip() for part in parts if part.strip()]
    if len(stripped) > MAX_PARTS:
        return None
    return Shape(kind=kind, text=text, parts=tuple(_read(part, depth + 1) for part in stripped), marks=marks)


def _list(text: str, depth: int) -> Shape | None:
    parts = [part for part in _split(text, _comma) if part.strip()]
    if len(parts) < 2:
        return None
    if all(_relations(part) for part in parts) and len(parts) > 1:
        return _union(r" \cup ".join(parts), depth) if not _is_chain_of(parts) else None
    return _flat(_many(ShapeKind.LIST, text, parts, depth))


def _is_chain_of(parts: Sequence[str]) -> bool:
    """Whether inequalities speak of several unknowns, so that they are no union."""
    names = {
        name
        for part in parts
        for name in _VARIABLE.findall(re.sub(r"\\(?:le|ge|lt|gt|leq|geq|infty|frac|sqrt|pi)(?![a-z])", " ", part))
    }
    return len(names) > 1


def _flat(shape: Shape | None) -> Shape | None:
    """A list whose parts stand for two answers each, with a plus-minus sign, is one list."""
    if shape is None:
        return None
    parts = [inner for part in shape.parts for inner in (part.parts if part.marks == "±" else (part,))]
    return Shape(kind=shape.kind, text=shape.text, parts=tuple(parts), marks=shape.marks)


def _union(text: str, depth: int) -> Shape | None:
    parts = _split(text, _cup)
    union = _many(ShapeKind.UNION, text, parts, depth) if len(parts) > 1 else None
    if union is not None and all(part.kind is ShapeKind.SET for part in union.parts):
        members = tuple(member for part in union.parts for member in part.parts)
        return Shape(kind=ShapeKind.SET, text=text, parts=members, marks="{}")
    return union


def _relations(text: str) -> list[str]:
    return _RELATION.findall(_outside(text))


def _interval(text: str, depth: int) -> Shape | None:
    """x > 2 and 1 < x <= 2 as the intervals that they are."""
    signs = _RELATION.findall(text)
    sides = [side.strip() for side in _RELATION.split(text)]
    if not 1 <= len(signs) <= 2 or any(not side for side in sides):
        return None
    if len(signs) == 2:
        return _between(text, sides, signs, depth)
    if _VARIABLE.fullmatch(sides[1]) and not _VARIABLE.fullmatch(sides[0]):
        sides, signs = [sides[1], sides[0]], [_turned(signs[0])]
    if not _VARIABLE.fullmatch(sides[0]) or re.search(r"(?<![\\a-z])[a-z](?![a-z])", sides[1]):
        return None
    if signs[0] in _ONE:
        low, high, marks = r"-\infty", sides[1], "(" + _ONE[signs[0]]
    else:
        low, high, marks = sides[1], r"\infty", _TWO[signs[0]] + ")"
    return _many_of(text, (low, high), depth, marks, sides[0])


def _between(text: str, sides: list[str], signs: list[str], depth: int) -> Shape | None:
    if signs[0] in _TWO and signs[1] in _TWO:
        sides, signs = sides[::-1], [_turned(signs[1]), _turned(signs[0])]
    if not (signs[0] in _ONE and signs[1] in _ONE) or not _VARIABLE.fullmatch(sides[1]):
        return None
    marks = ("(" if _ONE[signs[0]] == ")" else "[") + _ONE[signs[1]]
    return _many_of(text, (sides[0], sides[2]), depth, marks, sides[1])


def _turned(sign: str) -> str:
    pairs = {"<": ">", "\\lt": ">", "\\le": "\\ge", "\\leq": "\\ge", "\\leqslant": "\\ge", "<=": "\\ge"}
    back = {">": "<", "\\gt": "<", "\\ge": "\\le", "\\geq": "\\le", "\\geqslant": "\\le", ">=": "\\le"}
    return {**pairs, **back}[sign]


def _many_of(text: str, parts: Sequence[str], depth: int, marks: str, label: str) -> Shape | None:
    shape = _many(ShapeKind.TUPLE, text, parts, depth, marks)
    return shape and Shape(kind=shape.kind, text=text, parts=shape.parts, marks=marks, label=label)


def _bracketed(text: str, depth: int) -> Shape | None:
    if (french := _FRENCH.match(text)) and (french[1], french[3]) != ("[", "]"):
        marks = ("[" if french[1] == "[" else "(") + ("]" if french[3] == "]" else ")")
        return _many(ShapeKind.TUPLE, text, _split(french[2], _comma), depth, marks)
    for start, end, kind, marks in (
        (r"\{", r"\}", ShapeKind.SET, "{}"),
        ("{", "}", ShapeKind.SET, "{}"),
    ):
        inner = text[len(start) : -len(end)]
        if (
            text.startswith(start)
            and text.endswith(end)
            and len(text) > len(start) + len(end)
            and _closes_at_end(text, start)
        ):
            if start == "{" and len(_split(inner, _comma)) < 2:
                return _read(inner, depth + 1)
            return _flat(_many(kind, text, _split(inner, _comma), depth, marks))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes_at_end(text, text[0]):
        parts = _split(text[1:-1], _comma)
        if len(parts) > 1:
            return _many(ShapeKind.TUPLE, text, parts, depth, text[0] + text[-1])
        if text[0] == "(" and text[-1] == ")" and text[1:-1].strip():
            return _read(text[1:-1], depth + 1)
    return None


def _closes_at_end(text: str, start: str) -> bool:
    """Whether the bracket that a text begins with is closed by its last one."""
    depth = 0
    plain = text.replace(r"\{", "{").replace(r"\}", "}")
    for index, character in enumerate(plain):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return index == len(plain) - 1
    return False


def _matrix(text: str, depth: int) -> Shape | None:
    match = _MATRIX.match(text) or _ARRAY.match(text)
    if match is None:
        return None
    body = match[match.lastindex or 0]
    rows = [
        _split(row, lambda rest: 1 if rest[0] == "&" else 0)
        for row in re.split(r"\\\\(?:\[[^\]]*\])?", body)
        if row.strip()
    ]
    if len({len(row) for row in rows}) != 1 or "matrix}" in body:
        return None
    is_determinant = match.re is _MATRIX and match[1] in ("v", "V")
    marks = f"{'|' if is_determinant else ''}{len(rows[0])}"
    return _many(ShapeKind.MATRIX, text, [cell for row in rows for cell in row], depth, marks)


def _ratio(text: str, depth: int) -> Shape | None:
    if not _RATIO.match(text):
        return None
    half = re.search(r"\s*\\?(?:text\s*)?\{?\s*\b([ap])\.?\s?m\.?\s*\}?$", text, re.IGNORECASE)
    body = text[: half.start()] if half else text
    return _many(ShapeKind.RATIO, text, body.split(":"), depth, half[1].lower() if half else "")


def _signs(text: str, depth: int) -> Shape | None:
    r"""Two answers where a formula has \pm."""
    if not re.search(r"\\pm(?![a-zA-Z])", text):
        return None
    upper = re.sub(r"\\pm(?![a-zA-Z])", "+", re.sub(r"\\mp(?![a-zA-Z])", "-", text))
    lower = re.sub(r"\\pm(?![a-zA-Z])", "-", re.sub(r"\\mp(?![a-zA-Z])", "+", text))
    return _many(ShapeKind.LIST, text, [upper.lstrip(" +"), lower], depth, "±")
