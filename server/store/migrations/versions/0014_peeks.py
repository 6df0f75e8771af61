"""What people want to see of running jobs

Revision: 0014, after 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "peek",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("job_id", _BIG, nullable=False),
        sa.Column("pilot_id", _BIG, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("who", sa.String(length=255), nullable=False),
        sa.Column("asked", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("peek", schema=None) as batch_op:
        batch_op.create_index("peek_asked", ["asked"], unique=False)
        batch_op.create_index(
            "peek_open",
            ["job_id", "kind"],
            unique=True,
            postgresql_where=sa.text("ended IS NULL"),
            sqlite_where=sa.text("ended IS NULL"),
        )


def downgrade() -> None:
    op.drop_table("peek")
