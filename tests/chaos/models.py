"""The pair whose tokenizers and chat templates the scripted models use."""

from __future__ import annotations

from pathlib import Path

from pipeline.samples import WRITING_ROLES

REPOSITORY = Path(__file__).parents[2]
MODELS = {role: REPOSITORY / "examples" / "models" / f"demo-{role.value}" for role in WRITING_ROLES}
