"""Real XRootD servers that let nobody in without a credential: one for WLCG tokens (SciTokens), one for X.509 proxies."""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import pytest
from cryptography import x509

from server.access.minting import JWKS_PATH, Signer, discovery_of
from tests.services.base import ServiceFailed, give_to, require, run
from tests.services.certificates import Authority, Issued
from tests.services.install import install_packages, missing
from tests.services.webdav import started
from tests.services.xrootd import XrootdServer
from tests.services.xrootd import install as install_server

PERSON = "Robot"
PACKAGES = ("xrootd-scitokens-plugins", "xrootd-server-plugins", "xrootd-voms-plugins", "voms-clients")
PLUGINS = ("libXrdAccSciTokens-5.so", "libXrdSecztn-5.so", "libXrdSecgsi-5.so", "libXrdVoms-5.so")
SYSTEM_CAS = Path("/etc/ssl/certs/ca-certificates.crt")


def install() -> None:
    """Install the server and its security plug-ins when missing; raises ServiceUnavailable."""
    install_server()
    if not _has_plugins():
        install_packages("xrootd-secure", PACKAGES)
        if not _has_plugins():
            raise ServiceFailed(f"packages {' '.join(PACKAGES)} brought not all of {' '.join(PLUGINS)}")


def _has_plugins() -> bool:
    found = all(any(Path("/usr/lib").glob(f"*/{name}")) for name in PLUGINS)
    return found and not missing(["voms-proxy-fake"])


class TokenIssuer:
    """Pilotage's built-in issuer behind HTTPS on loopback, as a storage sees it."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        folder.mkdir()
        self.signer = Signer(folder / "issuer.key")
        certificate, key = folder / "host.pem", folder / "host.key"
        authority.host().write(certificate, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def document(self, path: str) -> object:
        """What it answers to a GET; None: nothing."""
        if path == "/.well-known/openid-configuration":
            return discovery_of(self.url)
        return {"keys": [self.signer.public]} if path == JWKS_PATH else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document = issuer.document(self.path)
                body = json.dumps(document).encode()
                self.send_response(404 if document is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler


class SecureXrootd(XrootdServer):
    """What both have: TLS, and the certificates of the test run."""

    def __init__(
        self, folder: Path, authority: Authority, config: Sequence[str], around: Sequence[str | Path] = ()
    ) -> None:
        keys = Path(f"{folder}-keys")
        keys.mkdir(exist_ok=True)
        certificate, key = keys / "host.pem", keys / "host.key"
        authority.host().write(certificate, key)
        give_to("xrootd", key)
        self.certificates = authority.folder
        tls = [f"xrd.tls {certificate} {key}", f"xrd.tlsca certdir {authority.folder}", "xrootd.seclib libXrdSec.so"]
        words = [line.replace("HOST_PEM", str(certificate)).replace("HOST_KEY", str(key)) for line in config]
        super().__init__(folder, [*tls, *words], around)

    def own(self, path: Path) -> None:
        """Give a file made behind the server's back to its user."""
        give_to("xrootd", path)


class Issuer(Protocol):
    """Whose tokens a storage takes."""

    url: str


class TokenXrootd(SecureXrootd):
    """An XRootD server for the tokens of ``issuer``; each is judged by its scopes, below ``/``."""

    def __init__(self, folder: Path, authority: Authority, issuer: Issuer) -> None:
        settings = Path(f"{folder}-settings")
        settings.mkdir()
        self.audience = "https://storage.example.org"
        (settings / "scitokens.cfg").write_text(
            f"[Global]\naudience = {self.audience}\n"
            f"[Issuer test]\nissuer = {issuer.url}\nbase_path = /\ndefault_user = xrootd\n"
        )
        cas = settings / "cas.pem"
        system = SYSTEM_CAS.read_bytes() if SYSTEM_CAS.exists() else b""
        cas.write_bytes(system + authority.file.read_bytes())
        config = [
            "ofs.authorize 1",
            f"ofs.authlib libXrdAccSciTokens.so config={settings}/scitokens.cfg",
            "sec.protocol ztn",
            "sec.protbind * only ztn",
        ]
        super().__init__(folder, authority, config, _trusting(cas))

    @property
    def url(self) -> str:
        """Like that of every server, over TLS."""
        return f"roots://localhost:{self.port}/"


