"""docs/reference/ is what docs/generate.py makes of the code and of a migrated database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from docs.generate import REFERENCE, pages

pytestmark = pytest.mark.integration


def test_reference_is_of_this_code(db_engine: Engine) -> None:
    with db_engine.connect() as connection:
        made = pages(connection)
    assert set(made) == {path.name for path in REFERENCE.iterdir()}
    stale = [name for name, page in made.items() if (REFERENCE / name).read_text() != page]
    assert not stale, f"make docs-reference writes {', '.join(stale)} anew"
