"""Rucio's REST interface, as far as the server calls it: a session of its own, time-outs on every call, one retry layer.

Rucio's own clients are made for programs that a person starts: they read ``rucio.cfg`` and the environment, keep tokens
in files of a common folder, ask on the terminal, and wait inside two layers of retries. A server with several catalogues
needs none of that; what they send over the wire is sent here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.util.retry import Retry

from common.config import ConfigError
from common.endpoint import certificate_authorities, checked_url, is_private
from common.tokens import SecretFileError, check_bearer, read_secret_file

logger = logging.getLogger(__name__)

Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s?#]+$", max_length=2048)]

PING_S = 30.0
"""An answer that is younger than this stands for a ping."""
PING_TIMEOUT_S = 10.0
CALL_LIMIT_S = 1800.0
"""A streamed answer that is not over by then is given up."""
_EXPIRED = frozenset({"CannotAuthenticate", "CannotAuthorize"})
_DENIED = frozenset({"AccessDenied", "RSEAccessDenied", "ScopeAccessDenied", "CannotAuthenticate", "CannotAuthorize"})
_LATER = frozenset({"ResourceTemporaryUnavailable", "DatabaseException", "ServiceUnavailable", "RSEWriteBlocked"})
_REFUSED = frozenset({"InvalidObject", "InvalidPath", "InvalidType", "InputValidationError", "UnsupportedOperation"})
"""What Rucio calls a mistake of its own (500) now and then, though it is the caller's; so with ``_DENIED``."""
_RETRIED = (502, 503, 504)


class RucioAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach a Rucio server and who we are there; most words are those of ``rucio.cfg``.

    Secrets are files of mode 0600 and read at each login, so that they may be renewed: ``password_file`` for
    ``userpass``, ``client_key`` beside ``client_cert`` for ``x509``, ``client_proxy`` for ``x509_proxy``, ``token_file``
    (a bearer token that Rucio takes) for ``oidc``.
    """

    rucio_host: Url
    auth_host: Url | None = None
    account: str | None = None
    vo: str | None = None
    auth_type: Literal["userpass", "x509", "x509_proxy", "oidc"]
    username: str | None = None
    password_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    client_proxy: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


NEEDED: dict[str, tuple[str, ...]] = {
    "userpass": ("username", "password_file"),
    "x509": ("client_cert", "client_key"),
    "x509_proxy": ("client_proxy",),
    "oidc": ("token_file",),
}
"""What each ``auth_type`` cannot do without."""


class RucioDown(Exception):
    """No answer, or one that says "not now": asking again later may help, and nothing is known."""


class RucioTrouble(RucioDown):
    """Rucio answers that something went wrong inside it: perhaps with one of the files that it was told of at once."""


class RucioDenied(Exception):
    """The account may not do that, or cannot log in: somebody must see to it, here or there."""


class RucioRefusal(Exception):
    """Rucio's no. ``name`` is the class of its exception, such as ``DataIdentifierNotFound``."""

    def __init__(self, name: str, words: str) -> None:
        self.name = name
        super().__init__(f"{name}: {words}"[:2000])


