"""Fixtures for all tests: the real services (tests/services), started only for the tests that ask for them."""

from __future__ import annotations

import pytest
from xdist.remote import Producer

from tests.scheduling import FileScheduling

pytest_plugins = (
    "tests.services.base",
    "tests.services.activemq",
    "tests.services.postgres",
    "tests.services.xrootd",
    "tests.services.webdav",
    "tests.services.xrootd_secure",
    "tests.services.s3",
    "tests.services.gfal",
    "tests.services.rucio",
    "tests.services.panda_client",
    "tests.services.apptainer",
    "tests.services.images",
    "tests.services.registry",
    "tests.services.accounts",
    "tests.services.debian_tree",
    "tests.services.slurm",
    "tests.services.sshd",
    "tests.services.grid_root",
    "tests.services.arc",
    "tests.services.htcondor",
    "tests.services.pilot_bundle",
)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling:
    """Side by side each file stays in one process, where its services are started once."""
    return FileScheduling(config, log)


def pytest_make_parametrize_id(val: object) -> str | None:
    """What is compressed holds the time at which it was: as a test's name it would differ from process to process."""
    return "gzip" if isinstance(val, bytes) and val.startswith(b"\x1f\x8b") else None


def pytest_report_header() -> str:
    """Say which real services this machine has, or would get, before the tests start."""
    # Imported here, so that pytest gets to load the plugins first (and rewrite their assertions).
    from tests.services import (
        activemq,
        apptainer,
        debian_tree,
        gfal,
        htcondor,
        nginx,
        panda_client,
        postgres,
        registry,
        rucio,
        s3,
        slurm,
        sshd,
        webdav,
        xrootd,
    )

    services = {"postgres": postgres, "xrootd": xrootd, "apptainer": apptainer, "activemq": activemq}
    services.update({"registry": registry, "webdav": webdav, "s3": s3, "gfal": gfal, "rucio": rucio})
    services.update({"debian trees": debian_tree, "htcondor": htcondor})
    services["panda-client"] = panda_client
    services.update({"slurm": slurm, "sshd": sshd})
    services.update({"slurm": slurm, "sshd": sshd, "nginx": nginx})
    return "real services: " + ", ".join(f"{name} {module.status()}" for name, module in services.items())
