"""Publish events to a STOMP broker, in order, each at least once.

The broker acknowledges each message before the cursor in the database moves on, so an outage of the broker, of the
database or of this program repeats some messages and loses none: consumers tell repeats by the header ``event-id``.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import msgspec

from common.tokens import read_secret_file
from common.wire import EventView
from server.config import ServerConfig
from server.dispatch.context import Dispatcher
from server.store import cursors, events
from server.store.events import Wanted

logger = logging.getLogger(__name__)

NAME = "publish-events"
BATCH = 500
"""Messages in flight, and between two moves of the cursor."""
CONNECT_S = 10.0
CONNECTED = "connected"
HANG_UP_S = 5.0
RECEIPT_S = 30.0
"""How long to wait for the broker's acknowledgements of a batch."""


class BrokerUnavailable(Exception):
    """No broker could be reached, or it did not acknowledge what it was sent."""


class Channel(Protocol):
    """An open connection to a broker."""

    def send(self, messages: Sequence[tuple[dict[str, str], bytes]]) -> None:
        """Send messages, each with its headers, and wait until all of them are acknowledged.

        Raises:
            BrokerUnavailable: they were not.
        """


def publish_events(dispatcher: Dispatcher) -> int:
    """Publish what is new, if brokers are configured; how many batches were sent that were full, so that there is more.

    Raises:
        BrokerUnavailable: it will be tried again.
    """
    if not dispatcher.config.stomp_servers:
        return 0
    with dispatcher.database.write() as connection:
        place = cursors.place(connection, NAME)
    with dispatcher.database.read() as connection:
        new, following = events.follow(connection, Wanted(), after=place, limit=BATCH)
    if not new:
        return 0
    wanted = [each for each in new if chosen(each.kind, dispatcher.config.stomp_kinds)]
    if wanted:
        with open_channel(dispatcher.config) as channel:
            channel.send([message(each) for each in wanted])
    with dispatcher.database.write() as connection:
        moved = cursors.advance(connection, NAME, place, following)
    return int(moved and len(new) == BATCH)


def chosen(kind: str, patterns: Sequence[str]) -> bool:
    """Whether a kind is to be published."""
    return not patterns or any(fnmatchcase(kind, pattern) for pattern in patterns)


def message(event: EventView) -> tuple[dict[str, str], bytes]:
    """An event as headers, that a broker can select by, and its JSON."""
    headers = {
        "content-type": "application/json",
        "event-id": str(event.id),
        "kind": event.kind,
        "subject": event.subject,
        "persistent": "true",
    }
    for name in ("task_id", "job_id"):
        value = getattr(event, name)
        if value is not None:
            headers[name.replace("_", "-")] = str(value)
    return headers, msgspec.json.encode(event)


@contextmanager
def open_channel(config: ServerConfig) -> Iterator[Channel]:
    """A connection to the first broker that answers.

    Raises:
        BrokerUnavailable: none did.
    """
    import stomp
    from stomp.exception import StompException

    hosts = [_address(each) for each in config.stomp_servers]
    connection = stomp.Connection12(
        hosts, reconnect_attempts_max=1, timeout=CONNECT_S, vhost=config.stomp_vhost or None, heartbeats=(0, 0)
    )
    if config.stomp_tls:
        connection.set_ssl(
            hosts,
            ca_certs=config.stomp_ca_file or None,
            cert_file=config.stomp_cert_file or None,
            key_file=config.stomp_key_file or None,
        )
    heard = _Heard()
    connection.set_listener("heard", heard.listener(stomp.ConnectionListener))
    login = {}
    if config.stomp_user:
        login = {"username": config.stomp_user, "passcode": _password(config)}
    try:
        connection.connect(wait=False, **login)
        words = heard.wait({CONNECTED}, CONNECT_S)
        if words:
            raise BrokerUnavailable(f"{', '.join(config.stomp_servers)}: no login: {words}")
        yield _StompChannel(connection, config.stomp_destination, heard)
    except (StompException, OSError) as error:
        words = f"{type(error).__name__} {error}".strip()
        raise BrokerUnavailable(f"{', '.join(config.stomp_servers)}: no broker can be used: {words}") from error
    finally:
        _hang_up(connection.transport)


def _hang_up(transport: Any) -> None:
    """End the connection without a word more: whatever matters was acknowledged.

    The library's own way waits, over TLS, for as long as the broker likes.
    """
    transport.running = False
    used = transport.socket
    if used is not None:
        try:
            used.shutdown(socket.SHUT_RDWR)
        except OSError as error:  # the broker was first
            logger.debug("the connection had ended: %s", error)
        transport.io_thread.join(HANG_UP_S)


def _address(words: str) -> tuple[str, int]:
    host, _, port = words.rpartition(":")
    if not host or not port.isdecimal():
        raise BrokerUnavailable(f"[server] stomp_servers: {words!r}: write host:port")
    return host.strip("[]"), int(port)


def _password(config: ServerConfig) -> str:
    return read_secret_file(Path(config.stomp_password_file)) if config.stomp_password_file else ""


class _Heard:
    """What the broker says, as it comes in on the connection's own thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._got: set[str] = set()
        self._trouble = ""

    def listener(self, base: type[Any]) -> Any:
        """What stomp.py calls."""
        heard = self

        class Listener(base):  # type: ignore[misc]
            def on_connected(self, _frame: Any) -> None:
                heard.take(CONNECTED)

            def on_receipt(self, frame: Any) -> None:
                heard.take(frame.headers.get("receipt-id", ""))

            def on_error(self, frame: Any) -> None:
                heard.fail(str(frame.headers.get("message") or frame.body))

            def on_disconnected(self) -> None:
                heard.fail("the connection broke")

        return Listener()

    def take(self, word: str) -> None:
        """Something was acknowledged."""
        with self._changed:
            self._got.add(word)
            self._changed.notify_all()

    def fail(self, words: str) -> None:
        """Nothing more will come; the first reason is the true one."""
        with self._changed:
            self._trouble = self._trouble or words
            self._changed.notify_all()

    def wait(self, wanted: set[str], timeout_s: float) -> str:
        """Until all of it was acknowledged; words when it was not."""
        with self._changed:
            self._changed.wait_for(lambda: wanted <= self._got or bool(self._trouble), timeout=timeout_s)
            missing = len(wanted - self._got)
            if not missing:
                return ""
            return self._trouble or f"{missing} acknowledgements did not come within {timeout_s:.0f} s"


class _StompChannel:
    def __init__(self, connection: Any, destination: str, heard: _Heard) -> None:
        self._connection = connection
        self._destination = destination
        self._heard = heard

    def send(self, messages: Sequence[tuple[dict[str, str], bytes]]) -> None:
        wanted = set()
        for headers, body in messages:
            receipt = f"event-{headers['event-id']}"
            wanted.add(receipt)
            self._connection.send(self._destination, body, headers["content-type"], headers, receipt=receipt)
        words = self._heard.wait(wanted, RECEIPT_S)
        if words:
            raise BrokerUnavailable(words)
