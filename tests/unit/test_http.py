"""The HTTP client against real sockets: retries, deadlines, TLS with a private authority, proxies, redirects."""

from __future__ import annotations

import datetime
import gzip
import http.server
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable, Optional

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.clock import FrozenClock
from common.errors import ErrorCode, PilotageError
from common.http import (
    RETRY_AFTER_MAX_S,
    BadReply,
    BodyTooLarge,
    HttpClient,
    Problem,
    ProblemError,
    Unreachable,
    quoted,
)
from common.problem import CONTENT_TYPE, FieldError, decode_problem

TOKEN = "s3cret-token-of-a-pilot"
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class Thing(msgspec.Struct):
    name: str
    size: int = 0


class Seen(msgspec.Struct):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A real HTTP server that gives the scripted answers in turn (the last one for ever) and keeps what it saw."""

    def __init__(self, answers: list[Answer], context: Optional[ssl.SSLContext] = None) -> None:
        self.answers = answers
        self.seen: list[Seen] = []
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                outer.seen.append(Seen(self.command, self.path, dict(self.headers), self.rfile.read(length)))
                status, headers, body = outer.answers[min(len(outer.seen), len(outer.answers)) - 1]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers and "Transfer-Encoding" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if headers.get("Connection") == "close":
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = serve

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that refuses our certificate is what some tests want

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RawServer:
    """Hands each connection to the next of some functions, to break them in every way."""

    def __init__(self, *behaviours: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.served = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(behaviours,), daemon=True)
        self._thread.start()

    def _serve(self, behaviours: tuple[Callable[[socket.socket], None], ...]) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.served += 1
                connection.recv(65536)
                try:
                    behaviours[min(self.served, len(behaviours)) - 1](connection)
                except OSError:
                    pass  # the client has hung up, which is for it to decide

    def stop(self) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


class Pause:
    """Stands for the wait between attempts: keeps what was asked, moves the clock, ends after ``closes_after``."""

    def __init__(self, clock: Optional[FrozenClock] = None) -> None:
        self.waits: list[float] = []
        self.clock = clock

    def __call__(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if self.clock:
            self.clock.advance(seconds)
        return False


def reply(value: object, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return status, {"Content-Type": "application/json", **named}, json.dumps(value).encode()


OK = reply({"name": "it", "size": 3})
OK_BYTES = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"name":"it"}'


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_PROXY_VARIABLES, *(name.upper() for name in _PROXY_VARIABLES), *_CA_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Any:
    servers: list[Any] = []

    def start(*answers: Answer, context: Optional[ssl.SSLContext] = None) -> Server:
        server = Server(list(answers), context)
        servers.append(server)
        return server

    def start_raw(*behaviours: Callable[[socket.socket], None]) -> RawServer:
        server = RawServer(*behaviours)
        servers.append(server)
        return server

    start.raw = start_raw  # type: ignore[attr-defined]
    yield start
    for server in servers:
        server.stop()


def client(url: str, **options: Any) -> HttpClient:
    options.setdefault("pause", Pause())
    return HttpClient(url, **options)


# --- the plain call ---------------------------------------------------------------------------------------------------


def test_a_call_sends_and_reads_json(serve: Any) -> None:
    server = serve(OK)
    http_client = client(server.url + "/base/", token=lambda: TOKEN)
    thing = http_client.call("post", "/v1/things", Thing("a", 1), Thing, params={"n": 2, "all": True, "gone": None})
    assert thing == Thing("it", 3)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/base/v1/things?n=2&all=true")
    assert json.loads(seen.body) == {"name": "a", "size": 1}
    assert seen.headers["Authorization"] == f"Bearer {TOKEN}"
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.headers["User-Agent"].startswith("pilotage/")


def test_no_reply_is_read_for_none_and_lists_are_typed(serve: Any) -> None:
    server = serve((204, {}, b""), reply([{"name": "a"}, {"name": "b"}]))
    http_client = client(server.url)
    assert http_client.call("DELETE", "/v1/things/1", None, type(None)) is None
    assert http_client.call("GET", "/v1/things", None, list[Thing]) == [Thing("a"), Thing("b")]
    assert "Authorization" not in server.seen[0].headers
    assert "Content-Type" not in server.seen[0].headers


def test_connections_are_kept_and_each_thread_has_its_own(serve: Any) -> None:
    server = serve(OK)
    http_client = client(server.url)
    for _ in range(5):
        http_client.call("GET", "/", None, Thing)
    assert server.connections == 1
    results: list[Thing] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        results.extend(http_client.call("POST", "/", Thing("x"), Thing) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [Thing("it", 3)] * 80
    assert server.connections == 9


def test_a_compressed_and_a_chunked_reply(serve: Any) -> None:
    body = json.dumps({"name": "z" * 300_000}).encode()
    chunked = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (100, body[:100], len(body) - 100, body[100:])
    server = serve(
        (200, {"Content-Encoding": "gzip"}, gzip.compress(body)),
        (200, {"Transfer-Encoding": "chunked"}, chunked),
    )
    http_client = client(server.url)
    assert len(http_client.call("GET", "/", None, Thing).name) == 300_000
    assert len(http_client.call("GET", "/", None, Thing).name) == 300_000


def test_a_segment_is_quoted_whole() -> None:
    assert quoted("cms:a/b?c") == "cms%3Aa%2Fb%3Fc"


# --- what the server says no with -------------------------------------------------------------------------------------


def test_a_problem_keeps_its_fields_and_extensions(serve: Any) -> None:
    members = {
        "type": "https://example.org/bad",
        "title": "Bad request",
        "status": 400,
        "detail": "the workflow is not valid",
        "errors": [{"path": "stages[1].name", "message": "there is no such stage"}],
        "job": 17,
    }
    server = serve((400, {"Content-Type": CONTENT_TYPE}, json.dumps(members).encode()))
    with pytest.raises(ProblemError) as caught:
        client(server.url).call("POST", "/v1/workflows", {}, Thing)
    problem = caught.value.problem
    assert (caught.value.status, problem.title, problem.type) == (400, "Bad request", "https://example.org/bad")
    assert problem.errors == [FieldError("stages[1].name", "there is no such stage")]
    assert problem.extensions == {"job": 17}
    assert "stages[1].name: there is no such stage" in str(caught.value)
    assert caught.value.code is ErrorCode.COMMUNICATION_FAILED
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html><h1>oops</h1></html>", "text/html"),
        (b"{broken", CONTENT_TYPE),
        (b"[1, 2]", CONTENT_TYPE),
        (b"\xff\xfe", "application/json"),
        (b'{"title": 5, "detail": [], "type": null}', CONTENT_TYPE),
        (b"", ""),
    ],
)
def test_any_error_body_becomes_a_problem(body: bytes, content_type: str) -> None:
    problem = decode_problem(body, 500, content_type, "Server Error")
    assert (problem.title, problem.status, problem.detail) == ("Server Error", 500, "")


def test_a_problem_survives_the_round_trip_and_extensions_cannot_replace_its_members() -> None:
    problem = Problem("Gone", 410, detail="declared lost", errors=[FieldError("a", "b")], extensions={"job": 7})
    assert decode_problem(problem.encode(), 410, CONTENT_TYPE) == problem
    sly = Problem("Gone", 410, extensions={"status": 200, "job": 7})
    assert json.loads(sly.encode())["status"] == 410
    odd = decode_problem(b'{"title": "t", "errors": {"name": ["x"]}}', 400, CONTENT_TYPE)
    assert odd.errors == []
    assert odd.extensions == {"errors": {"name": ["x"]}}


def test_a_reply_of_the_wrong_shape_is_a_bad_reply(serve: Any) -> None:
    server = serve(reply({"name": 5}), (200, {"Content-Type": "text/html"}, b"<html>log in here</html>"))
    for words in ("name", "text/html"):
        with pytest.raises(BadReply, match=words):
            client(server.url).call("GET", "/v1/things", None, Thing)


def test_bodies_over_the_limit_are_refused_in_both_directions(serve: Any) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    server = serve((200, {}, b" " * 2000), (200, {"Content-Encoding": "gzip"}, bomb))
    http_client = client(server.url, max_body_bytes=1000)
    for _ in range(2):
        with pytest.raises(BodyTooLarge, match="limit of 1000"):
            http_client.call("GET", "/", None, Thing)
    with pytest.raises(BodyTooLarge, match="limit of 1000"):
        http_client.call("POST", "/", {"x": "y" * 1000}, Thing)
    assert len(server.seen) == 2


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_post_is_repeated_until_the_server_is_back(serve: Any, status: int) -> None:
    server = serve(reply({}, status), reply({}, status), OK)
    pause = Pause()
    assert client(server.url, pause=pause).call("POST", "/", Thing("a"), Thing).size == 3
    assert [seen.body for seen in server.seen] == [server.seen[0].body] * 3
    assert 0.25 <= pause.waits[0] <= 0.5
    assert 0.5 <= pause.waits[1] <= 1.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 500])
def test_other_errors_are_not_repeated(serve: Any, status: int) -> None:
    server = serve(reply({}, status))
    with pytest.raises(ProblemError):
        client(server.url).call("GET", "/", None, Thing)
    assert len(server.seen) == 1


def test_the_waits_grow_spread_and_end() -> None:
    spread: set[float] = set()
    for _ in range(5):
        pause = Pause()
        with pytest.raises(Unreachable, match="refused"):
            client(dead_address(), pause=pause, retries=8).call("GET", "/", None, Thing)
        assert len(pause.waits) == 8
        for number, wait in enumerate(pause.waits):
            ceiling = min(30.0, 0.5 * 2**number)
            assert ceiling / 2 <= wait <= ceiling
        spread.update(pause.waits)
    assert len(spread) == 40


def test_the_first_repeat_of_a_call_is_no_news(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A bug: every normal start of a server was told as trouble."""
    caplog.set_level(logging.DEBUG, "common.http")
    server = serve(reply({}, 503), reply({}, 503), reply({}, 503), OK)
    client(server.url, pause=Pause()).call("POST", "/", None, Thing)
    levels = [record.levelno for record in caplog.records if "again in" in record.getMessage()]
    assert levels == [logging.DEBUG, logging.INFO, logging.INFO]


