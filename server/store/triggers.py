"""Triggers that number the changes of tasks and buckets, so that every process may keep a copy and read only news.

On PostgreSQL ``changed`` is the number of the transaction that wrote the row: whoever has seen everything below the
least transaction still at work misses nothing by looking from there on, however late somebody commits. On SQLite, where
one writes at a time, it is a counter.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select, text

from server.store.schema import revision

TABLES = ("task", "bucket")
WORLD = "world"


def create(connection: Connection) -> None:
    """Make the triggers and counters, if they are not there. To be called after each migration."""
    if connection.dialect.name == "sqlite":
        _on_sqlite(connection)
    else:
        _on_postgresql(connection)
    for name in (*TABLES, WORLD):
        if connection.execute(select(revision.c.n).where(revision.c.name == name)).first() is None:
            connection.execute(revision.insert().values(name=name, n=1))


def _on_postgresql(connection: Connection) -> None:
    connection.execute(
        text(
            "CREATE OR REPLACE FUNCTION pilotage_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "NEW.changed := pg_current_xact_id()::text::bigint; RETURN NEW; END $$"
        )
    )
    for table in TABLES:
        connection.execute(
            text(
                f"CREATE OR REPLACE TRIGGER {table}_changes BEFORE INSERT OR UPDATE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION pilotage_changed()"
            )
        )


def _on_sqlite(connection: Connection) -> None:
    for table in TABLES:
        body = (
            f"BEGIN UPDATE revision SET n = n + 1 WHERE name = '{table}'; "
            f"UPDATE {table} SET changed = (SELECT n FROM revision WHERE name = '{table}') WHERE id = NEW.id; END"
        )
        for moment in ("INSERT", "UPDATE"):
            name = f"{table}_changes_{moment.lower()}"
            connection.execute(text(f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {moment} ON {table} {body}"))


def horizon(connection: Connection, table: str) -> int:
    """From which number on changes of a table have to be looked at again, once everything before has been read.

    To be asked before the rows are read.
    """
    if connection.dialect.name == "sqlite":
        found = connection.execute(select(revision.c.n).where(revision.c.name == table)).scalar()
        return int(found or 0) + 1
    return int(connection.execute(_XMIN).scalar_one())


_XMIN = select(func.pg_snapshot_xmin(func.pg_current_snapshot()).op("::")(text("text")).op("::")(text("bigint")))
