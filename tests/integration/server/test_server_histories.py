"""Whatever happens in whatever order: no unit is forgotten, none is done twice, the books tell the truth.

``PILOTAGE_HISTORIES=3000`` makes so many of them on each database, in place of the few that every run makes. A failure
is told at once then, not made smaller first: its blob does that, with ``@reproduce_failure`` and without the variable.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from server.store.all_tables import metadata
from server.store.database import Database
from tests.integration.server.histories import Histories

WANTED = int(os.environ.get("PILOTAGE_HISTORIES", "0"))
MEMORY = Path("/dev/shm")
"""Where SQLite's many commits cost nothing."""
USED = """SELECT format('%%I.%%I', schemaname, sequencename) FROM pg_sequences WHERE last_value IS NOT NULL"""
"""Sequences that a history has used."""


def run(make_url: Callable[[], str], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: Histories(make_url()),  # type: ignore[arg-type]
        settings=settings(
            max_examples=WANTED or examples,
            stateful_step_count=40 if WANTED else steps,
            phases=(Phase.reuse, Phase.generate) if WANTED else (Phase.reuse, Phase.generate, Phase.shrink),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="pilotage-histories-", dir=MEMORY) as made:
        yield Path(made)


@pytest.mark.timeout(600 + 10 * WANTED)
def test_random_histories_keep_every_promise(sqlite_template: Path, folder: Path) -> None:
    def fresh() -> str:
        for suffix in ("", "-wal", "-shm"):
            (folder / f"pilotage.db{suffix}").unlink(missing_ok=True)
        shutil.copy(sqlite_template, folder / "pilotage.db")
        return f"sqlite:///{folder / 'pilotage.db'}"

    run(fresh, examples=40, steps=30)


@pytest.mark.timeout(600 + 10 * WANTED)
def test_random_histories_on_real_postgres_keep_every_promise(make_url_of: Callable[[str], str]) -> None:
    url = make_url_of("real_postgres")

    def fresh() -> str:
        database = Database(url)
        with database.write() as connection:
            # TRUNCATE takes six times as long: it makes files anew.
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
            for name in connection.exec_driver_sql(USED).scalars().all():
                connection.exec_driver_sql(f"ALTER SEQUENCE {name} RESTART")
        database.close()
        return url

    run(fresh, examples=20, steps=30)
