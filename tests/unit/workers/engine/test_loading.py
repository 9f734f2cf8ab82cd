"""Choosing an engine: nothing of a kind is imported before it is wanted."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[4]


def test_loading_a_process_imports_no_engine() -> None:
    """vLLM reads its environment when it is imported; and it may not be installed where another engine is used."""
    program = (
        "import sys, workers.engine.loading, workers.engine.scripted, workers.engine.vllm.starting\n"
        "print([name for name in ('vllm', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
