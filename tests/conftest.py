"""Fixtures for all tests: the real services (tests/services), started only for the tests that ask for them."""

from __future__ import annotations

pytest_plugins = (
    "tests.services.base",
    "tests.services.activemq",
    "tests.services.postgres",
    "tests.services.xrootd",
    "tests.services.apptainer",
    "tests.services.images",
)


def pytest_report_header() -> str:
    """Say which real services this machine has, or would get, before the tests start."""
    # Imported here, so that pytest gets to load the plugins first (and rewrite their assertions).
    from tests.services import activemq, apptainer, postgres, xrootd

    services = {"postgres": postgres, "xrootd": xrootd, "apptainer": apptainer, "activemq": activemq}
    return "real services: " + ", ".join(f"{name} {module.status()}" for name, module in services.items())
