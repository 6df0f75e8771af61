"""Ids that are never given again on SQLite: making a table anew for a change had lost AUTOINCREMENT

Revision: 0013, after 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

USED = {
    "bucket": ["SELECT max(bucket_id) FROM job", "SELECT max(bucket_id) FROM job_archive"],
    "event": [],
    "job": ["SELECT max(id) FROM job_archive", "SELECT max(job_id) FROM output", "SELECT max(job_id) FROM event"],
    "pilot": ["SELECT max(pilot_id) FROM job", "SELECT max(pilot_id) FROM job_archive"],
    "task": ["SELECT max(task_id) FROM job_archive", "SELECT max(task_id) FROM event"],
}
"""The tables, and where ids of rows that are gone may still be found."""


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    for table, elsewhere in USED.items():
        with op.batch_alter_table(table, recreate="always", table_kwargs={"sqlite_autoincrement": True}):
            pass
        found = [connection.execute(sa.text(query)).scalar() for query in (f"SELECT max(id) FROM {table}", *elsewhere)]
        last = {"name": table, "seq": max((int(each) for each in found if each is not None), default=0)}
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), last)
        connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), last)


def downgrade() -> None:
    """The tables stay as they are: nothing reads them otherwise."""
