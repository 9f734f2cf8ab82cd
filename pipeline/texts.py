"""Text of unknown origin, made fit to be read: terminals and browsers obey some characters instead of showing them."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}  # ␀ … ␡
_TURNING = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x2070))
_SURROGATES = range(0xD800, 0xE000)
_UNSEEN = _SHOWN | dict.fromkeys([*range(128, 160), *_TURNING, *_SURROGATES], 0xFFFD)


def visible(text: str) -> str:
    """The same number of characters. Those that move the cursor, begin a command of the terminal, turn the reading
    direction or are half of a character are replaced by signs that are seen; tabs and line ends stay."""
    return text.translate(_UNSEEN)


_ESCAPED = {code: f"\\u{code:04x}" for code in _UNSEEN if code >= 32}
"""What JSON leaves as it is, of the characters that are not to reach a terminal."""


def escaped_json(text: str) -> str:
    """The same JSON with these characters escaped in its strings, the only place where they can be."""
    return text.translate(_ESCAPED)


class VisibleStream(io.RawIOBase):
    """A stream of UTF-8 that shows on a terminal what is written to it, as ``visible`` does. Every line ends with a
    newline alone."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        written = bytes(data)
        self._out.write(visible(self._decoder.decode(written)))
        return len(written)

    def flush(self) -> None:
        self._out.flush()


def printable(text: str, *, most: int = 300) -> str:
    """For a message of one line: cut, and with every character escaped that would not be seen as such."""
    shown = text if len(text) <= most else f"{text[:most]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