class RucioClient:
    """Calls one Rucio server; threads may share it.

    Raises:
        ConfigError: a setting is missing, or a secret would travel in the open.
    """

    def __init__(self, access: RucioAccess) -> None:
        self._access = access
        missing = [key for key in NEEDED[access.auth_type] if getattr(access, key) is None]
        if missing:
            raise ConfigError(f"auth_type {access.auth_type} of Rucio needs {' and '.join(missing)}")
        self._url = checked_url(access.rucio_host)
        self._auth_url = checked_url(access.auth_host or access.rucio_host)
        for url in (self._url, self._auth_url):
            if not is_private(url):
                raise ConfigError(f"{url}: a token or password for Rucio goes over https only, but on this machine")
        self._verify: str | bool = certificate_authorities(access.ca_file) or True
        self._session = requests.Session()
        self._session.trust_env = False  # no .netrc; proxies are given to each call
        # The one retry layer; every call of ours may be repeated.
        retry = Retry(
            total=2, backoff_factor=0.3, status_forcelist=_RETRIED, allowed_methods=None, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        self._mutex = threading.Lock()
        self._token = ""
        self._answered = 0.0
        self._account = ""

    @property
    def shown(self) -> str:
        """The server's address, for people."""
        return self._url

    def account(self) -> str:
        """Who we are there. Raises as :meth:`ask`."""
        if not self._account:
            self._account = self._access.account or str(self.ask("GET", "/accounts/whoami")["account"])
        return self._account

    def awake(self) -> None:
        """Make sure that Rucio answers, before a round of work. Raises RucioDown."""
        if time.monotonic() - self._answered < PING_S:
            return
        reply = self._send("GET", f"{self._url}/ping", timeout=PING_TIMEOUT_S)
        with reply:
            if reply.status_code != 200:
                self._answered = 0.0
                raise RucioDown(f"Rucio at {self._url} answers its ping with {reply.status_code} {reply.reason}")

    def ask(self, method: str, path: str, body: object = None, params: Mapping[str, str] | None = None) -> Any:
        """Call, and give the answer: decoded JSON, or None where there is none.

        Raises:
            RucioDown: no answer now.
            RucioDenied: the account may not.
            RucioRefusal: Rucio says no.
        """
        with self._call(method, path, body, params) as reply:
            content = self._content(reply)
        if not content.strip() or "json" not in reply.headers.get("Content-Type", ""):
            return None
        return self._decoded(content)

    def stream(
        self, method: str, path: str, body: object = None, params: Mapping[str, str] | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """Call, and give the answer's lines one by one as they come. Raises as :meth:`ask` does."""
        end = time.monotonic() + CALL_LIMIT_S
        with self._call(method, path, body, params) as reply:
            try:
                for line in reply.iter_lines(chunk_size=65536):
                    if line:
                        yield self._decoded(line)
                    if time.monotonic() > end:
                        raise RucioDown(f"{path}: Rucio's answer is not over after {CALL_LIMIT_S:.0f} s")
            except requests.RequestException as error:
                raise self._down(error) from error
        self._answered = time.monotonic()

    def _call(self, method: str, path: str, body: object, params: Mapping[str, str] | None) -> requests.Response:
        reply = self._with_token(method, path, body, params, self._login(""))
        if reply.status_code == 401 and _exception_of(reply)[0] in _EXPIRED:
            reply.close()
            reply = self._with_token(method, path, body, params, self._login(self._token))
        if reply.status_code // 100 != 2:
            with reply:
                raise self._error(reply)
        return reply

    def _with_token(
        self, method: str, path: str, body: object, params: Mapping[str, str] | None, token: str
    ) -> requests.Response:
        headers = {"X-Rucio-Auth-Token": token, "Content-Type": "application/json"}
        data = None if body is None else msgspec.json.encode(body)
        return self._send(method, self._url + path, headers=headers, data=data, params=params)

    def _login(self, stale: str) -> str:
        """The token; a new one if there is none, or only the ``stale`` one."""
        with self._mutex:
            if not self._token or self._token == stale:
                self._token = self._new_token()
            return self._token

    def _new_token(self) -> str:
        access = self._access
        try:
            if access.auth_type == "oidc":
                assert access.token_file is not None
                return check_bearer(read_secret_file(access.token_file))
            headers = self._password() if access.auth_type == "userpass" else {}
        except SecretFileError as error:
            raise RucioDenied(f"Rucio login: {error}") from error
        cert = access.client_proxy if access.auth_type == "x509_proxy" else None
        pair = (access.client_cert, access.client_key) if access.auth_type == "x509" else None
        url = f"{self._auth_url}/auth/{access.auth_type}"
        with self._send("GET", url, headers=headers, cert=cert or pair) as reply:
            if reply.status_code != 200:
                raise self._error(reply)
            token = reply.headers.get("X-Rucio-Auth-Token", "")
        if not token:
            raise RucioDenied(f"Rucio at {self._auth_url} answers a login without a token")
        return token

    def _password(self) -> dict[str, str]:
        assert self._access.username is not None and self._access.password_file is not None
        password = read_secret_file(self._access.password_file)
        return {"X-Rucio-Username": self._access.username, "X-Rucio-Password": password}

    def _send(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 0.0, **more: Any
    ) -> requests.Response:
        wait = timeout or self._access.timeout_s
        sent = {"Accept": "*/*", "User-Agent": "pilotage", **(headers or {})}
        if self._access.account is not None:
            sent["X-Rucio-Account"] = self._access.account
        if self._access.vo is not None:
            sent["X-Rucio-VO"] = self._access.vo
        try:
            reply = self._session.request(
                method, url, headers=sent, timeout=(min(10.0, wait), wait), verify=self._verify, stream=True,
                allow_redirects=False, proxies=get_environ_proxies(url), **more,
            )  # fmt: skip
        except (requests.RequestException, OSError) as error:  # OSError: a certificate that cannot be read
            raise self._down(error) from error
        self._answered = time.monotonic()
        return reply

    def _content(self, reply: requests.Response) -> bytes:
        try:
            return reply.content
        except requests.RequestException as error:
            raise self._down(error) from error

    def _decoded(self, text: bytes) -> Any:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RucioDown(f"Rucio at {self._url} answers what is not JSON: {error}") from error

    def _down(self, error: Exception) -> RucioDown:
        self._answered = 0.0
        return RucioDown(f"Rucio at {self._url} does not answer: {type(error).__name__}: {error}"[:1000])

    def _error(self, reply: requests.Response) -> Exception:
        name, words = _exception_of(reply)
        shown = f"{name or reply.status_code}: {words or reply.reason}"[:1500]
        if name in _REFUSED:
            return RucioRefusal(name, words)
        if name in _DENIED or reply.status_code in (401, 403):
            who = f"account {self._access.account}" if self._access.account else "our account"
            return RucioDenied(f"Rucio does not let {who} do this: {shown}")
        if reply.status_code == 500 and name:
            return RucioTrouble(f"Rucio at {self._url} answers {reply.status_code} {shown}")
        if reply.status_code >= 500 or reply.status_code in (408, 429) or name in _LATER or not name:
            self._answered = 0.0
            return RucioDown(f"Rucio at {self._url} answers {reply.status_code} {shown}")
        return RucioRefusal(name, words)


def _exception_of(reply: requests.Response) -> tuple[str, str]:
    """The class and the message of Rucio's exception: both stand in the headers."""
    words = reply.headers.get("ExceptionMessage", "").strip().strip('"')
    return reply.headers.get("ExceptionClass", ""), words


def did_of(scope: str, name: str) -> str:
    """``scope:name``."""
    return f"{scope}:{name}"


def parts_of(did: str) -> dict[str, str]:
    """A DID as Rucio's calls want it."""
    scope, _, name = did.partition(":")
    return {"scope": scope, "name": name}


def path_of(did: str) -> str:
    """A DID in the path of a call."""
    scope, _, name = did.partition(":")
    return f"{quote(scope, safe='')}/{quote(name, safe='')}"
