"""The archive of jobs: made last, because it has all columns of the jobs

Revision: 0012, after 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    job = sa.Table("job", sa.MetaData(), autoload_with=op.get_bind(), resolve_fks=False)
    op.create_table(
        "job_archive",
        *(
            sa.Column(each.name, each.type, primary_key=each.primary_key, autoincrement=False, nullable=each.nullable)
            for each in job.columns
        ),
    )
    op.create_index("job_archive_task", "job_archive", ["task_id", "id"], unique=False)


def downgrade() -> None:
    op.drop_table("job_archive")
