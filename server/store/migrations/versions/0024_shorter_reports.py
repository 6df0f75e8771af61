"""What pilots reported of their jobs is kept without the names of what was measured: they report again soon

Revision: 0024, after 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_reports = sa.table("pilot_report", sa.column("report", sa.Text()))


def upgrade() -> None:
    op.execute(_reports.update().where(_reports.c.report.is_not(None)).values(report=None))


def downgrade() -> None:
    op.execute(_reports.update().where(_reports.c.report.is_not(None)).values(report=None))