def test_retry_after_is_honoured(serve: Any) -> None:
    server = serve(reply({}, 503, Retry_After="7"), OK)
    pause = Pause()
    client(server.url, pause=pause).call("POST", "/", None, Thing)
    assert 7.0 <= pause.waits[0] <= 7.5


def test_retry_after_may_be_a_date_or_nonsense(serve: Any) -> None:
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)
    server = serve(
        reply({}, 429, Retry_After=soon.strftime("%a, %d %b %Y %H:%M:%S GMT")),
        reply({}, 503, Retry_After="after lunch"),
        OK,
    )
    pause = Pause()
    client(server.url, pause=pause).call("GET", "/", None, Thing)
    assert 5 < pause.waits[0] < 32
    assert pause.waits[1] <= 1.0


def test_a_longer_retry_after_than_the_limit_is_for_the_caller(serve: Any) -> None:
    server = serve(reply({}, 503, Retry_After=str(int(RETRY_AFTER_MAX_S) + 1)))
    with pytest.raises(ProblemError) as caught:
        client(server.url).call("GET", "/", None, Thing)
    assert caught.value.retry_after_s == RETRY_AFTER_MAX_S + 1
    assert len(server.seen) == 1


def test_a_call_can_be_a_single_attempt(serve: Any) -> None:
    server = serve(reply({}, 503))
    with pytest.raises(ProblemError) as caught:
        client(server.url).call("GET", "/", None, Thing, retry=False)
    assert caught.value.status == 503
    assert len(server.seen) == 1
    pause = Pause()
    with pytest.raises(Unreachable):
        client(dead_address(), pause=pause).call("GET", "/", None, Thing, retry=False)
    assert pause.waits == []


