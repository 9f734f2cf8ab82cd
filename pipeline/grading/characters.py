"""Characters that stand for others in formulas: full width, Chinese punctuation, signs that are commands in LaTeX."""

from __future__ import annotations

import re

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_STAND_FOR = {
    "\u3000": " ", "。": ".", "、": ",", "「": " ", "」": " ", "『": " ", "』": " ", "【": "[", "】": "]",
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "∶": ":", "﹪": "%", "＄": "$",
    "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "∙": r" \cdot ", "÷": r" \div ", "±": r" \pm ", "∓": r" \mp ",
    "≤": r" \le ", "⩽": r" \le ", "≥": r" \ge ", "⩾": r" \ge ", "≠": r" \ne ", "≈": r" \approx ", "∈": r" \in ",
    "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ",
    "φ": r"\phi ", "ω": r"\omega ", "∪": r" \cup ", "∩": r" \cap ", "∅": r"\emptyset ",
    "…": r"\ldots ", "⋯": r"\ldots ",
    "°": r"^\circ ", "º": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "√": r"\sqrt", "′": "'", "’": "'", "‘": "'",
    "“": '"', "”": '"', "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "⅙": r"\frac{1}{6}", "ℝ": r"\mathbb{R}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "\u2061": "", "\u200b": "", "\ufeff": "", "\u2062": "",
}  # fmt: skip
_TABLE = str.maketrans({**{chr(code): chr(plain) for code, plain in _FULL_WIDTH.items()}, **_STAND_FOR})
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_BARE_ROOT = re.compile(r"√\s*(\d+|[a-z])")


def plain_characters(text: str) -> str:
    """The same text in the characters that LaTeX and this program's patterns know."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
    text = _LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(_LOWERED) + "}", text)
    return _BARE_ROOT.sub(r"\\sqrt{\1}", text).translate(_TABLE)
