"""The command ``specthink``. Errors that were foreseen are one line with the remedy on stderr, and an exit code:
0 done · 1 failed · 2 wrong option or setting · 3 not found · 4 a server cannot be reached · 130 interrupted."""

from __future__ import annotations

import sys


def main() -> None:
    from pipeline.cli.app import app
    from pipeline.errors import PipelineError

    try:
        app(prog_name="specthink")
    except PipelineError as error:
        from pipeline.texts import visible

        print(f"specthink: {visible(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
