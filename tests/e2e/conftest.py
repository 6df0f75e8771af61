"""What the end-to-end tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from common.states import FINAL_TASK_STATES
from tests.e2e.looks import QUICK_S, alive
from tests.e2e.system import System

DATABASES = ["sqlite", pytest.param("postgres", id="real_postgres")]
"""For ``@pytest.mark.parametrize("database", DATABASES)`` with the fixture ``database_url``."""


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str) -> Optional[str]:
    """The address of an empty database: None for SQLite in the system's own folder."""
    if database == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres").create_database()
    return url


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data files: PILOTAGE_SHARED_DATA, or ``shared/data`` beside the clone."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("PILOTAGE_SHARED_DATA") or beside)
    if not any(folder.glob("*.root")):
        pytest.skip(f"no *.root files in {folder}: set PILOTAGE_SHARED_DATA to the folder that has them")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("failures"), queue={"tags": ["apptainer"]}) as system:
        system.storage("disk")
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    """The module's system; what a test leaves in it is killed, so that the next one finds free slots."""
    yield shared
    if not shared.server.running:
        shared.server.start()
    open_tasks = [task.id for task in shared.calls.tasks(1000) if task.state not in FINAL_TASK_STATES]
    for task_id in open_tasks:
        shared.command(task_id, "kill")
    shared.wait(lambda: not any(alive(shared, one) for one in open_tasks), "jobs of killed tasks end", QUICK_S)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that payloads wait for: absent until the test makes it."""
    return tmp_path / "gate"
