"""The pilot as one file, made once for all tests of a run that start pilots from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.bundle.build import Bundle, write_bundle


@pytest.fixture(scope="session")
def wheels_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetched once for all bundles."""
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, wheels_dir: Path) -> Bundle:
    """As it is made by default: every version of Python."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "pilotage-pilot.run", wheels_dir=wheels_dir)
