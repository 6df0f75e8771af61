"""gfal2: its library with the plug-ins for files, XRootD and HTTP, its Python bindings and its commands."""

from __future__ import annotations

import functools

import pytest

from pilot.copytool.gfal_client import COMMANDS
from tests.services.base import ServiceFailed, require
from tests.services.install import install_packages, missing, state_of

#: The bindings are for the distribution's own Python: PyPI's gfal2-python wants a newer gfal2 than Debian 12 has.
PACKAGES = (
    "gfal2-plugin-file",
    "gfal2-plugin-http",
    "gfal2-plugin-xrootd",
    "python3-gfal2",
    "python3-gfal2-util",
    "gfal2-util-scripts",
)


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(not missing(COMMANDS))


@functools.lru_cache(maxsize=1)
def install() -> None:
    """Install gfal2 when missing; raises ServiceUnavailable."""
    if missing(COMMANDS):
        install_packages("gfal", PACKAGES)
        if missing(COMMANDS):
            raise ServiceFailed(f"packages {' '.join(PACKAGES)} brought no {' '.join(missing(COMMANDS))}")


@pytest.fixture(scope="session")
def gfal() -> None:
    """gfal2, installed when missing."""
    require(install)
