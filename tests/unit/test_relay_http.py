"""The relay's connections: to pilots over HTTP and HTTPS, and to the server."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.http import HttpClient, ProblemError, Unreachable
from harvester.relay import forward, listener
from harvester.relay.agent import Relay, RelayConfig
from harvester.relay.forward import Call, Forwarder


class Upstream(BaseHTTPRequestHandler):
    """The server: answers with what it was asked, and sets a cookie."""

    protocol_version = "HTTP/1.1"
    connections: set[Any] = set()

    def do_POST(self) -> None:
        self.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        told = {"path": self.path, "headers": dict(self.headers), "size": len(body)}
        answer = b"x" * 5000 if self.path == "/v1/large" else json.dumps(told).encode()
        self.send_response(302 if self.path == "/v1/elsewhere" else 200)
        self.send_header("Set-Cookie", "pilot=one; Path=/")
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    Upstream.connections = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def relay(upstream: str) -> Iterator[str]:
    made = Relay(RelayConfig(listen="127.0.0.1:0"), upstream, None)
    made.start()
    yield made.urls[0]
    made.stop()


def call(forwarder: Forwarder, path: str = "/v1/x", method: str = "POST", body: bytes = b"1", **headers: str) -> Any:
    return forwarder(Call(method, path, headers, body, 10.0))


def test_a_call_goes_on_with_its_own_token_and_nothing_else(relay: str) -> None:
    for token in ("first", "second"):
        client = HttpClient(relay, token=lambda token=token: token, retries=0)  # type: ignore[misc]
        told = client.call("POST", "/v1/jobs:acquire", {"a": 1}, dict[str, Any])
        client.close()
        assert told["path"] == "/v1/jobs:acquire" and told["size"] == len(b'{"a":1}')
        headers = {name.lower(): value for name, value in told["headers"].items()}
        assert headers["authorization"] == f"Bearer {token}"
        assert "cookie" not in headers, "the cookie of one pilot reached the call of another"
        assert set(headers) <= {
            *("host", "accept-encoding", "accept", "connection", "authorization", "content-type", "user-agent"),
            "content-length",
        }


def test_connections_to_the_server_are_kept(relay: str) -> None:
    for _ in range(5):
        client = HttpClient(relay, retries=0)
        client.call("POST", "/v1/x", {}, dict[str, Any])
        client.close()
    assert len(Upstream.connections) == 1


def test_the_server_away_is_503_and_asks_for_patience() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        made = Relay(RelayConfig(listen="127.0.0.1:0"), url, None)
        made.start()
        client = HttpClient(made.urls[0], retries=0)
        with pytest.raises(ProblemError, match="The relay cannot reach the server") as caught:
            client.call("POST", "/v1/x", {}, dict[str, Any])
        client.close()
        made.stop()
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5.0)
    assert caught.value.problem.type == "about:blank"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/metrics",
            "/v2/x",
            "//evil/v1/x",
            "http://evil/v1/x",
            "/v1/../metrics",
            "/v1/%2e%2e/metrics",
            "/v1/..",
        ),
        *("/v1/x y", "/v1/x\r\nX: y", "/v1/%2F..%2fx", "/v1/x\\..\\y", "/healthz/../x", "/v1/é"),
    ],
)
def test_what_is_no_call_of_the_protocol_is_not_handed_on(upstream: str, path: str) -> None:
    forwarder = Forwarder(upstream)
    assert call(forwarder, path).status == 400
    assert Upstream.connections == set()
    forwarder.close()


def test_a_method_of_no_call_is_not_handed_on(upstream: str, relay: str) -> None:
    forwarder = Forwarder(upstream)
    assert call(forwarder, method="DELETE").status == 400
    forwarder.close()
    client = HttpClient(relay, retries=0)
    with pytest.raises(ProblemError):
        client.call("DELETE", "/v1/x", None, type(None))
    client.close()
    assert Upstream.connections == set()


@pytest.mark.parametrize("path", ["/v1/jobs/7/units:acquire", "/v1/sandboxes/ab12?x=%20y", "/v1/x..y", "/healthz"])
def test_a_call_of_the_protocol_is(upstream: str, path: str) -> None:
    forwarder = Forwarder(upstream)
    assert json.loads(call(forwarder, path).body)["path"] == path
    forwarder.close()


def test_a_redirect_is_handed_back_and_not_followed(upstream: str) -> None:
    forwarder = Forwarder(upstream)
    reply = call(forwarder, "/v1/elsewhere")
    assert reply.status == 302 and "Location" not in reply.headers and "Set-Cookie" not in reply.headers
    forwarder.close()


def test_bodies_have_a_limit_both_ways(upstream: str, relay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_BODY_BYTES", 4000)
    monkeypatch.setattr(listener, "MAX_BODY_BYTES", 4000)
    forwarder = Forwarder(upstream)
    assert call(forwarder, body=b"x" * 4001).status == 413
    assert call(forwarder, "/v1/large").status == 502
    assert call(forwarder, body=b"x" * 4000).status == 200
    forwarder.close()
    client = HttpClient(relay, retries=0)
    with pytest.raises(ProblemError, match="more than the limit of 4000"):
        client.transfer("POST", "/v1/x", b"x" * 4001)
    client.close()


def test_a_request_without_length_is_refused(relay: str) -> None:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(relay).netloc, timeout=10)
    connection.putrequest("POST", "/v1/x")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()  # no body: the relay does not wait for it, and hangs up
    assert connection.getresponse().status == 411
    connection.close()


def test_a_pilot_verifies_a_relay_that_serves_https(tmp_path: Path, upstream: str) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    made = Relay(RelayConfig(listen="127.0.0.1:0", certificate=str(certificate), key=str(key)), upstream, None)
    made.start()
    assert made.urls[0].startswith("https://")
    trusting = HttpClient(made.urls[0], ca_file=certificate, token=lambda: "t", retries=0)
    assert trusting.call("POST", "/v1/x", {}, dict[str, Any])["path"] == "/v1/x"
    trusting.close()
    wary = HttpClient(made.urls[0], retries=0)
    with pytest.raises(Unreachable, match="certificate is not trusted"):
        wary.call("POST", "/v1/x", {}, dict[str, Any])
    wary.close()
    made.stop()


def test_a_port_that_is_taken_is_told(relay: str) -> None:
    from common.errors import PilotageError

    with pytest.raises(PilotageError, match="relay listen 127.0.0.1:.*in use"):
        Relay(RelayConfig(listen=urllib.parse.urlsplit(relay).netloc), "http://127.0.0.1:1", None)
