"""Bring a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

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
    with database.write() as connection:
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
        return True


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for a connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
