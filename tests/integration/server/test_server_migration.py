"""The migrated schema is the schema, however and how often it is brought about."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from server.store.all_tables import metadata
from server.store.database import Database, DatabaseUnavailable
from server.store.migrate import NewerDatabase, upgrade
from server.store.schema_events import is_partition

if TYPE_CHECKING:
    from tests.services.postgres import PostgresServer


def belongs(name: str | None, kind: str, _parents: object) -> bool:
    """Whether the migrations know of it: the days of the events come and go."""
    return not (kind == "table" and is_partition(name or ""))


def schema_of(database: Database) -> dict[str, object]:
    """Columns, keys, unique constraints and indexes of all tables, as the database tells them."""
    look = inspect(database.engine)
    found: dict[str, object] = {}
    for table in look.get_table_names():
        if table == "alembic_version":
            continue
        columns = [
            (each["name"], str(each["type"]), each["nullable"], str(each["default"] or "").replace("'", ""))
            for each in look.get_columns(table)
        ]
        indexes = sorted(
            (
                str(each["name"]),
                str(each["column_names"]),
                bool(each["unique"]),
                str({name: str(value) for name, value in each.get("dialect_options", {}).items() if "where" in name}),
            )
            for each in look.get_indexes(table)
        )
        keys = sorted(
            (str(each["constrained_columns"]), each["referred_table"], str(each["referred_columns"]))
            for each in look.get_foreign_keys(table)
        )
        unique = sorted(str(each["column_names"]) for each in look.get_unique_constraints(table))
        found[table] = (columns, indexes, keys, unique, look.get_pk_constraint(table)["constrained_columns"])
    return found


@pytest.fixture
def empty_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'pilotage.db'}"
    return str(request.getfixturevalue("postgres").create_database())


def test_the_migrated_schema_is_the_metadata(url: str) -> None:
    database = Database(url)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": belongs})
        assert compare_metadata(context, metadata) == []


def test_the_migrated_schema_is_what_the_metadata_makes(url: str, empty_url: str) -> None:
    migrated, made = Database(url), Database(empty_url)
    metadata.create_all(made.engine)
    assert schema_of(migrated) == schema_of(made)


def test_upgrading_again_changes_nothing(empty_url: str) -> None:
    database = Database(empty_url)
    assert upgrade(database)
    before = schema_of(database)
    assert not upgrade(database)
    assert schema_of(database) == before


def test_two_servers_may_migrate_at_once(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(6)]
    barrier = threading.Barrier(len(databases))
    answers: list[object] = []

    def migrate(database: Database) -> None:
        barrier.wait(240)
        try:
            answers.append(upgrade(database))
        except Exception as error:  # noqa: BLE001 - told below
            answers.append(error)

    threads = [threading.Thread(target=migrate, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, answers)) == ["False"] * 5 + ["True"]


def test_a_newer_database_is_refused_with_words(url: str) -> None:
    database = Database(url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerDatabase, match="9999.*upgrade Pilotage"):
        upgrade(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_a_migration_that_fails_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    database = Database(empty_url)
    create: Callable[..., object] = op.create_table

    def fail_late(name: str, *args: object, **options: object) -> object:
        if name == "unit":
            raise RuntimeError("the disk is full")
        return create(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", fail_late)
        with pytest.raises(RuntimeError, match="the disk is full"):
            upgrade(database)
    assert upgrade(database)


def test_real_postgres_down_is_told_as_unavailable(postgres: PostgresServer) -> None:
    url = postgres.create_database()
    with postgres.outage(), pytest.raises(DatabaseUnavailable):
        upgrade(Database(url))


@pytest.mark.parametrize("bad", ["mysql://u@h/d", "no url", "sqlite"])
def test_a_database_that_is_not_served_is_refused_with_words(bad: str) -> None:
    with pytest.raises(ValueError, match=r"^database: .*sqlite"):
        Database(bad)
