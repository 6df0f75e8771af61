"""A place of its own for a benchmark's tables: a schema of a PostgreSQL database, or an SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from server.store.all_tables import metadata
from server.store.database import Database

PREFIX = "pilotage_bench_"
"""Schemas of this name belong to the benchmark, which drops them without asking."""


class ForeignData(Exception):
    """The database holds something that the benchmark did not make."""


@dataclass(frozen=True)
class Place:
    """Where one set of tables lies; ``content`` says what a kept one was filled with, None for an empty one."""

    url: str
    content: str | None = None


def own_place(url: str, name: str, *, beside_others: bool, reuse: bool = False) -> Place:
    """A place for one set of tables below ``url``, empty unless an earlier one is to be reused and is there.

    On PostgreSQL it is the schema ``pilotage_bench_<name>``; on SQLite the file ``<file>-pilotage_bench_<name>``.

    Raises:
        ForeignData: there are other tables, and ``beside_others`` does not allow for that.
        ValueError, DatabaseUnavailable: the URL cannot be used.
    """
    parsed = Database(url).url
    if parsed.get_backend_name() == "sqlite":
        return _own_file(parsed, name, reuse)
    database = Database(url, pool_size=1)
    schema = PREFIX + name
    try:
        with database.write() as connection:
            others = _foreign_schemas(connection)
            if others and not beside_others:
                raise ForeignData(
                    f"the database holds tables in {', '.join(others)}: give an empty one, or --beside-other-data "
                    f"to use it all the same (only schemas named {PREFIX}… are written)"
                )
            content = connection.execute(_COMMENT, {"schema": schema}).scalar() if reuse else None
            if content is None:
                connection.execute(DropSchema(schema, cascade=True, if_exists=True))
                connection.execute(CreateSchema(schema))
    finally:
        database.close()
    own = parsed.update_query_dict({"options": f"-csearch_path={schema}"})
    return Place(own.render_as_string(hide_password=False), content)


_COMMENT = text("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = :schema")


def say_filled(url: str, content: str) -> None:
    """Note down at a place that it is complete, and with what."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        _note_of(parsed).write_text(content, encoding="utf-8")
        return
    database = Database(url, pool_size=1)
    try:
        with database.write() as connection:
            schema = _current_schema(connection)
            quoted = connection.execute(select(func.quote_literal(content))).scalar_one()
            connection.exec_driver_sql(f"COMMENT ON SCHEMA {schema} IS {quoted}".replace("%", "%%"))
    finally:
        database.close()


def _note_of(parsed: URL) -> Path:
    return Path(f"{parsed.database}-content")


def _current_schema(connection: Connection) -> str:
    schema = str(connection.execute(select(func.current_schema())).scalar_one())
    if not schema.startswith(PREFIX):
        raise AssertionError(f"schema {schema} is not the benchmark's")
    return schema


def _own_file(parsed: URL, name: str, reuse: bool) -> Place:
    if not parsed.database or parsed.database == ":memory:":
        raise ValueError("database: give a file, such as sqlite:////var/tmp/bench.db")
    own = parsed.set(database=f"{parsed.database}-{PREFIX}{name}")
    url, note = own.render_as_string(hide_password=False), _note_of(own)
    if reuse and note.exists():
        return Place(url, note.read_text(encoding="utf-8"))
    drop_place(url)
    return Place(url)


SUFFIXES = ("", "-wal", "-shm", "-content")
"""Of the files of an SQLite place."""


def drop_place(url: str) -> None:
    """Remove what :func:`own_place` made."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        for suffix in SUFFIXES:
            Path(f"{parsed.database}{suffix}").unlink(missing_ok=True)
        return
    database = Database(url, pool_size=1)
    try:
        with database.write() as connection:
            connection.execute(DropSchema(_current_schema(connection), cascade=True))
    finally:
        database.close()


def _foreign_schemas(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    names = [name for name in inspector.get_schema_names() if name != "information_schema"]
    return [name for name in names if not name.startswith(PREFIX) and inspector.get_table_names(schema=name)]


SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
    "max_connections",
)


def conditions(database: Database) -> dict[str, Any]:
    """Kind, version and the settings that decide how safe and how fast the database is."""
    with database.read() as connection:
        if database.is_sqlite:
            journal = connection.execute(text("PRAGMA journal_mode")).scalar_one()
            synchronous = connection.execute(text("PRAGMA synchronous")).scalar_one()
            words = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
            return {
                "database": f"SQLite {sqlite3.sqlite_version}",
                "journal_mode": str(journal),
                "synchronous": words[int(synchronous)],
            }
        found = connection.execute(text("SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(:names)"), {"names": list(SETTINGS)})  # fmt: skip
        settings = {str(name): str(value) for name, value in found}
        version = connection.execute(text("SHOW server_version")).scalar_one()
        return {"database": f"PostgreSQL {version}", **settings}


def autovacuums(database: Database) -> int | None:
    """How often autovacuum has been at work on these tables; None where there is none."""
    if database.is_sqlite:
        return None
    statement = text("SELECT coalesce(sum(autovacuum_count), 0) FROM pg_stat_user_tables WHERE schemaname = current_schema()")  # fmt: skip
    with database.read() as connection:
        return int(connection.execute(statement).scalar_one())


def backend_pid(database: Database) -> int | None:
    """The process that serves a connection of ours, if it runs on this machine; None otherwise, and on SQLite."""
    if database.is_sqlite or database.url.host not in (None, "", "localhost", "127.0.0.1", "::1"):
        return None
    with database.read() as connection:
        return int(connection.execute(select(func.pg_backend_pid())).scalar_one())


@contextmanager
def old_snapshot(database: Database) -> Iterator[None]:
    """Hold a snapshot open, as a backup does: what dies meanwhile cannot be removed by vacuum."""
    with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(select(func.count()).select_from(metadata.tables["setting"])).scalar_one()
        yield
