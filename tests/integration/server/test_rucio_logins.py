"""Who the server is for Rucio: certificates and proxies through a front that verifies them, and tokens of a file.

A Rucio server leaves certificates to the web server in front of it: here a small one, over TLS, before the real server.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.tokens import write_secret_file
from server.catalogs.base import CatalogUnavailable
from server.catalogs.rucio import RucioCatalog, RucioOptions
from tests.services.certificates import Authority, write_proxy
from tests.services.rucio import RSE, RucioServer


class Front:
    """Takes anybody's TLS; who shows a certificate of the authority, or a proxy of one, gets a token of Rucio's."""

    def __init__(self, rucio: RucioServer, authority: Authority, folder: Path) -> None:
        authority.host().write(folder / "host.pem", folder / "host.key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "host.pem", folder / "host.key")
        context.load_verify_locations(capath=str(authority.folder))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
        self.shown: list[tuple[str, str]] = []
        shown = self.shown

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/auth/"):
                    self._login()
                    return
                size = int(self.headers.get("Content-Length") or 0)
                behind = http.client.HTTPConnection("127.0.0.1", rucio.port)
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                behind.request(self.command, self.path, self.rfile.read(size), headers)
                answer = behind.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())
                behind.close()

            do_POST = do_GET

            def _login(self) -> None:
                peer = self.connection.getpeercert()  # type: ignore[attr-defined]
                if not peer:
                    self._answer(401, {"ExceptionClass": "CannotAuthenticate", "ExceptionMessage": "who are you?"}, b"")
                    return
                shown.append((self.path, str(peer["subject"])))
                self._answer(200, {"X-Rucio-Auth-Token": rucio.token()}, b"")

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                kept = {"content-type", "x-rucio-auth-token", "exceptionclass", "exceptionmessage"}
                for name, value in headers.items():
                    if name.lower() in kept:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing to say."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def front(rucio: RucioServer, authority: Authority, tmp_path: Path) -> Iterator[Front]:
    made = Front(rucio, authority, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def dataset(rucio: RucioServer) -> str:
    name = f"login.{uuid.uuid4().hex[:8]}"
    rucio.add_files(RSE, [name])
    return rucio.add_dataset(f"{name}.ds", [name])


def read(dataset: str, **options: Any) -> int:
    return len(RucioCatalog(RucioOptions(account="root", **options)).files(dataset, "").files)


def test_a_certificate_logs_in(front: Front, authority: Authority, dataset: str, tmp_path: Path) -> None:
    authority.person("Robot Pilotage").write(tmp_path / "robot.pem", tmp_path / "robot.key")
    options = {"client_cert": str(tmp_path / "robot.pem"), "client_key": str(tmp_path / "robot.key")}
    assert read(dataset, rucio_host=front.url, auth_type="x509", ca_file=str(authority.folder), **options) == 1
    assert [path for path, _ in front.shown] == ["/auth/x509"]
    assert "Robot Pilotage" in front.shown[0][1]


def test_a_proxy_logs_in_and_an_expired_one_does_not(
    front: Front, authority: Authority, dataset: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"rucio_host": front.url, "auth_type": "x509_proxy", "ca_file": str(authority.folder)}
    proxy = tmp_path / "proxy.pem"
    write_proxy(authority.person("Robot Pilotage"), proxy)
    catalog = RucioCatalog(RucioOptions(account="root", client_proxy=str(proxy), **options))
    assert len(catalog.files(dataset, "").files) == 1
    assert [path for path, _ in front.shown] == ["/auth/x509_proxy"]
    expired = tmp_path / "expired.pem"
    write_proxy(authority.person("Robot Pilotage"), expired, timedelta(hours=-1))
    with pytest.raises(CatalogUnavailable, match="does not answer"):
        read(dataset, client_proxy=str(expired), **options)
    with pytest.raises(CatalogUnavailable, match="does not answer"):
        read(dataset, client_proxy=str(tmp_path / "missing.pem"), **options)


def test_a_server_of_another_authority_is_not_told_anything(
    front: Front, authority: Authority, dataset: str, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    write_proxy(authority.person("Robot Pilotage"), tmp_path / "proxy.pem")
    options = {"auth_type": "x509_proxy", "client_proxy": str(tmp_path / "proxy.pem"), "ca_file": str(other.folder)}
    with pytest.raises(CatalogUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        read(dataset, rucio_host=front.url, **options)
    assert front.shown == []


def test_a_token_of_a_file_is_read_again_when_it_has_expired(rucio: RucioServer, dataset: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    expired = rucio.token()
    rucio.expire(expired)
    write_secret_file(file, expired)
    options = RucioOptions(rucio_host=rucio.url, account="root", auth_type="oidc", token_file=str(file))
    catalog = RucioCatalog(options)
    with pytest.raises(CatalogUnavailable, match="CannotAuthenticate"):
        catalog.files(dataset, "")
    write_secret_file(file, rucio.token())
    assert len(catalog.files(dataset, "").files) == 1
