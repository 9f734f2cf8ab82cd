"""Writes beneath each query what it gives on a finished `make demo KEEP=1`: `python -m docs.answers [PAGE...]`.

Run it where SPECTHINK_STATE_DIR names the demo's state folder, after a change of a view or of a query. What a page says
is asked after some of its commands has no answer before these were run.
"""

from __future__ import annotations

import subprocess
import sys

from docs.blocks import ROOT, blocks_of, page_names


def main() -> None:
    for name in sys.argv[1:] or page_names():
        path = ROOT / name
        text = path.read_text()
        for block in blocks_of(name):
            if block.answer:
                head = f"{block.text}```\n\n```text\n"
                text = text.replace(head + block.answer, head + answer_to(block.text))
        path.write_text(text)


def answer_to(query: str) -> str:
    """What `specthink sql` prints, without space at the ends of lines."""
    done = subprocess.run(["specthink", "sql", query], capture_output=True, text=True, check=True)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


if __name__ == "__main__":
    main()
