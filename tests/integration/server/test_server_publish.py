"""Events reach a real broker, in order, each at least once, through outages of the broker."""

from __future__ import annotations

import queue
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.tokens import SecretFileError, write_secret_file
from common.wire import EventView
from server.agents import publish
from server.agents.publish import BrokerUnavailable, publish_events
from server.config import ServerConfig
from server.store import events
from server.store.events import Event
from tests.integration.server.harness import Site
from tests.services.activemq import PASSWORD, USER

if TYPE_CHECKING:
    from tests.services.activemq import ActiveMq


@pytest.fixture
def kind() -> str:
    """One kind of database is enough here."""
    return "sqlite"


@pytest.fixture
def place() -> str:
    return f"/queue/events-{uuid.uuid4().hex[:8]}"


def configure(site: Site, tmp_path: Path, place: str, *servers: str, **more: Any) -> None:
    secret = tmp_path / "password"
    write_secret_file(secret, more.pop("password", PASSWORD) + "\n")
    site.dispatcher.config = ServerConfig(
        stomp_servers=list(servers),
        stomp_destination=place,
        stomp_user=USER,
        stomp_password_file=str(secret),
        **more,
    )


def happen(site: Site, *numbers: int, kind: str = "SITE_FAULT") -> None:
    with site.database.write() as connection:
        for number in numbers:
            detail = {"words": "Jürgen – ☃"}
            events.add(connection, Event(1.7e9, kind, "site", number, job_id=number, detail=detail))


def drain(site: Site) -> None:
    while publish_events(site.dispatcher):
        pass


@contextmanager
def subscribed(broker: ActiveMq, place: str) -> Iterator[Callable[[int], list[tuple[dict[str, str], EventView]]]]:
    """Gives the next ``n`` messages with their headers."""
    import stomp

    came: queue.Queue[tuple[dict[str, str], EventView]] = queue.Queue()

    class Listener(stomp.ConnectionListener):  # type: ignore[misc]
        def on_message(self, frame: Any) -> None:
            came.put((frame.headers, msgspec.json.decode(frame.body, type=EventView)))

    connection = stomp.Connection12([("127.0.0.1", broker.port)])
    connection.set_listener("", Listener())
    connection.connect(USER, PASSWORD, wait=True)
    connection.subscribe(place, id="1", ack="auto")
    try:
        yield lambda n: [came.get(timeout=180) for _ in range(n)]
        assert came.empty()
    finally:
        connection.disconnect()


def numbers(found: list[tuple[dict[str, str], EventView]]) -> list[int]:
    return [int(each.subject_id) for _, each in found]


def test_real_broker_gets_events_in_order_with_headers(
    site: Site, activemq: ActiveMq, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "BATCH", 4)
    configure(site, tmp_path, place, activemq.address)
    drain(site)  # the first time: from now on
    happen(site, *range(10))
    drain(site)
    with subscribed(activemq, place) as take:
        found = take(10)
    assert numbers(found) == list(range(10))
    headers, event = found[3]
    assert (headers["kind"], headers["job-id"], headers["event-id"]) == ("SITE_FAULT", "3", str(event.id))
    assert event.detail == {"words": "Jürgen – ☃"}


def test_what_was_before_the_first_time_is_not_published(
    site: Site, activemq: ActiveMq, tmp_path: Path, place: str
) -> None:
    happen(site, 1)
    configure(site, tmp_path, place, activemq.address)
    drain(site)
    happen(site, 2)
    drain(site)
    with subscribed(activemq, place) as take:
        assert numbers(take(1)) == [2]


def test_real_broker_outage_loses_nothing(site: Site, activemq: ActiveMq, tmp_path: Path, place: str) -> None:
    configure(site, tmp_path, place, activemq.address)
    drain(site)
    happen(site, 1, 2)
    drain(site)
    with activemq.outage():
        happen(site, 3)
        with pytest.raises(BrokerUnavailable, match="no broker can be used"):
            publish_events(site.dispatcher)
        happen(site, 4)
    drain(site)
    with subscribed(activemq, place) as take:
        assert numbers(take(4)) == [1, 2, 3, 4]


def test_only_chosen_kinds_are_published(site: Site, activemq: ActiveMq, tmp_path: Path, place: str) -> None:
    configure(site, tmp_path, place, activemq.address, stomp_kinds=["JOB_*", "TASK_DONE"])
    drain(site)
    for number, kind in enumerate(["JOB_LOST", "TASK_READY", "TASK_DONE", "SITE_FAULT"]):
        happen(site, number, kind=kind)
    drain(site)
    with subscribed(activemq, place) as take:
        assert numbers(take(2)) == [0, 2]


