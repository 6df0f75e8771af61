"""The relay as a part of harvester, or alone: section ``[harvester.relay]``, and what it makes."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from common.config import ConfigError
from common.endpoint import is_private
from harvester.relay.forward import Forwarder
from harvester.relay.listener import Listener
from harvester.relay.mailbox import MailboxRelay

log = logging.getLogger(__name__)


class RelayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table ``[harvester.relay]``: a way to the server for pilots on nodes that have none."""

    folder: str | None = None
    """A folder that worker nodes share with this machine: pilots use ``mailbox://<folder>`` as the server's address."""
    listen: str | None = None
    """``HOST:PORT`` to serve HTTP at, for worker nodes that reach this machine."""
    certificate: str | None = None
    """A PEM file: serve HTTPS with it."""
    key: str | None = None
    """The certificate's key (PEM, mode 0600), where the certificate's file does not hold it."""


class Relay:
    """The mailbox and the listener that ``config`` names, over one set of connections to the server.

    Raises PilotageError (BAD_CONFIGURATION).
    """

    def __init__(self, config: RelayConfig, server_url: str, ca_file: str | None) -> None:
        if config.folder is None and config.listen is None:
            raise ConfigError("[harvester.relay]: it names no way for pilots; give folder, listen, or both")
        if config.folder is not None and not Path(config.folder).is_absolute():
            raise ConfigError(f"[harvester.relay] folder: {config.folder!r} must be an absolute path")
        self._forward = Forwarder(server_url, Path(ca_file).expanduser() if ca_file else None)
        self._parts: list[MailboxRelay | Listener] = []
        self.urls: list[str] = []
        if config.listen is not None:
            host, port = _address(config.listen)
            listener = Listener(host, port, self._forward, config.certificate, config.key)
            if not is_private(listener.url):
                log.warning("%s: tokens travel unencrypted to this address; give it a certificate", listener.url)
            self._parts.append(listener)
            self.urls.append(listener.url)
        if config.folder is not None:
            self._parts.append(MailboxRelay(Path(config.folder), self._forward))
            self.urls.append(f"mailbox://{config.folder}")

    def start(self) -> None:
        """Begin to serve, in threads of its own."""
        for part in self._parts:
            part.start()
        log.info("relay to %s, for pilots at %s", self._forward.server_url, " and ".join(self.urls))

    def stop(self) -> None:
        """Take no more calls; those under way are cut off, which their pilots repeat."""
        for part in self._parts:
            part.stop()
        self._forward.close()


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"[harvester.relay] listen: {listen!r}: write HOST:PORT, such as login.example.org:8445")
    return host.strip("[]"), int(port)
