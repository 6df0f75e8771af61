"""What finished jobs were measured to need: narrow rows, kept only until their task has been measured twice."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, String, Table, text

from server.store.schema import BigId, metadata

measurement = Table(
    "measurement",
    metadata,
    Column("job_id", BigId, primary_key=True, autoincrement=False),
    Column("task_id", BigId, nullable=False),
    Column("site", String(255), nullable=False),
    Column("core_power", Double, nullable=False),
    Column("cpu_efficiency", Double, nullable=False),
    Column("cores", Integer, nullable=False),
    Column("units", Integer, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("cpu_s", Double, nullable=False),
    Column("wall_s", Double, nullable=False),
    Column("memory_mb", Double, nullable=False),
    Column("work_dir_mb", Double, nullable=False),
    Column("in_bytes", BigInteger, nullable=False),
    Column("out_bytes", BigInteger, nullable=False),
    Column("io_bytes", BigInteger, nullable=False),
    Column("leak_kb_s", Double, nullable=False),
    Column("ended", Double, nullable=False),
    Column("counted", Boolean, nullable=False, server_default=text("false")),
    Index("measurement_task", "task_id"),
)
Index(
    "measurement_new",
    measurement.c.job_id,
    postgresql_where=text("NOT counted"),
    sqlite_where=text("NOT counted"),
)
"""Rows that the scouting agent has not looked at yet."""
