"""What stands before a cue, and takes its meaning away: a negation, or the beginning of a line that states the answer.

Both are read in folded text that is known some way back; nothing after the cue is needed. Choices made here, by hand.
"""

from __future__ import annotations

import re

REACH = 56
"""Characters before a cue that are read. A negation with five words between: "isn't sure that this is the"."""

SENTENCE_START = "\n"
"""Marks where a sentence begins. Folded text has blanks for all of its newlines, so that it cannot come from there."""

_NOT = (
    r"not(?! only\b)|\w+n't|(?:is|does|do|did|was|wo|would)nt|can(?:no|'?)t|never|nor|neither|hardly|barely|"
    r"scarcely|without|unable|unlikely|less|far from|lack of|no(?! (?:doubt|question|problem|need)\b)|"  # English
    r"nicht|keine?[mnrs]?|nie|ohne|pas|jamais|sans|nunca|jamás|sin|não|sem|non|senza|не|ни|нет|без"
)
_BREAKS_OFF = r"(?:but|so|and|because|though|although|while|then|aber|mais|pero|ma|но)\b"
_NEGATED = re.compile(rf"(?<![\w'])(?:{_NOT})(?: (?!{_BREAKS_OFF})[\w']+){{0,5}} \Z")
_NEGATED_UNSPACED = re.compile(r"[不没沒未非无無别別](?:[是很太够夠能会會敢怎么麼那十分完全百这這个個我的]){0,6}\Z")

_LEADS = (
    r"so|thus|therefore|hence|then|and|now|finally|the|my|our|this|is|here|here's|gives|"
    r"also|die|der|das|meine|ist|donc|la|le|ma|est|por lo tanto|entonces|mi|quindi|"
    r"所以|因此|那么|那麼|于是|於是|综上|綜上|したがって|よって|つまり"
)
_STATES = re.compile(rf"(?:\n|[.!?…] |[。！？])[^\w\n]*(?:(?:{_LEADS})[^\w\n.!?]*){{0,4}}\Z")


def is_negated(text: str, start: int) -> bool:
    """Whether a negation stands before text[start:] in the same clause: "not confident", "isn't sure that's right"."""
    before = text[max(0, start - REACH) : start]
    return _NEGATED.search(before) is not None or _NEGATED_UNSPACED.search(before) is not None


def states_answer(text: str, start: int) -> bool:
    """Whether text[start:] opens its sentence: "**Final answer:** 12", "So the final answer is 12"."""
    return _STATES.search(text[max(0, start - REACH) : start]) is not None
