"""Plain numbers, read exactly: most answers are, and for them nobody needs computer algebra."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

ABSOLUTE = Fraction(5, 10**7)
"""Two numbers of which one is a decimal fraction agree to six places, as math-verify has it …"""
RELATIVE = Fraction(1, 10**5)
"""… and to so much of their size, or 0.0000001 would be 0.0000004."""
MAX_EXPONENT = 300

_DECIMAL = r"\d+(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"[-+]?(?:{_DECIMAL})")
_SLASH = re.compile(rf"([-+]?)\(?({_DECIMAL})\)?\s*(?:/|\\div)\s*\(?({_DECIMAL})\)?")
_FRAC = re.compile(
    rf"([-+]?)\s*(?:\\frac\s*\{{\s*(-?(?:{_DECIMAL}))\s*\}}\s*\{{\s*(-?(?:{_DECIMAL}))\s*\}}|\\frac\s*(\d)\s*(\d)"
    r"|\\frac\s*\{(\d+)\}\s*(\d)|\\frac\s*(\d)\s*\{(\d+)\})"
)
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s*\\frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s*(\d))|([-+]?)(\d+)\s+(\d+)/(\d+)")
_SCIENTIFIC = re.compile(
    rf"([-+]?(?:{_DECIMAL}))\s*(?:(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{{\s*([-+]?\d+)\s*\}}|\(?([-+]?\d+)\)?)|[eE]([-+]?\d+))"
)


_REPEATING = re.compile(
    r"([-+]?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{\s*(\d+)\s*\}|(?:(\d)\5{2,}|(\d{2,6})\6+)\s*(?:\.\.\.|\\l?dots|…))"
)
_POWER_OF_TEN = re.compile(r"([-+]?)10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|\(?([-+]?\d+)\)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainNumber:
    """is_rounded: written as a decimal fraction. is_percent: with a percent sign."""

    value: Fraction
    is_rounded: bool = False
    is_percent: bool = False


def find_number(text: str) -> PlainNumber | None:
    """The number that a text is; None where it is anything else."""
    text = text.strip()
    bare = re.sub(r"\s*\\?%$", "", text)
    value = _value(bare.strip())
    if value is None:
        return None
    return PlainNumber(value=value, is_rounded="." in bare, is_percent=bare != text)


def same_number(one: PlainNumber, other: PlainNumber) -> bool:
    """Whether two numbers are the same. 50 %, 50 and 0.5 are where one of them is a percentage."""
    rounded = one.is_rounded or other.is_rounded
    if one.is_percent and other.is_percent:
        return _near(one.value, other.value, rounded)
    if one.is_percent or other.is_percent:
        percent, bare = (one, other) if one.is_percent else (other, one)
        as_written = abs(bare.value) >= 1 and _near(percent.value, bare.value, rounded)
        return as_written or _near(percent.value / 100, bare.value, rounded)
    return _near(one.value, other.value, rounded)


def _near(one: Fraction, other: Fraction, rounded: bool) -> bool:
    if one == other:
        return True
    apart = abs(one - other)
    return rounded and apart <= ABSOLUTE and apart <= RELATIVE * max(abs(one), abs(other))


def _value(text: str) -> Fraction | None:
    if len(text) > 400:
        return None
    try:
        return _read(text)
    except ZeroDivisionError:
        return None


def _read(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return Fraction(text)
    if match := _SLASH.fullmatch(text):
        return _signed(match[1], Fraction(match[2]) / Fraction(match[3]))
    if match := _FRAC.fullmatch(text):
        over, under = [part for part in match.groups()[1:] if part is not None]
        return _signed(match[1], Fraction(over) / Fraction(under))
    if match := _MIXED.fullmatch(text):
        sign = match[1] or match[7] or ""
        whole, over, under = [part for part in (*match.groups()[1:6], *match.groups()[7:]) if part is not None]
        return _signed(sign, Fraction(whole) + Fraction(int(over), int(under)))
    if match := _REPEATING.fullmatch(text):
        return _signed(match[1], _repeated(match[2], match[3], match[4] or match[5] or match[6]))
    if match := _POWER_OF_TEN.fullmatch(text):
        exponent = int(match[2] or match[3])
        return _signed(match[1], Fraction(10) ** exponent) if abs(exponent) <= MAX_EXPONENT else None
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = int(next(part for part in match.groups()[1:] if part is not None))
        return Fraction(match[1]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    return None


def _repeated(whole: str, once: str, again: str) -> Fraction:
    """0.1666… of "0", "1" and "6"."""
    tail = Fraction(int(again), 10 ** len(again) - 1)
    return (Fraction(int(f"{whole}{once}" or "0")) + tail) / Fraction(10) ** len(once)


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
