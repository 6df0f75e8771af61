"""Before and after the rows of a bulk load: keys and indexes taken away and made anew, sequences, statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import false, func, select, text
from sqlalchemy.exc import NotSupportedError, ProgrammingError

from server.store.database import Database
from server.store.schema import bucket, job, pilot, pilot_beat, pilot_report, task, unit, unit_detail, worker

logger = logging.getLogger(__name__)


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


def warm(database: Database) -> bool:
    """Have PostgreSQL read what it has in memory once every live pilot has been heard of: their rows, and their jobs'.

    False where that can't be asked for: it takes the extension ``pg_prewarm``, and the right to make it.
    """
    if database.is_sqlite:
        return False
    try:
        with database.write() as connection:
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_prewarm"))
            schema = connection.execute(_PREWARM_SCHEMA).scalar_one()
            # The last ones stay, should there be too little memory.
            for table in (job, pilot, pilot_report, pilot_beat):
                for name in connection.execute(_RELATIONS, {"table": table.name}).scalars().all():
                    connection.execute(text(f"SELECT {schema}.pg_prewarm(CAST(:name AS regclass))"), {"name": name})
    except (NotSupportedError, ProgrammingError) as error:
        logger.info("the tables can't be read in beforehand: %s", error.orig)
        return False
    return True


_PREWARM_SCHEMA = text("SELECT quote_ident(nspname) FROM pg_namespace JOIN pg_extension ON extnamespace = pg_namespace.oid WHERE extname = 'pg_prewarm'")  # fmt: skip
_RELATIONS = text(
    "SELECT CAST(CAST(:table AS regclass) AS text) "
    "UNION ALL SELECT CAST(indexrelid::regclass AS text) FROM pg_index WHERE indrelid = CAST(:table AS regclass)"
)
