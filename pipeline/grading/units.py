"""What stands behind a number and is no part of it: units in words and signs, Latin and Chinese, ordinals, degrees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Unit:
    """kind: units of one kind can be turned into each other; scale: how many of the smallest one it is."""

    kind: str
    scale: Fraction


def _units(kind: str, **scales: tuple[str | int, str]) -> dict[str, Unit]:
    return {name: Unit(kind, Fraction(scale)) for scale, names in scales.values() for name in names.split() if name}


_KNOWN: dict[str, Unit] = {
    **_units(
        "length",
        mm=(1, "mm millimeter millimetre 毫米"), cm=(10, "cm centimeter centimetre 厘米"),
        dm=(100, "dm decimeter decimetre 分米"), m=(1000, "m meter metre 米"),
        km=(10**6, "km kilometer kilometre 千米 公里"), inch=("127/5", "inch inche in"),
        ft=("1524/5", "ft feet foot"), yd=("4572/5", "yd yard"), mile=("8046720/5", "mile mi"),
    ),
    **_units("mass", mg=(1, "mg milligram 毫克"), g=(1000, "g gram 克"), kg=(10**6, "kg kilogram 千克 公斤"),
             t=(10**9, "ton tonne 吨")),
    **_units("time", s=(1, "s sec second 秒 秒钟"), min=(60, "min minute 分钟"), h=(3600, "h hr hour 小时 时"),
             day=(86400, "day 天"), week=(604800, "week 周 星期")),
    **_units("volume", ml=(1, "ml milliliter millilitre 毫升"), l=(1000, "l liter litre 升")),
    **_units("money", cent=(1, "cent ¢"), dollar=(100, "dollar usd")),
    **_units("yuan", fen=(1, "分"), yuan=(100, "yuan 元 rmb")),
    **_units("temperature in degrees Celsius", c=(1, "\\circc")),
    **_units("temperature in degrees Fahrenheit", f=(1, "\\circf")),
}  # fmt: skip
_OTHERS = frozenset((
    "mph", "kmh", "kph", "degree", "deg", "radian", "rad", "unit", "sq", "square", "cubic", "cu", "acre", "hectare",
    "mi", "gallon", "gal", "pint", "quart", "oz", "ounce", "lb", "pound", "euro", "pence", "penny", "rupee",
    "percent", "point", "mark", "people", "person", "student", "way", "time", "item", "hz", "j", "w", "n", "pa", "v",
    "a", "kw", "kwh", "c", "f", "k", "mol",
))  # fmt: skip
_TEXT = r"\\(?:text|textrm|textbf|textit|mathrm|mbox|rm|operatorname)\s*\{\s*([^{}]*?)\s*\}"
_POWER = r"(?:\s*\^\s*\{?\s*-?[1-4]\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(?<=[\d}})\]\s%.])\s*{_TEXT}{_POWER}\s*(?:{_TEXT}{_POWER})?$")
_HAN = "\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af"
_HAN_UNIT = re.compile(rf"(?<=[\d}}%])\s*([{_HAN}]+)(?:/[{_HAN}]+)?{_POWER}$")
_BRACKET_UNIT = re.compile(r"(?<=\d)\s*\(\s*([A-Za-z][A-Za-z\s.$]*)\s*\)$")
_WORD_UNIT = re.compile(rf"(?<=[\d}})])\s*([A-Za-z][A-Za-z.\s/-]*?){_POWER}$")
_LONE_LETTER = re.compile(rf"(?<=\d)\s+([mshgl]){_POWER}$")
_FUNCTION = re.compile(r"(?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_ANGLE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?:s)?(?![A-Za-z]))")
_DEGREE = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*([CF](?![A-Za-z]))?|\s*\\degree(?:s)?\b")
_ORDINAL = re.compile(
    r"(?<=\d)\s*\^?\s*\{?\s*(?:\\(?:text|textrm|mathrm|mbox|rm)\s*\{\s*)?(?:st|nd|rd|th)(?![A-Za-z])\s*\}{0,2}"
)
_MONEY = re.compile(r"^(?:[-+]\s*)?(?:US|HK|A|C)?(\\?\$|£|€|¥|￥|₹|\\pounds\s|\\euro\s|Rs\.?|USD|RMB)\s*(?=[\d.\\])")
_SIGNS = {"$": _KNOWN["dollar"], "USD": _KNOWN["dollar"], "RMB": _KNOWN["yuan"], "£": Unit("pounds", Fraction(1)),
          "€": Unit("euros", Fraction(1)), "₹": Unit("rupees", Fraction(1))}  # fmt: skip
"""What stands before an amount of money; ¥ is that of two."""
_MULTIPLES = {"万": 10**4, "亿": 10**8, "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6,
              "billion": 10**9, "trillion": 10**12}  # fmt: skip
_MULTIPLE = re.compile(
    rf"^(-?\d+(?:\.\d+)?)\s*(?:([万亿])(?=[{_HAN}]*$)|(?:\\text\s*\{{\s*)?"
    r"(dozen|hundred|thousand|[mb]illion|trillion)(?![a-z])\s*(?:\}|(?=[^{}]*$)))"
)
_PROSE = 4
"""A unit has at most so many words."""


def _find_known(name: str) -> Unit | None:
    name = name.strip().strip(".").casefold()
    return _KNOWN.get(name) or (_KNOWN.get(name[:-1]) if name.endswith("s") else None)


def _read_unit(text: str) -> Unit | None:
    """A unit, or one over another: km/h, metres per second, m/s^2; None where a part of it is not known."""
    text = re.sub(r"\\(?:text|textrm|textbf|textit|mathrm|mbox|rm|operatorname)(?![a-z])|[{}()~\\]", " ", text)
    over, _, under = re.sub(r"\s+per\s+", "/", _WHOLE_NAMES.get(text.strip().casefold(), text)).partition("/")
    above, below = _read_power(over), _read_power(under) if under else None
    if above is None or not under:
        return above
    return below and Unit(f"{above.kind} per {below.kind}", above.scale / below.scale)


_WHOLE_NAMES = {"mph": "mile/h", "kph": "km/h", "kmh": "km/h"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def _read_power(text: str) -> Unit | None:
    name, _, raised = text.partition("^")
    words = name.replace(".", " ").split()
    power = _POWERS.get(words[0].casefold(), 1) if len(words) > 1 else 1
    unit = _find_known(words[-1]) if len(words) == (1 if power == 1 else 2) else None
    power = int(raised) if re.fullmatch(r"\s*[1-4]\s*", raised) else (power if not raised.strip() else 0)
    if unit is None or power in (0, 1):
        return unit if power else None
    return Unit(f"{unit.kind} to the power of {power}", unit.scale**power)


_QUANTITY = rf"(\d+(?:\.\d+)?)\s*(?:\\text\s*\{{\s*)?([A-Za-z]+|[{_HAN}]+)\.?\s*\}}?"
_QUANTITIES = re.compile(rf"{_QUANTITY}(?:\s*,?\s*(?:\\text\s*\{{\s*)?(?:and(?![a-z]))?\s*\}}?\s*{_QUANTITY}){{1,2}}")


def join_quantities(text: str) -> str:
    """2 hours 30 minutes as 150 minutes: one quantity that is said in two or three units, the larger first."""
    if not _QUANTITIES.fullmatch(text):
        return text
    parts = [(Fraction(number), _find_known(name), name) for number, name in re.findall(_QUANTITY, text)]
    units = [unit for _, unit, _ in parts if unit is not None]
    if len(units) < len(parts) or len({unit.kind for unit in units}) > 1:
        return text
    if any(one.scale <= other.scale for one, other in pairwise(units)):
        return text
    total = sum(number * unit.scale for (number, _, _), unit in zip(parts, units, strict=True)) / units[-1].scale
    return f"{total} {parts[-1][2]}"


def without_unit(text: str) -> tuple[str, Unit | None]:
    """A number without its unit, and the unit where it is one that has others beside it. Other texts stay."""
    text = _ORDINAL.sub("", text).strip()
    text, unit = _without_degrees(text)
    if money := _MONEY.match(text):
        text = ("-" if text.startswith("-") else "") + text[money.end() :]
        unit = _SIGNS.get(money[1].lstrip("\\"))
    if many := _MULTIPLE.match(text):
        number = Fraction(many[1]) * _MULTIPLES[many[2] or many[3]]
        text = f"{number} {text[many.end() :]}".strip()
    for pattern in (_TEXT_UNIT, _HAN_UNIT, _BRACKET_UNIT, _LONE_LETTER, _WORD_UNIT):
        match = pattern.search(text)
        if match and match.start() > 0 and _is_unit(pattern, match, text):
            return text[: match.start()].strip(), unit or _read_unit(match[0])
    return text, unit


def _without_degrees(text: str) -> tuple[str, Unit | None]:
    """Without signs of degrees; inside a function an angle is what it is in radians."""
    if _FUNCTION.search(text):
        return _ANGLE.sub(r"(\\frac{\1\\pi}{180})", text), None
    found = _DEGREE.search(text)
    unit = _KNOWN.get(f"\\circ{found[1]}".casefold()) if found and found[1] else None
    return _DEGREE.sub(" ", text).strip(), unit


def _is_unit(pattern: re.Pattern[str], match: re.Match[str], text: str) -> bool:
    if pattern is _TEXT_UNIT:
        return not re.search(r"\b(?:if|base|otherwise|and|or|for|mod)\b", match[0])
    if pattern is not _WORD_UNIT:
        return True
    words = match[1].replace("/", " ").replace(".", " ").replace("-", " ").split()
    if not words or len(words) > _PROSE or re.search(r"\\[A-Za-z]+\s*$", text[: match.end(1) - len(match[1])]):
        return False
    known = [
        word.casefold() in _OTHERS or word.casefold().rstrip("s") in _OTHERS or _find_known(word) is not None
        for word in words
    ]
    is_number = re.fullmatch(r"-?[\d.,/\s]+", text[: match.start()].strip() or "x") is not None
    if len(words) == 1 and len(words[0]) == 1:
        return False  # 5m and 3x are products
    return all(known) or (is_number and all(len(word) > 1 for word in words) and max(map(len, words)) > 2)
