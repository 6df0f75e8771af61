"""``pilotage harvester relay``: the relay alone, on a machine without a harvester."""

from __future__ import annotations

import signal
import socket

import click

from common.log import setup_logging
from harvester.relay.agent import Relay, RelayConfig


@click.command("relay")
@click.option("--server", "server_url", required=True, metavar="URL", help="The server to hand calls on to.")
@click.option("--folder", metavar="DIR", help="Serve the mailbox in this shared folder.")
@click.option("--listen", metavar="HOST:PORT", help="Serve HTTP at this address.")
@click.option("--certificate", metavar="FILE", help="Serve HTTPS with this certificate (PEM).")
@click.option("--key", metavar="FILE", help="The certificate's key (PEM).")
@click.option("--ca-file", metavar="FILE", help="The certificate authorities to verify the server with.")
@click.option(
    "--log-level", default="INFO", show_default=True, type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"])
)
def relay_command(server_url: str, ca_file: str | None, log_level: str, **ways: str | None) -> None:
    """Hand the calls of pilots on nodes without network on to the server, until SIGTERM or Ctrl-C.

    Pilots use mailbox:///DIR or http://HOST:PORT as the server's address. No configuration and no token is needed: each call
    carries its pilot's own.
    """
    setup_logging(log_level)
    relay = Relay(RelayConfig(**ways), server_url, ca_file)
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        relay.start()
        reader.recv(1)
        signal.set_wakeup_fd(-1)
    relay.stop()
