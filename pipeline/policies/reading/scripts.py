"""Scripts: where a word begins and ends, by the letters around it.

Most scripts put blanks between words: there a cue is a whole word. Chinese, Japanese, Thai and some others put none:
beside one of their letters a word may begin and end anywhere. Korean puts blanks, and endings right after a word: there
a cue is the beginning of a word.
"""

from __future__ import annotations

import re

_UNSPACED = (
    r"\u0e00-\u0fff"  # Thai, Lao, Tibetan
    r"\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf"  # Burmese, Khmer, Tai
    r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303c"  # Han radicals and marks
    r"\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"  # Kana, Bopomofo
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    r"\ua980-\ua9ff\uaa60-\uaadf"  # Javanese, Burmese and Tai additions
    r"\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # old Kana, rare Han
)
"""Letters of scripts that put no blanks between words. Source: UAX #29 leaves these to dictionaries (its section 4)."""

_MARKS = (
    r"\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"  # accents put on letters
    r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Hebrew points
    r"\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"  # Arabic points
    r"\u0900-\u0963\u0966-\u096f\u0971-\u0dff"  # letters and vowel signs of India and Sri Lanka
    r"\u200c\u200d"  # joiners
)
"""What belongs to the letter before it, and is no ``\\w`` in Python's regular expressions."""

_HANGUL = r"\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
"""Letters of Korean."""

_WORD_LETTER = rf"(?:[^\W{_UNSPACED}]|[{_MARKS}])"
"""A letter or digit of a script that separates words."""

_BEGINS_A_WORD = re.compile(_WORD_LETTER)
_ENDS_A_WORD = re.compile(rf"(?![{_HANGUL}]){_WORD_LETTER}")


def must_end(words: str) -> bool:
    """Whether what follows the words decides if they are whole."""
    return _ENDS_A_WORD.match(words[-1]) is not None


def whole_words(words: str) -> str:
    """A pattern that finds the words where they are not a part of longer ones."""
    before = rf"(?<!{_WORD_LETTER})" if _BEGINS_A_WORD.match(words[0]) else ""
    after = rf"(?!{_WORD_LETTER})" if must_end(words) else ""
    return f"{before}{re.escape(words)}{after}"
