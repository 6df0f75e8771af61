"""Bring a database to the schema of this version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text

from server.store import triggers
from server.store.database import Database

_LOCK = 7_046_029_254_386
"""Key of the PostgreSQL advisory lock that lets one server at a time migrate."""


class NewerDatabase(Exception):
    """The database was made by a newer version than this one."""


def upgrade(database: Database) -> bool:
    """Run the migrations that are missing; True if there were any. Several servers may call it at once.

    Raises:
        NewerDatabase: the database knows a migration that we don't.
        DatabaseUnavailable: it cannot be reached.
    """
    with _tables_made_anew(database), database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = configuration(connection)
        script = ScriptDirectory.from_config(config)
        current = MigrationContext.configure(connection).get_current_revision()
        if current == script.get_current_head():
            return False
        if current is not None and current not in {each.revision for each in script.walk_revisions()}:
            raise NewerDatabase(
                f"the database is at migration {current}, which this version does not know: upgrade Pilotage"
            )
        command.upgrade(config, "head")
        if database.is_sqlite:
            _check_foreign_keys(connection)
        triggers.create(connection)
        return True


@contextmanager
def _tables_made_anew(database: Database) -> Iterator[None]:
    """SQLite changes a table by making it anew and dropping the old one, which rows that refer to it would forbid.

    Foreign keys can be switched off outside of a transaction only, so for each connection as it is taken.
    """
    if not database.is_sqlite:
        yield
        return

    def switch_off(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA foreign_keys=OFF")

    event.listen(database.engine, "checkout", switch_off)
    try:
        yield
    finally:
        event.remove(database.engine, "checkout", switch_off)
        database.engine.dispose()  # those that come after are made anew, and have them on


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.execute(text("PRAGMA foreign_key_check")).first()
    if broken is not None:
        raise AssertionError(f"after the migrations a row of {broken[0]} refers to no row of {broken[2]}")


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for a connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
