"""What a pilot runs on

Revision: 0015, after 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pilot", sa.Column("node_info", sa.Text()))


def downgrade() -> None:
    op.drop_column("pilot", "node_info")
