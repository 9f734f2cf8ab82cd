"""Loops: small models fail by writing the same again and again."""

from __future__ import annotations

from pipeline.signals import Readings


class LoopFinder:
    """Finds text that ends in the same block, over and over.

    A loop is found where the last tokens are at least num_repeats equal blocks of at most max_block_tokens tokens
    each, and min_tokens tokens together. It looks every min_tokens / 4 tokens.
    """

    __slots__ = ("_interval", "_max_block_tokens", "_min_tokens", "_num_repeats", "_texts", "_wait")

    def __init__(self, *, num_repeats: int, min_tokens: int, max_block_tokens: int) -> None:
        self._num_repeats = num_repeats
        self._min_tokens = min_tokens
        self._max_block_tokens = max_block_tokens
        self._interval = max(1, min_tokens // 4)
        self._wait = self._interval
        self._texts: list[str] = []

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        """Whether the text so far ends in a loop."""
        self._texts.append(text)
        self._wait -= 1
        if self._wait:
            return False
        self._wait = self._interval
        return self._find_block() > 0

    def first_block_end(self) -> int:
        """After a loop was found: tokens up to the end of the loop's first block, and of a character."""
        texts, block = self._texts, self._find_block()
        start = len(texts) - block
        while start > 0 and texts[start - 1] == texts[start - 1 + block]:
            start -= 1
        end = start + block
        while end < len(texts) and not texts[end - 1]:
            end += 1
        return end

    def _find_block(self) -> int:
        """Tokens in the block that the text repeats at its end, 0 where there is none."""
        texts = self._texts
        if len(texts) < self._min_tokens:
            return 0
        last, recent = texts[-1], texts[-8:]
        for block in range(1, min(self._max_block_tokens, len(texts) // self._num_repeats) + 1):
            if texts[-1 - block] == last and texts[-8 - block : -block] == recent:
                length = max(self._num_repeats * block, self._min_tokens)
                if length <= len(texts) and texts[-length:-block] == texts[block - length :]:
                    return block
        return 0
