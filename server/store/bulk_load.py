"""Before and after the rows of a bulk load: keys and indexes taken away and made anew, sequences, statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import false, func, select, text

from server.store.database import Database
from server.store.schema import bucket, job, pilot, pilot_beat, pilot_report, task, unit, unit_detail, worker


@contextmanager
def without_indexes(database: Database) -> Iterator[None]:
    """Without the keys and indexes of the largest tables, and then made all at once, which is several times faster.

    Only on PostgreSQL, and only where nobody else is at work.
    """
    if database.is_sqlite:
        yield
        return
    names = [table.name for table in (worker, pilot, pilot_beat, pilot_report, unit, unit_detail, job)]
    with database.write() as connection:
        constraints = connection.execute(_CONSTRAINTS, {"tables": names}).all()
        indexes = connection.execute(_INDEXES, {"tables": names}).all()
        for row in constraints:
            connection.execute(text(f"ALTER TABLE {row.owner} DROP CONSTRAINT {row.name}"))
        for row in indexes:
            connection.execute(text(f"DROP INDEX {row.name}"))
    yield
    with database.write() as connection:
        connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
        for row in reversed(constraints):
            connection.execute(text(f"ALTER TABLE {row.owner} ADD CONSTRAINT {row.name} {row.definition}"))
        for row in indexes:
            connection.exec_driver_sql(row.definition)


# Foreign keys come first, as they hold the keys that they point at.
_CONSTRAINTS = text(
    "SELECT conrelid::regclass::text AS owner, quote_ident(conname) AS name, pg_get_constraintdef(oid) AS definition "
    "FROM pg_constraint WHERE contype IN ('f', 'p', 'u') "
    "AND (conrelid = ANY(CAST(:tables AS regclass[])) OR confrelid = ANY(CAST(:tables AS regclass[]))) "
    "ORDER BY contype <> 'f'"
)
_INDEXES = text(
    "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index "
    "WHERE indrelid = ANY(CAST(:tables AS regclass[])) "
    "AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)"
)


def settle(database: Database) -> None:
    """After the last row: sequences go on behind the ids that were given, statistics and visibility are made."""
    if database.is_sqlite:  # numbers rows behind the largest by itself
        with database.write() as connection:
            connection.execute(text("ANALYZE"))
        return
    with database.write() as connection:
        for table in (job, unit, bucket, pilot, task):
            last = connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
            connection.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), last + 1, false())))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))
