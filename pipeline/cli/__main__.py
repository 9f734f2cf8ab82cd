"""``python -m pipeline.cli``: the command where it is not installed as a script."""

from pipeline.cli import main

main()
