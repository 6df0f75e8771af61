"""A real PostgreSQL server with throw-away databases."""

from __future__ import annotations

import os
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.services.base import Service, free_port, give_to, require, require_module, run, switch_to
from tests.services.install import install_packages, state_of

USER = "postgres"
DEBIAN_FOLDER = Path("/usr/lib/postgresql")
# Nothing of these databases has to outlive the machine, and tests create many.
SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


def find_programs() -> Optional[Path]:
    """The folder with ``postgres`` and ``initdb`` (Debian keeps it off PATH), the newest version's; None if absent."""
    versions = sorted(DEBIAN_FOLDER.glob("*/bin/initdb"), key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0))
    if versions:
        return versions[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(find_programs() is not None)


def install() -> Path:
    """The folder with PostgreSQL's programs, installed when missing; raises ServiceUnavailable."""
    programs = find_programs()
    if programs is None:
        install_packages("postgres", ["postgresql"])
        programs = find_programs()
        assert programs is not None, f"package postgresql put no initdb into {DEBIAN_FOLDER}"
    return programs


class PostgresServer(Service):
    """A PostgreSQL server on 127.0.0.1 with a fresh cluster in ``folder``; user ``postgres``, no password."""

    def __init__(self, programs: Path, folder: Path) -> None:
        folder.mkdir()
        give_to(USER, folder)
        self.port = free_port()
        data = folder / "data"
        environment = {**os.environ, "HOME": str(folder), "LC_ALL": "C.UTF-8"}
        run(
            [*switch_to(USER), programs / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"],
            env=environment,
            cwd=folder,
        )
        settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        super().__init__(
            "postgres",
            # SIGINT is PostgreSQL's fast shutdown: it doesn't wait for clients to leave, yet ends its children.
            [*switch_to(USER, "INT"), programs / "postgres", "-D", data, "-p", str(self.port), *options],
            folder / "log",
            self._answers_query,
            env=environment,
            cwd=folder,
            stop_signal=signal.SIGINT,
        )

    def dsn(self, database: str = "postgres") -> str:
        """The address of a database for psycopg itself."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def url(self, database: str = "postgres") -> str:
        """The address of a database for SQLAlchemy (driver psycopg 3)."""
        return self.dsn(database).replace("postgresql:", "postgresql+psycopg:", 1)

    def create_database(self) -> str:
        """Create an empty database under a name of its own and return its SQLAlchemy URL."""
        import psycopg
        from psycopg import sql

        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def _answers_query(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.dsn(), connect_timeout=20) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="session")
def postgres(services_folder: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL server for the whole session; ``create_database()`` gives each test its own."""
    require_module("psycopg")
    programs = require(install)
    server = require(lambda: PostgresServer(programs, services_folder / "postgres"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
