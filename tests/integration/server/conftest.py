"""A migrated database of either kind for each test, and a dispatcher over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from server.store.database import Database
from server.store.migrate import upgrade
from tests.integration.server.harness import Site

if TYPE_CHECKING:
    from tests.services.postgres import PostgresServer

KINDS = ("sqlite", "real_postgres")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """The name of a migrated PostgreSQL database, to be copied."""
    url = postgres.create_database()
    database = Database(url)
    upgrade(database)
    database.close()
    return str(make_url(url).database)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database."""
    return str(request.param)


@pytest.fixture
def make_url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Makes a migrated database of a kind; its URL."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            path = tmp_path / "pilotage.db"
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            return f"sqlite:///{path}"
        import psycopg
        from psycopg import sql

        postgres: PostgresServer = request.getfixturevalue("postgres")
        template = request.getfixturevalue("postgres_template")
        name = f"copy_{abs(hash(tmp_path)) % 10**12}"
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            words = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            connection.execute(words)
        return postgres.url(name)

    return make


@pytest.fixture
def url(kind: str, make_url_of: Callable[[str], str]) -> str:
    """A migrated database."""
    return make_url_of(kind)


@pytest.fixture
def on_postgres(make_url_of: Callable[[str], str]) -> Iterator[Site]:
    """A dispatcher over a site with a queue, on PostgreSQL, where claims share a statement; its clock stands still."""
    made = Site(make_url_of("real_postgres"))
    made.say_up()
    yield made.world()
    made.database.close()


@pytest.fixture
def site(url: str) -> Iterator[Site]:
    """A dispatcher over an empty world, with a clock that stands still."""
    made = Site(url)
    made.say_up()
    yield made
    made.database.close()
