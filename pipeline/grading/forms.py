"""One form for an answer and its reference, before anything compares them: what is written around a formula is gone."""

from __future__ import annotations

import re

from pipeline.grading.characters import plain_characters
from pipeline.grading.notation import usual_notation
from pipeline.grading.units import join_quantities

_SPACE = r"(?:(?<!\\)\\[,!;: ]|\\thinspace|\\(?:q?quad)\b|~|[\u2009\u202f\u00a0\u2008\u2007])"
_THOUSANDS = re.compile(rf"(?<=\d)(?:\s*\{{,\}}\s*|,?{_SPACE}+)(?=\d{{3}}(?!\d))")
_GROUPED = re.compile(r"(?<![\d.])(\d{1,3})((?: \d{3})+)(?![\d])")
_AMOUNT = re.compile(r"(?<=[$£€¥₹])\s?\d{1,3}(?:,\d{3})+(?![\d,])")
_OTHER_SPACE = re.compile(rf"{_SPACE}+|\\hspace\*?\{{[^{{}}]*\}}|\\phantom\{{[^{{}}]*\}}")
_SIZES = re.compile(
    r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|displaystyle|textstyle|limits|mathstrut)(?![A-Za-z])\.?"
)
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_LETTER = re.compile(r"\\(?:mathrm|text|operatorname|rm|mathbf|mathit)\s*\{\s*([a-zA-Z]|exp|ln|log|sin|cos|tan)\s*\}")
_FUNCTIONS = re.compile(r"\\(?:mathrm|text|operatorname)\s*\{\s*(ln|log|sin|cos|tan|exp)\s*\}")
_LINK_TEXT = re.compile(r",?\s*\\text(?:rm|bf|it)?\s*\{\s*(?:and|or|和|或)\s*\}")
_LINK_IN_TEXT = re.compile(r"\\text\s*\{([^{}]*?)\b(?:and|or)\b([^{}]*)\}")
_EMPTY_TEXT = re.compile(r"\\text\s*\{\s*\}")
_LABEL_TEXT = re.compile(r"^\\text\s*\{\s*((?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?)\s*\}", re.IGNORECASE)
_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_IMAGINARY = re.compile(r"(?<=\d)i(?![a-zA-Z])")
_LINK_WORD = re.compile(r"(?<![A-Za-z\\])(?:,\s*)?(?:and|or|或者|以及|和|或|与|及)(?![A-Za-z])")
_ANY_TEXT = re.compile(
    r"\\(?:textrm|textbf|textit|textsf|texttt|mbox|mathrm|mathbf|mathit|mathsf|textnormal|bm|boldsymbol)(?=\s*\{)"
)
_PAINT = re.compile(
    r"\\(?:textcolor|color|colorbox)\s*\{[^{}]*\}|\\(?:underline|ensuremath|framebox)(?=\s*\{)"
    r"|\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it)(?![A-Za-z])"
)
"""How an answer looks, and no part of it."""
_WHOLE_TEXT = re.compile(r"\\text\s*\{\s*([^{}]*)\s*\}")
_QUALIFIER = re.compile(
    r"[,;\s]*(?:\\text\s*\{\s*|\(\s*)?\b(?:where|for (?:all|any|every|some)|such that|since|because|which)\b.*$",
    re.DOTALL,
)
_LABEL = re.compile(
    r"^(?:\s*(?:[*_#>]+\s*)*(?:the\s+)?(?:(?:final|correct|right)\s+)?(?:answer|result|solution|ans)\s*(?:[*_]+\s*)?(?:is|are|[:=])\s*(?:[*_]+\s*)?:?"
    r"|\s*(?:所以|因此)?(?:最终|最后)?的?(?:答案|结果)\s*(?:是|为)?\s*[:,]?)",
    re.IGNORECASE,
)
_PAIRS = (
    ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("`", "`"), ('"', '"'),
    ("<answer>", "</answer>"),
)  # fmt: skip
_END = re.compile(r"(?:\s|\\\\|(?<!\\)[,;:]|(?<!\.)\.(?!\.)(?=\s*$)|(?<=\s)\*+(?=\s*$))+$")
_WRAPPED_BOX = re.compile(r"^\\(?:boxed|fbox)\s*\{(.*)\}$", re.DOTALL)


def plain_form(text: str) -> str:
    """A formula without what stands around it. Its letters, numbers, brackets and commas stay."""
    text = _unwrapped(_PAINT.sub("", plain_characters(text)))
    text = _AMOUNT.sub(lambda amount: amount[0].replace(",", ""), _THOUSANDS.sub("", text))
    text = _OTHER_SPACE.sub(" ", text)
    text = _SIZES.sub("", text)
    text = _FRACTIONS.sub(r"\\frac", text)
    text = _FUNCTIONS.sub(r"\\\1 ", text)
    text = _LETTER.sub(r"\1", text) if not _WHOLE_TEXT.fullmatch(text.strip()) else text
    text = _ANY_TEXT.sub(r"\\text", text)
    text = _LABEL_TEXT.sub("", text.strip())
    text = _ROOT.sub(r"\\sqrt{\1}", text.replace(r"\langle", "(").replace(r"\rangle", ")"))
    text = _IMAGINARY.sub(" i", text)
    text = join_quantities(text)
    text = _LINK_IN_TEXT.sub(r"\\text{\1},\\text{\2}", _LINK_TEXT.sub(",", text))
    text = _LINK_WORD.sub(",", _EMPTY_TEXT.sub("", text))
    text = _QUALIFIER.sub("", text) or text
    if whole := _WHOLE_TEXT.fullmatch(text.strip()):
        text = whole[1]
    text = _GROUPED.sub(lambda run: run[0].replace(" ", ""), text)
    return usual_notation(" ".join(_unwrapped(text).split()))


def _unwrapped(text: str) -> str:
    """Without delimiters, labels and full stops, layer by layer."""
    for _ in range(8):
        before = text
        text = _END.sub("", text.strip())
        text = _LABEL.sub("", text).strip()
        for start, end in _PAIRS:
            inner = text[len(start) : -len(end)]
            if (
                len(text) > len(start) + len(end)
                and text.startswith(start)
                and text.endswith(end)
                and start not in inner
            ):
                text = inner.strip()
        if (box := _WRAPPED_BOX.match(text)) and _balanced(box[1]):
            text = box[1]
        if text == before:
            break
    return text.removesuffix("**") if text.count("**") % 2 else text


def _balanced(text: str) -> bool:
    depth = 0
    for character in text.replace(r"\{", "").replace(r"\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def bare_letters(text: str) -> str:
    """A text for comparing it as text: no white space, no LaTeX around words, no case."""
    text = re.sub(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)  # 1 2 is not 12
    return re.sub(r"[\s$*`]+|\\[ ,;!:]|(?<!\.)\.$", "", text).casefold()
