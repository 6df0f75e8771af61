"""What the end-to-end tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

for module in ("falcon", "granian", "psutil"):
    pytest.importorskip(module)

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
def shared_data() -> Iterator[Path]:
    """The folder with the real data files: PILOTAGE_SHARED_DATA, or ``shared/data`` beside the clone."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("PILOTAGE_SHARED_DATA") or beside)
    if not any(folder.glob("*.root")):
        pytest.skip(f"no *.root files in {folder}: set PILOTAGE_SHARED_DATA to the folder that has them")
    yield folder