def test_a_lost_reply_is_asked_for_again(serve: Any) -> None:
    server = serve.raw(lambda connection: None, lambda connection: connection.sendall(OK_BYTES))
    assert client(server.url).call("POST", "/", Thing("a"), Thing) == Thing("it")
    assert server.served == 2


def test_a_reply_cut_off_in_its_body_is_asked_for_again(serve: Any) -> None:
    server = serve.raw(
        lambda connection: connection.sendall(OK_BYTES[:-4]),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{"),
        lambda connection: connection.sendall(OK_BYTES),
    )
    assert client(server.url).call("POST", "/", Thing("a"), Thing) == Thing("it")
    assert server.served == 3


def test_a_silent_server_times_out_and_is_asked_again(serve: Any) -> None:
    def silent_until_the_client_leaves(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    server = serve.raw(silent_until_the_client_leaves, lambda connection: connection.sendall(OK_BYTES))
    assert client(server.url).call("GET", "/", None, Thing, timeout=1.0) == Thing("it")
    with pytest.raises(Unreachable, match="timed out"):
        silent = serve.raw(lambda connection: silent.ended.wait(0.5) and None)
        client(silent.url, timeout=(0.1, 0.1), retries=0).call("GET", "/", None, Thing)


def test_a_trickle_cannot_hold_the_caller(serve: Any) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not server.ended.wait(0.02):
            connection.sendall(b" ")

    server = serve.raw(trickle)
    started = time.monotonic()
    with pytest.raises(Unreachable, match="too slowly"):
        client(server.url, timeout=(5, 60)).call("GET", "/", None, Thing, total_s=0.3)
    assert time.monotonic() - started < 30


def test_the_total_time_bounds_attempts_and_waits(serve: Any) -> None:
    server = serve(reply({}, 503, Retry_After="4"))
    clock = FrozenClock()
    pause = Pause(clock)
    with pytest.raises(ProblemError):
        client(server.url, clock=clock, pause=pause, retries=100).call("POST", "/", None, Thing, total_s=10)
    assert clock.monotonic() < 10
    assert len(server.seen) == 3


def test_the_total_time_bounds_a_silent_server_too(serve: Any) -> None:
    server = serve.raw(lambda connection: server.ended.wait(60) and None)
    started = time.monotonic()
    with pytest.raises(Unreachable):
        HttpClient(server.url).call("POST", "/", None, Thing, total_s=0.3)
    assert time.monotonic() - started < 30
    assert server.served == 1


def test_closing_the_client_ends_a_wait_at_once(serve: Any) -> None:
    server = serve(reply({}, 503, Retry_After="100"))
    http_client = HttpClient(server.url)
    failures: list[Exception] = []

    def work() -> None:
        try:
            http_client.call("GET", "/", None, Thing)
        except PilotageError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.seen and time.monotonic() < deadline:
        thread.join(0.01)
    http_client.close()
    thread.join(120)
    assert not thread.is_alive()
    assert isinstance(failures[0], ProblemError)
    with pytest.raises(Unreachable, match="closed"):
        http_client.call("GET", "/", None, Thing)


def test_the_reason_is_that_of_this_call_and_not_of_an_earlier_failure() -> None:
    try:
        raise KeyError("something quite different")
    except KeyError:
        with pytest.raises(Unreachable) as caught:
            client(dead_address(), retries=0).call("GET", "/v1/x", None, Thing)
    assert "Connection refused" in caught.value.detail
    assert "different" not in caught.value.detail


def dead_address() -> str:
    """An address of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_never_carries_the_token_anywhere(serve: Any, status: int, method: str) -> None:
    other = serve(OK)
    server = serve((status, {"Location": other.url + "/v1/things"}, b""))
    with pytest.raises(ProblemError, match="redirected to") as caught:
        client(server.url, token=lambda: TOKEN).call(method, "/v1/things", None, Thing)
    assert other.seen == []
    assert caught.value.status == status
    assert other.url in str(caught.value)


def test_tokens_are_never_logged_nor_part_of_an_error(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(reply({}, 503), reply({}, 401))
    errors = []
    for url in (server.url, dead_address()):
        with pytest.raises(PilotageError) as caught:
            client(url, token=lambda: TOKEN).call("GET", "/", None, Thing)
        errors.append(str(caught.value))
    with pytest.raises(PilotageError) as caught:
        client(server.url, token=lambda: TOKEN + "\r\nX-Evil: 1").call("GET", "/", None, Thing)
    errors.append(str(caught.value))
    assert caplog.records
    assert TOKEN not in caplog.text
    assert not any(TOKEN in error for error in errors)


def test_the_token_is_asked_for_at_every_attempt(serve: Any) -> None:
    server = serve(reply({}, 503), OK)
    tokens = iter(["old", "new"])
    client(server.url, token=lambda: next(tokens)).call("GET", "/", None, Thing)
    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer old", "Bearer new"]


def test_netrc_never_replaces_the_token(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(OK)
    client(server.url, token=lambda: TOKEN).call("GET", "/", None, Thing)
    assert server.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_token_over_plain_http_to_another_machine_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://127.0.0.1:1", "http://[::1]:1", "http://localhost", "https://example.org"):
        HttpClient(url, token=lambda: TOKEN)
    assert not caplog.records
    HttpClient("http://127.evil.example.org", token=lambda: TOKEN)
    assert "unencrypted" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org:80",
        "ftp://example.org",
        "http://",
        "http://h:x",
        "http://h:99999",
        "https://h/?a=b",
        "http://h#f",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(PilotageError, match="server address") as caught:
        HttpClient(url)
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    for url in ("https://me:hush@example.org", "ftp://me:hush@example.org"):
        with pytest.raises(PilotageError) as caught:
            HttpClient(url)
        assert "hush" not in str(caught.value)


# --- TLS and the environment ------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority made for a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._folder = folder

    def _sign(self, subject: x509.Name, key: Any, *extensions: Any, days: int = 1) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
        )
        ski = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
        extra = (ski if key is self._key else aki,)
        for extension in (*extensions, *extra):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        if key is self._key:
            usage = dict.fromkeys(
                ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
            )
            builder = builder.add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
        return builder.sign(self._key, hashes.SHA256())

    def context(self, address: str = "127.0.0.1", days: int = 1) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._sign(subject, key, names, days=days)
        file = self._folder / f"server-{address}-{days}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def test_a_private_authority_is_trusted_and_no_other_is(serve: Any, authority: Authority, tmp_path: Path) -> None:
    server = serve(OK, context=authority.context())
    assert client(server.url, ca_file=authority.file).call("GET", "/", None, Thing).size == 3
    assert client(server.url.replace("https", "HTTPS"), ca_file=authority.file).call("GET", "/", None, Thing).size == 3
    for ca_file in (None, Authority(tmp_path, "theirs").file):
        pause = Pause()
        with pytest.raises(Unreachable, match="not trusted.*set ca_file"):
            client(server.url, ca_file=ca_file, pause=pause).call("GET", "/", None, Thing)
        assert pause.waits == [], "a certificate does not become good by asking again"
    assert len(server.seen) == 2


@pytest.mark.parametrize(("address", "days"), [("127.0.0.9", 1), ("127.0.0.1", -1)])
def test_a_certificate_of_another_host_or_an_expired_one_is_refused(
    serve: Any, authority: Authority, address: str, days: int
) -> None:
    server = serve(OK, context=authority.context(address, days))
    with pytest.raises(Unreachable, match="not trusted"):
        client(server.url, ca_file=authority.file).call("GET", "/", None, Thing)
    assert server.seen == []


@pytest.mark.parametrize("variable", _CA_VARIABLES)
def test_a_preset_bundle_cannot_replace_the_configured_authority(
    serve: Any, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server = serve(OK, context=authority.context())
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate in here")
    for preset in (junk, tmp_path / "missing.pem", Authority(tmp_path, "theirs").file):
        monkeypatch.setenv(variable, str(preset))
        assert client(server.url, ca_file=authority.file).call("GET", "/", None, Thing).size == 3


@pytest.mark.parametrize("variable", _CA_VARIABLES)
def test_a_preset_bundle_counts_without_a_configured_authority(
    serve: Any, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server = serve(OK, context=authority.context())
    monkeypatch.setenv(variable, str(authority.file))
    assert client(server.url).call("GET", "/", None, Thing).size == 3
    monkeypatch.setenv(variable, str(tmp_path / "missing.pem"))
    with pytest.raises(PilotageError, match=f"{variable}: there is no file"):
        client(server.url)


def test_an_unusable_ca_file_is_refused_and_never_switches_verification_off(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing")
    for ca_file in ("", junk, tmp_path / "missing.pem"):
        with pytest.raises(PilotageError, match="ca_file") as caught:
            HttpClient("https://127.0.0.1:1", ca_file=ca_file)
        assert caught.value.code is ErrorCode.BAD_CONFIGURATION


def test_a_folder_of_hashed_certificates_is_accepted(serve: Any, authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "hashed"
    folder.mkdir()
    server = serve(OK, context=authority.context())
    with pytest.raises(Unreachable, match="not trusted"):
        client(server.url, ca_file=folder).call("GET", "/", None, Thing)
    # OpenSSL finds a certificate in such a folder by the hash of its subject.
    certificate = x509.load_pem_x509_certificate(authority.file.read_bytes())
    (folder / f"{_subject_hash(certificate)}.0").write_bytes(authority.file.read_bytes())
    assert client(server.url, ca_file=folder).call("GET", "/", None, Thing).size == 3


def _subject_hash(certificate: x509.Certificate) -> str:
    """``openssl x509 -subject_hash``: SHA-1 over the canonical encoding of the name (lower case, UTF8String)."""
    import hashlib

    (attribute,) = list(certificate.subject)
    value = str(attribute.value).lower().encode()
    pair = b"\x06\x03\x55\x04\x03" + bytes([0x0C, len(value)]) + value
    sequence = bytes([0x30, len(pair)]) + pair
    digest = hashlib.sha1(bytes([0x31, len(sequence)]) + sequence).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def test_proxies_of_the_environment_work_and_no_proxy_is_obeyed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(reply({"name": "through the proxy"}))
    server = serve(reply({"name": "direct"}))
    monkeypatch.setenv("http_proxy", proxy.url)
    through = client("http://pilotage.invalid:8080", token=lambda: TOKEN)
    assert through.call("GET", "/v1/x", None, Thing).name == "through the proxy"
    assert proxy.seen[0].path == "http://pilotage.invalid:8080/v1/x"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert client(server.url).call("GET", "/", None, Thing).name == "direct"
    assert len(proxy.seen) == 1


def test_https_goes_through_a_proxy_with_the_private_authority(
    serve: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(OK, context=authority.context())
    asked: list[bytes] = []

    def tunnel(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", server.port)) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, connection), daemon=True)
            back.start()
            _copy(connection, upstream)
            upstream.shutdown(socket.SHUT_WR)
            back.join()

    listener = socket.create_server(("127.0.0.1", 0))

    def serve_proxy() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(65536))
            tunnel(connection)

    thread = threading.Thread(target=serve_proxy, daemon=True)
    thread.start()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
    http_client = client(server.url, ca_file=authority.file, token=lambda: TOKEN)
    assert http_client.call("GET", "/", None, Thing).size == 3
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{server.port}".encode())
    assert TOKEN.encode() not in asked[0]
    http_client.close()
    thread.join(120)
    listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass  # either end may hang up first


def test_a_dead_proxy_is_unreachable_and_its_password_stays_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", dead_address().replace("://", "://me:hush@"))
    with pytest.raises(Unreachable) as caught:
        client("http://pilotage.invalid:8080").call("GET", "/", None, Thing)
    assert "hush" not in str(caught.value)


def test_a_file_goes_there_piece_by_piece_and_again_from_its_beginning(serve: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    server = serve((503, {}, b""), (204, {}, b""))
    for content in (b"x" * 300_000, b""):
        server.seen.clear()
        source.write_bytes(content)
        client = HttpClient(server.url, token=lambda: TOKEN, pause=lambda _: False, max_body_bytes=1000)
        client.send_file("PUT", "/there", source, params={"path": "a/b c"})
        assert [each.body for each in server.seen] == [content, content]
        assert server.seen[0].path == "/there?path=a%2Fb+c" and "Transfer-Encoding" not in server.seen[0].headers
        assert server.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_file_comes_home_whole_or_with_the_servers_words(serve: Any, tmp_path: Path) -> None:
    target = tmp_path / "target"
    content = b"y" * 300_000
    server = serve((200, {}, content), (404, {"Content-Type": CONTENT_TYPE}, b'{"title": "gone", "status": 404}'))
    client = HttpClient(server.url, max_body_bytes=1000)
    client.fetch_file("/here", target, params={"path": "x"})
    assert target.read_bytes() == content
    with pytest.raises(ProblemError, match="gone"):
        client.fetch_file("/here", target)
    assert target.read_bytes() == content, "a refusal is no content"


def test_a_file_that_breaks_off_is_fetched_anew(serve: Any, tmp_path: Path) -> None:
    def broken(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    def whole(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole")

    server = serve.raw(broken, whole)
    target = tmp_path / "target"
    HttpClient(server.url, pause=lambda _: False).fetch_file("/here", target)
    assert target.read_bytes() == b"whole"
