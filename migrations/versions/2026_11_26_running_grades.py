"""An index of the gradings under way: upkeep looks for late ones in each of its rounds, among millions of grades.

Lock taken: SHARE on grades, while the index is made: a second per million grades.
Way back: drops it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_grades_running", "grades", ["started_at"], postgresql_where=sa.text("status = 'running'"))


def downgrade() -> None:
    op.drop_index("ix_grades_running", "grades")
