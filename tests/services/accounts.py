"""Two accounts of this machine that nobody uses, for payloads that run as another user."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.services.base import ServiceUnavailable, require, run
from tests.services.install import install_lock


def make() -> tuple[str, str]:
    """Make two users, each with a group of its own; raises ServiceUnavailable."""
    if os.geteuid() != 0:
        raise ServiceUnavailable("running payloads as another user needs root")
    names = f"pay{uuid.uuid4().hex[:8]}", f"pay{uuid.uuid4().hex[:8]}"
    for name in names:
        with install_lock():
            run(["useradd", "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", name])
    return names


@pytest.fixture(scope="session")
def payload_users() -> Iterator[tuple[str, str]]:
    """The names of two accounts that nobody uses."""
    names = require(make)
    yield names
    for name in names:
        with install_lock():
            run(["userdel", name])
