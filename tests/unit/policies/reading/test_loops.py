import pytest

from pipeline.policies.reading.loops import LoopFinder


def first_hit(texts: list[str], **numbers: int) -> tuple[int, int] | None:
    """(tokens read, end of the first block) where a loop is found."""
    guard = LoopFinder(**{"num_repeats": 4, "min_tokens": 32, "max_block_tokens": 20} | numbers)
    for count, text in enumerate(texts, 1):
        if guard.feed(text):
            return count, guard.first_block_end()
    return None


PREFIX = [f" {number}" for number in range(10)]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 8])
def test_a_repeated_block_is_a_loop(block: int) -> None:
    texts = [*PREFIX, *([f" w{index}" for index in range(block)] * 40)]
    assert first_hit(texts) == (48, 10 + block)  # looked for every 8 tokens, and 10 + 32 tokens make one


def test_a_block_must_be_repeated_often_enough() -> None:
    block = [f" w{index}" for index in range(16)]
    assert first_hit(block * 3) is None
    assert first_hit(block * 4) == (64, 16)


def test_short_blocks_must_go_on_for_long() -> None:
    assert first_hit([*PREFIX, *[" 0"] * 29, " end", *PREFIX]) is None


def test_longer_blocks_than_the_longest_are_no_loop() -> None:
    assert first_hit([f" w{index}" for index in range(21)] * 20) is None


def test_lines_that_differ_are_no_loop() -> None:
    texts = [part for number in range(60) for part in ("Add", " 1", " to", f" {number}", ".\n")]
    assert first_hit(texts) is None


def test_the_first_block_ends_with_a_whole_character() -> None:
    texts = ["é", "x", ""] * 40
    assert first_hit(texts, min_tokens=36) == (36, 4)
