from __future__ import annotations

from alembic.script import ScriptDirectory

from pipeline.db.migrate import alembic_config
from pipeline.db.revision import newest_revision


def test_newest_revision_is_alembics_head() -> None:
    assert newest_revision() == ScriptDirectory.from_config(alembic_config()).get_current_head()
