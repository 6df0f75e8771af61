"""Commands to harvesters, and where workers run

Revision: 0017, after 0016
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "harvester_command",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("harvester", sa.String(length=255), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("who", sa.String(length=255), nullable=False),
        sa.Column("asked", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("ok", sa.Boolean(), nullable=True),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("harvester", "request_id", name="harvester_command_request"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("harvester_command", schema=None) as batch_op:
        batch_op.create_index("harvester_command_asked", ["asked"], unique=False)
        batch_op.create_index(
            "harvester_command_open",
            ["harvester", "id"],
            unique=False,
            postgresql_where=sa.text("ended IS NULL"),
            sqlite_where=sa.text("ended IS NULL"),
        )
    op.add_column("worker", sa.Column("host", sa.String(length=255), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("worker", "host")
    op.drop_table("harvester_command")
