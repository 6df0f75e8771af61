"""A change of counts is one row that names the state left, too; no key, as rows come and go with every claim

Revision: 0024, after 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAMES = {
    "unit_delta": ["task_id", "bucket_id", "state", "n"],
    "job_delta": ["task_id", "queue", "state", "n", "cores"],
}


def _columns(table: str) -> list[sa.Column[object]]:
    """All but the state left."""
    if table == "unit_delta":
        place: sa.Column[object] = sa.Column("bucket_id", _BIG, nullable=False)
        amounts: list[sa.Column[object]] = [sa.Column("n", sa.BigInteger(), nullable=False)]
    else:
        place = sa.Column("queue", sa.String(length=255), nullable=False)
        amounts = [sa.Column(name, sa.Integer(), nullable=False) for name in ("n", "cores")]
    return [
        sa.Column("task_id", _BIG, nullable=False),
        place,
        sa.Column("state", sa.SmallInteger(), nullable=False),
        *amounts,
    ]


def upgrade() -> None:
    for table, names in _NAMES.items():
        op.rename_table(table, "before")
        columns = _columns(table)
        columns.insert(2, sa.Column("source", sa.SmallInteger()))
        op.create_table(table, *columns)
        _copy("before", table, names, names)
        op.drop_table("before")


def downgrade() -> None:
    for table, names in _NAMES.items():
        op.rename_table(table, "after")
        op.create_table(
            table,
            sa.Column("id", _BIG, autoincrement=True, nullable=False),
            *_columns(table),
            sa.PrimaryKeyConstraint("id"),
            sqlite_autoincrement=True,
        )
        _copy("after", table, names, names)
        fewer = {"state": "source", "n": "-n", "cores": "-cores"}
        _copy("after", table, names, [fewer.get(name, name) for name in names], "source IS NOT NULL")
        op.drop_table("after")


def _copy(source: str, target: str, names: list[str], values: list[str], where: str = "1 = 1") -> None:
    op.execute(f"INSERT INTO {target} ({', '.join(names)}) SELECT {', '.join(values)} FROM {source} WHERE {where}")
