"""A real ActiveMQ broker that speaks STOMP, on loopback, with one user and its messages on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection

import pytest

from tests.services.base import Service, free_port, require, require_module
from tests.services.install import install_packages, state_of

HOME = Path("/usr/share/activemq")
USER, PASSWORD = "pilotage", "correct horse"

_CONFIG = """\
<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans
  http://www.springframework.org/schema/beans/spring-beans.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
<broker xmlns="http://activemq.apache.org/schema/core" brokerName="localhost" useJmx="false" dataDirectory="{folder}/data">
 <plugins><simpleAuthenticationPlugin><users>
  <authenticationUser username="{user}" password="{password}" groups="users"/>
 </users></simpleAuthenticationPlugin></plugins>
 <persistenceAdapter><kahaDB directory="{folder}/data/kahadb"/></persistenceAdapter>
 <systemUsage><systemUsage>
  <storeUsage><storeUsage limit="256 mb"/></storeUsage><tempUsage><tempUsage limit="64 mb"/></tempUsage>
 </systemUsage></systemUsage>
 <transportConnectors><transportConnector name="stomp" uri="stomp://127.0.0.1:{port}"/></transportConnectors>
</broker></beans>
"""


def _present() -> bool:
    return (HOME / "bin" / "activemq.jar").exists() and shutil.which("java") is not None


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(_present())


def install() -> None:
    """Install the broker when missing; raises ServiceUnavailable."""
    if not _present():
        install_packages("activemq", ["activemq"])


class ActiveMq(Service):
    """An ActiveMQ broker."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        config = folder / "activemq.xml"
        config.write_text(_CONFIG.format(folder=folder, user=USER, password=PASSWORD, port=self.port))
        places = {"home": HOME, "base": folder, "conf": folder, "data": folder / "data"}
        super().__init__(
            "activemq",
            [
                "java",
                "-Xmx128m",
                *(f"-Dactivemq.{name}={path}" for name, path in places.items()),
                f"-Djava.io.tmpdir={folder}",
                "-jar",
                str(HOME / "bin" / "activemq.jar"),
                "start",
                f"xbean:file:{config}",
            ],
            folder / "log",
            self._listens,
            env={**os.environ, "HOME": str(folder)},
            cwd=folder,
        )

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        return f"127.0.0.1:{self.port}"

    def _listens(self) -> bool:
        try:
            create_connection(("127.0.0.1", self.port), timeout=20).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def activemq(services_folder: Path) -> Iterator[ActiveMq]:
    """A running broker for the whole session."""
    require_module("stomp")
    require(install)
    broker = require(lambda: ActiveMq(services_folder / "activemq"))
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