def test_the_next_broker_is_used_when_the_first_is_down(
    site: Site, activemq: ActiveMq, tmp_path: Path, place: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    configure(site, tmp_path, place, f"127.0.0.1:{port}", activemq.address)
    drain(site)
    happen(site, 1)
    drain(site)
    with subscribed(activemq, place) as take:
        assert numbers(take(1)) == [1]


def test_a_wrong_password_is_told_and_loses_nothing(site: Site, activemq: ActiveMq, tmp_path: Path, place: str) -> None:
    configure(site, tmp_path, place, activemq.address)
    drain(site)
    happen(site, 1)
    configure(site, tmp_path, place, activemq.address, password="wrong")
    with pytest.raises(BrokerUnavailable, match="no login") as error:
        publish_events(site.dispatcher)
    assert "wrong" not in str(error.value)
    configure(site, tmp_path, place, activemq.address)
    drain(site)
    with subscribed(activemq, place) as take:
        assert numbers(take(1)) == [1]


def test_a_password_file_that_others_may_read_is_refused(site: Site, activemq: ActiveMq, tmp_path: Path) -> None:
    configure(site, tmp_path, "/queue/x", activemq.address)
    drain(site)
    happen(site, 1)
    (tmp_path / "password").chmod(0o644)
    with pytest.raises(SecretFileError):
        publish_events(site.dispatcher)


def test_a_broker_that_accepts_and_never_acknowledges(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs in, takes the message and says nothing: the message counts as not published."""
    monkeypatch.setattr(publish, "RECEIPT_S", 0.5)
    monkeypatch.setattr(publish, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        configure(site, tmp_path, "/queue/x", f"127.0.0.1:{server.getsockname()[1]}")
        drain(site)
        happen(site, 1)
        with pytest.raises(BrokerUnavailable, match="no login: 1 ackn"):
            publish_events(site.dispatcher)  # nobody answers at all

        def speak() -> None:
            for _ in range(2):
                peer, _ = server.accept()
                peer.settimeout(120)
                if b"STOMP" in peer.recv(4096):
                    peer.sendall(b"CONNECTED\nversion:1.2\n\n\0")
                kept.append(peer)

        monkeypatch.setattr(publish, "CONNECT_S", 60.0)  # from now on somebody answers, as fast as it gets to
        kept: list[socket.socket] = []
        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        with pytest.raises(BrokerUnavailable, match="acknowledgements did not come|connection broke"):
            publish_events(site.dispatcher)
        for peer in kept:
            peer.close()


def make_certificate(folder: Path) -> Path:
    """A certificate of its own making for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "broker.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_over_tls_only_a_broker_that_is_verified_gets_anything(site: Site, tmp_path: Path) -> None:
    """A broker in a few lines: it takes what comes and acknowledges it."""
    pem = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    received: list[bytes] = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                peer = context.wrap_socket(server.accept()[0], server_side=True)
            except ssl.SSLError:
                continue  # the client does not trust it
            except OSError:
                return
            buffer = b""
            while chunk := peer.recv(65536):
                buffer += chunk
                while b"\0" in buffer:
                    frame, _, buffer = buffer.lstrip(b"\n").partition(b"\0")
                    received.append(frame)
                    found = re.search(rb"^receipt:(.*)$", frame, re.MULTILINE)
                    answer = b"RECEIPT\nreceipt-id:" + found[1] if found else b"CONNECTED\nversion:1.2"
                    peer.sendall(answer + b"\n\n\0")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        configure(site, tmp_path, "/queue/x", address, stomp_tls=True)
        drain(site)
        happen(site, 1)
        with pytest.raises(BrokerUnavailable):
            publish_events(site.dispatcher)
        assert received == []
        configure(site, tmp_path, "/queue/x", address, stomp_tls=True, stomp_ca_file=str(pem))
        drain(site)
    assert [frame.split(b"\n")[0] for frame in received] == [b"STOMP", b"SEND"]


def test_without_brokers_nothing_is_done(site: Site) -> None:
    happen(site, 1)
    assert publish_events(site.dispatcher) == 0


@pytest.mark.parametrize("address", ["broker", "broker:", ":61613", "broker:stomp"])
def test_an_address_without_a_port_is_told(site: Site, tmp_path: Path, address: str) -> None:
    configure(site, tmp_path, "/queue/x", address)
    drain(site)
    happen(site, 1)
    with pytest.raises(BrokerUnavailable, match="write host:port"):
        publish_events(site.dispatcher)
