"""Text of unknown origin, made fit to be read: terminals and browsers obey some characters instead of showing them."""

from __future__ import annotations

_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}  # ␀ … ␡
_TURNING = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_UNSEEN = _SHOWN | dict.fromkeys([*range(128, 160), *_TURNING], 0xFFFD)


def visible(text: str) -> str:
    """The same number of characters. Those that move the cursor, begin a command of the terminal or turn the reading
    direction are replaced by signs that are seen; tabs and line ends stay."""
    return text.translate(_UNSEEN)


def printable(text: str, *, most: int = 300) -> str:
    """For a message of one line: cut, and with every character escaped that would not be seen as such."""
    shown = text if len(text) <= most else f"{text[:most]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
