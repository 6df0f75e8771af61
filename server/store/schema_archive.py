"""The archive of jobs: the columns of :data:`job`, without what only live jobs are looked up by."""

from __future__ import annotations

from sqlalchemy import Column, Index, Table

from server.store.schema import job
from server.store.schema_base import metadata

job_archive = Table(
    "job_archive",
    metadata,
    *(
        Column(each.name, each.type, primary_key=each.primary_key, autoincrement=False, nullable=each.nullable)
        for each in job.columns
    ),
    Index("job_archive_task", "task_id", "id"),
)
