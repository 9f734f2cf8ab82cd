"""What replay needs beside the segments: how a job's texts mark the think phase, and a hash of each segment.

Lock taken: ACCESS EXCLUSIVE on jobs and segments, for milliseconds: nullable columns, no row is rewritten.
Way back: drops the columns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "think_end",
            sa.String(),
            nullable=True,
            comment="the tag that ends the think phase in its texts, '' for none; null: no worker has had it yet",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "think_opened",
            sa.Boolean(),
            nullable=True,
            comment="whether the prompt opens the think phase; else the texts have the opening tag",
        ),
    )
    op.add_column(
        "segments",
        sa.Column(
            "content_sha256",
            sa.String(),
            nullable=True,
            comment="of what was written, for replay; null: stored before there was one",
        ),
    )


def downgrade() -> None:
    op.drop_column("segments", "content_sha256")
    op.drop_column("jobs", "think_opened")
    op.drop_column("jobs", "think_end")
