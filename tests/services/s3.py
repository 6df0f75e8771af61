"""An S3 service on loopback: moto's server, which boto3 talks to over HTTP as to any other."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.base import Service, free_port, require_module
from tests.services.faulty_proxy import FaultyProxy
from tests.services.install import state_of
from tests.services.webdav import listens, started

BUCKET = "pilotage-tests"
ACCESS, SECRET = "test-access", "test-secret"


def status() -> str:
    """For the header of a test run: installed, or unavailable."""
    try:
        import moto  # noqa: F401
    except ImportError:
        return "unavailable (pip install 'moto[s3,server]')"
    return state_of(True)


class S3Server(Service):
    """An object store with one bucket; objects live in its memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        # Nothing of a user's own configuration, and none of Amazon's metadata service.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        super().__init__(
            "s3",
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            folder / "log",
            lambda: listens(self.port),
            env={**environment, "TMPDIR": str(folder)},
        )

    @property
    def endpoint(self) -> str:
        """The service's address."""
        return f"http://localhost:{self.port}"

    @functools.cached_property
    def client(self) -> Any:
        """A boto3 client, to look and act behind a copytool's back."""
        boto3 = require_module("boto3")
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


@pytest.fixture(scope="session")
def s3(services_folder: Path) -> Iterator[S3Server]:
    """A running S3 service with its bucket; give each test a prefix of its own in it."""
    require_module("moto")
    for server in started(S3Server(services_folder / "s3")):
        server.client.create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(scope="session")
def s3_line(s3: S3Server) -> Iterator[FaultyProxy]:
    """A line to the S3 service that a test can make slow."""
    with FaultyProxy(s3.port) as line:
        yield line
