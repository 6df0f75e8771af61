"""What scouts measured

Revision: 0007, after 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("task") as batch:
        batch.add_column(sa.Column("measured", sa.Text()))
        batch.add_column(sa.Column("measuring", sa.Boolean(), server_default=sa.text("true"), nullable=False))
        batch.add_column(sa.Column("scouts_left", sa.Integer()))
        batch.add_column(sa.Column("scout_sites", sa.Text()))
        batch.create_index(
            "task_measuring", ["state"], postgresql_where=sa.text("measuring"), sqlite_where=sa.text("measuring")
        )
    op.create_table(
        "measurement",
        sa.Column("job_id", _BIG, autoincrement=False, nullable=False),
        sa.Column("task_id", _BIG, nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("core_power", "cpu_efficiency")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("cores", "units")),
        sa.Column("events", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("cpu_s", "wall_s", "memory_mb", "work_dir_mb")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("in_bytes", "out_bytes", "io_bytes")),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("leak_kb_s", "ended")),
        sa.Column("counted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("measurement_task", "measurement", ["task_id"])
    op.create_index(
        "measurement_new",
        "measurement",
        ["job_id"],
        postgresql_where=sa.text("NOT counted"),
        sqlite_where=sa.text("NOT counted"),
    )


def downgrade() -> None:
    op.drop_table("measurement")
    with op.batch_alter_table("task") as batch:
        batch.drop_index("task_measuring")
        for name in ("measured", "measuring", "scouts_left", "scout_sites"):
            batch.drop_column(name)
