"""The fenced blocks of README.md and docs/, in the order of the navigation, as the tests run them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*\Z")
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block.

    line: of its first line of text. not_run: why no test runs it; '' where one does. answer: the ``text`` block that
    follows a query, '' where none does.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str
    answer: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_names() -> list[str]:
    """README.md, then every page of docs/ in the order of mkdocs.yml's navigation."""
    pages = re.findall(r"^ +- .*?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    return ["README.md", *(f"docs/{page}" for page in pages)]


def blocks() -> list[Block]:
    """Every block of every page."""
    return [block for name in page_names() for block in blocks_of(name)]


def blocks_of(name: str) -> Iterator[Block]:
    text = (ROOT / name).read_text()
    found = list(FENCE.finditer(text))
    for place, match in enumerate(found):
        reason = NOT_RUN.search(text, 0, match.start())
        yield Block(
            page=name,
            line=text.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            text=match["text"],
            not_run=reason["reason"] if reason else "",
            answer=_answer(text, match, found[place + 1] if place + 1 < len(found) else None),
        )


def _answer(text: str, query: re.Match[str], following: re.Match[str] | None) -> str:
    """The block right after a query, with nothing but space between."""
    if query["language"] != "sql" or following is None or following["language"] != "text":
        return ""
    return following["text"] if not text[query.end() : following.start()].strip() else ""
