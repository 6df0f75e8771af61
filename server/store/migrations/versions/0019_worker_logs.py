"""Where the output of a worker is, and the last of it

Revision: 0019, after 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("log_url", sa.Text()))
    op.add_column("worker", sa.Column("log_tail", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("worker", "log_tail")
    op.drop_column("worker", "log_url")
