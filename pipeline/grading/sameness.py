"""Whether two answers have the same parts; whether two formulas mean the same is asked of whoever calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.grading.forms import bare_letters
from pipeline.grading.shapes import Shape, ShapeKind

SameFormula = Callable[[Shape, Shape], bool]

_DOTS = re.compile(r"^(?:\\[lcd]?dots|\.\.\.+)$")
_LOOSE = frozenset({ShapeKind.LIST, ShapeKind.SET, ShapeKind.UNION})
"""Their parts may come in any order."""


def same_shape(reference: Shape, predicted: Shape, same_formula: SameFormula) -> bool:
    """Whether an answer is the reference, part by part."""
    if not _labels_agree(reference, predicted):
        return False
    kinds = {reference.kind, predicted.kind}
    if kinds == {ShapeKind.ATOM}:
        return _same_atom(reference, predicted, same_formula)
    if bare_letters(reference.text) == bare_letters(predicted.text):
        return True
    if kinds == {ShapeKind.SET, ShapeKind.ATOM}:
        members = _members(reference), _members(predicted)
        return len(members[0]) == len(members[1]) == 1 and same_shape(members[0][0], members[1][0], same_formula)
    if kinds == {ShapeKind.RATIO, ShapeKind.ATOM}:
        return same_formula(_as_fraction(reference), _as_fraction(predicted))
    if len(reference.parts) != len(predicted.parts) or not reference.parts:
        return False
    return _same_parts(reference, predicted, same_formula)


def _same_atom(reference: Shape, predicted: Shape, same_formula: SameFormula) -> bool:
    if "=" in reference.text or "=" in predicted.text:  # an equation is compared with all of the other
        reference, predicted = _whole(reference), _whole(predicted)
    elif _is_dots(reference) or _is_dots(predicted):
        return _is_dots(reference) and _is_dots(predicted)
    return same_formula(reference, predicted)


def _same_parts(reference: Shape, predicted: Shape, same_formula: SameFormula) -> bool:
    """The same for two with equally many parts."""
    kinds, parts, others = {reference.kind, predicted.kind}, reference.parts, predicted.parts
    if kinds <= _LOOSE:
        names = [all(part.label for part in side) for side in (parts, others)]
        is_ordered = names[0] != names[1] or any(map(_is_dots, parts))  # 5, 3 for x = 5, y = 3
        return (_in_order if is_ordered else _in_any_order)(parts, others, same_formula)
    if kinds == {ShapeKind.TUPLE, ShapeKind.LIST}:
        return _tuple_and_list(reference, predicted, same_formula)
    if kinds == {ShapeKind.MATRIX, ShapeKind.TUPLE}:
        matrix, bracketed = (reference, predicted) if reference.kind is ShapeKind.MATRIX else (predicted, reference)
        is_column = matrix.marks == "1" and bracketed.marks == "()"
        return is_column and _in_order(parts, others, same_formula)
    if kinds == {ShapeKind.RATIO}:
        halves = {reference.marks, predicted.marks} - {""}  # 3:00 in the morning is not 3:00 in the afternoon
        if len(halves) > 1 or _in_order(parts, others, same_formula):
            return len(halves) < 2
        is_time = halves or any(re.fullmatch(r"\d\d?:\d\d", shape.text) for shape in (reference, predicted))
        return not is_time and len(parts) == 2 and same_formula(_as_fraction(reference), _as_fraction(predicted))
    return len(kinds) == 1 and reference.marks == predicted.marks and _in_order(parts, others, same_formula)


def _tuple_and_list(reference: Shape, predicted: Shape, same_formula: SameFormula) -> bool:
    """(1, 2) and 1, 2, or x = 1, y = 2 in any order: by the names that the tuple has, else by the alphabet."""
    bracketed, listed = (reference, predicted) if reference.kind is ShapeKind.TUPLE else (predicted, reference)
    if bracketed.marks != "()":
        return False
    labels = [part.label for part in listed.parts]
    names = re.findall(r"[a-zA-Z]\w*", bracketed.label or "")
    if None not in labels and len(set(labels)) < len(labels):
        return False  # x = 1, x = 2 are two answers
    if None in labels:
        return bracketed.label is None and _in_order(reference.parts, predicted.parts, same_formula)
    if names and sorted(names) != sorted(map(str, labels)):
        return False
    order = names or sorted(map(str, labels))
    parts = sorted(listed.parts, key=lambda part: order.index(str(part.label)))
    plain = [replace(part, label=None) for part in parts]
    if reference is bracketed:
        return _in_order(bracketed.parts, plain, same_formula)
    return _in_order(plain, bracketed.parts, same_formula)


def _members(shape: Shape) -> tuple[Shape, ...]:
    return shape.parts if shape.kind is ShapeKind.SET else (shape,)


def _labels_agree(reference: Shape, predicted: Shape) -> bool:
    """Whether not two different unknowns are meant; y and f(x) are one."""
    labels = {label for label in (reference.label, predicted.label) if label is not None}
    if len(labels) < 2:
        return True
    return "y" in labels and all(label == "y" or re.fullmatch(r"[a-zA-Z]\([a-z]\)", label) for label in labels)


def _is_dots(shape: Shape) -> bool:
    return _DOTS.match(shape.text.strip()) is not None


def _whole(shape: Shape) -> Shape:
    return replace(shape, text=shape.whole) if shape.whole else shape


def _in_order(parts: Sequence[Shape], others: Sequence[Shape], same_formula: SameFormula) -> bool:
    return all(same_shape(part, other, same_formula) for part, other in zip(parts, others, strict=True))


def _in_any_order(parts: Sequence[Shape], others: Sequence[Shape], same_formula: SameFormula) -> bool:
    left = list(others)
    for part in parts:
        found = next((index for index, other in enumerate(left) if same_shape(part, other, same_formula)), None)
        if found is None:
            return False
        del left[found]
    return True


def _as_fraction(shape: Shape) -> Shape:
    """2:3 as two thirds; any other shape as it is."""
    if shape.kind is not ShapeKind.RATIO or len(shape.parts) != 2:
        return shape
    over, under = shape.parts
    return Shape(kind=ShapeKind.ATOM, text=rf"\frac{{{over.text}}}{{{under.text}}}")