class ProxyXrootd(SecureXrootd):
    """An XRootD server for the proxies of one person."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        settings = Path(f"{folder}-settings")
        settings.mkdir()
        (settings / "grid-mapfile").write_text(f'"/DC=pilotage/CN={PERSON}" xrootd\n')
        gsi = f"-certdir:{authority.folder} -cert:HOST_PEM -key:HOST_KEY -gridmap:{settings}/grid-mapfile"
        config = [f"sec.protocol gsi {gsi} -gmapopt:2 -vomsat:0 -crl:0", "sec.protbind * only gsi"]
        super().__init__(folder, authority, config)


VOMS_HOST = "voms.example.org"
VO = "pilotage"


class VomsXrootd(SecureXrootd):
    """An XRootD server for proxies with attributes of a virtual organisation: others' holders cannot log in."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        settings = Path(f"{folder}-settings")
        self.server = authority.host()
        trusted = settings / "vomsdir" / VO
        trusted.mkdir(parents=True)
        names = [self.server.certificate.subject, self.server.certificate.issuer]
        (settings / "grid-mapfile").write_text(f'"/DC=pilotage/CN={PERSON}" xrootd\n')
        (trusted / f"{VOMS_HOST}.lsc").write_text("".join(f"{_slashed(name)}\n" for name in names))
        gsi = f"-certdir:{authority.folder} -cert:HOST_PEM -key:HOST_KEY -gmapopt:10 -gridmap:{settings}/grid-mapfile -crl:0"
        attributes = "-vomsat:require -vomsfun:libXrdVoms.so"
        config = [f"sec.protocol gsi {gsi} {attributes}", "sec.protbind * only gsi"]
        super().__init__(folder, authority, config, ["env", f"X509_VOMS_DIR={settings}/vomsdir"])


def write_voms_proxy(server: VomsXrootd, person: Issued, path: Path) -> None:
    """Make a proxy with an attribute certificate, as a VOMS server would have signed it: role pilot, a day long."""
    person.write(path.with_suffix(".cert"), path.with_suffix(".key"))
    server.server.write(path.with_suffix(".host"), path.with_suffix(".hostkey"))
    words = {
        "-cert": path.with_suffix(".cert"),
        "-key": path.with_suffix(".key"),
        "-certdir": server.certificates,
        "-hostcert": path.with_suffix(".host"),
        "-hostkey": path.with_suffix(".hostkey"),
        "-voms": VO,
        "-uri": f"{VOMS_HOST}:15000",
        "-fqan": f"/{VO}/Role=pilot",
        "-hours": "24",
        "-out": path,
    }
    run(["voms-proxy-fake", "-rfc", "-bits", "2048", *(each for pair in words.items() for each in pair)])


def _slashed(name: x509.Name) -> str:
    """A name as Globus writes it."""
    return "".join(f"/{each.rfc4514_attribute_name}={each.value!s}" for each in name)


def _trusting(cas: Path) -> list[str | Path]:
    """The words before a command that make it see ``cas`` in place of this machine's authorities.

    The library that verifies tokens reads those only. In a mount namespace of its own, so that the machine stays as it is.
    """
    SYSTEM_CAS.parent.mkdir(parents=True, exist_ok=True)
    if not SYSTEM_CAS.exists():
        raise ServiceFailed(f"{SYSTEM_CAS} is not there: install ca-certificates")
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--mount", *root, "sh", "-c", script, "sh", cas, SYSTEM_CAS]


def trusts_authorities() -> None:
    """Raise ServiceFailed where mount namespaces cannot be made."""
    run(["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "true"])


@pytest.fixture(scope="session")
def token_issuer(services_folder: Path, authority: Authority) -> Iterator[TokenIssuer]:
    """Pilotage's issuer of storage tokens."""
    issuer = TokenIssuer(services_folder / "token-issuer", authority)
    yield issuer
    issuer.stop()


@pytest.fixture(scope="session")
def xrootd_tokens(services_folder: Path, authority: Authority, token_issuer: TokenIssuer) -> Iterator[TokenXrootd]:
    """A running XRootD server that wants tokens."""
    require(install)
    yield from started(require(lambda: TokenXrootd(services_folder / "xrootd-tokens", authority, token_issuer)))


@pytest.fixture(scope="session")
def xrootd_proxies(services_folder: Path, authority: Authority) -> Iterator[ProxyXrootd]:
    """A running XRootD server that wants proxies."""
    require(install)
    yield from started(require(lambda: ProxyXrootd(services_folder / "xrootd-proxies", authority)))


@pytest.fixture(scope="session")
def voms_clients() -> None:
    """The programs that make proxies with attributes."""
    require(install)


@pytest.fixture(scope="session")
def xrootd_voms(services_folder: Path, authority: Authority) -> Iterator[VomsXrootd]:
    """A running XRootD server that wants proxies with attributes."""
    require(install)
    yield from started(require(lambda: VomsXrootd(services_folder / "xrootd-voms", authority)))
