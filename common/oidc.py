"""OpenID Connect as far as server and client need it: discovery, and the device flow (RFC 8628).

What an issuer answers is not trusted further than needed: no redirect is followed, answers have a size and a time limit,
the metadata must be of the very issuer that was asked, and addresses must be https (http to this machine, for tests).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Union
from urllib.parse import quote_plus, urlsplit

import msgspec
import requests
import urllib3.exceptions
from requests.utils import get_environ_proxies

from common.endpoint import certificate_authorities, is_private
from common.errors import ErrorCode, PilotageError
from common.plugins import version

MAX_BYTES = 256 * 1024
TOTAL_S = 10.0
_TIMEOUT = (5.0, 10.0)
_CHUNK_BYTES = 64 * 1024
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_MOST_INTERVAL_S = 300.0
_MOST_LIFE_S = 3600.0


class OidcError(PilotageError):
    """An issuer that cannot be reached, answers something else than it should, or refuses."""

    def __init__(self, detail: str, *, oauth_error: str = "") -> None:
        self.oauth_error = oauth_error
        super().__init__(ErrorCode.COMMUNICATION_FAILED, detail)


@dataclass(frozen=True)
class Metadata:
    """What an issuer says of itself; an endpoint that it does not have is empty."""

    issuer: str
    jwks_uri: str
    token_endpoint: str
    device_endpoint: str


@dataclass(frozen=True)
class DeviceCode:
    """A device flow that has begun: the person opens ``verification_uri`` and enters ``user_code``."""

    device_code: str = field(repr=False)
    user_code: str
    verification_uri: str
    complete_uri: str
    expires_s: float
    interval_s: float


@dataclass(frozen=True)
class TokenSet:
    """Tokens of an issuer; ``expires_s`` counts from now."""

    access_token: str = field(repr=False)
    expires_s: float
    refresh_token: str = field(default="", repr=False)


class OidcHttp:
    """Calls issuers. ``ca_file`` as for :class:`common.http.HttpClient`."""

    def __init__(self, ca_file: Union[str, Path, None] = None) -> None:
        self._verify = certificate_authorities(ca_file) or True

    def get_json(self, url: str) -> dict[str, Any]:
        """A JSON object. Raises OidcError."""
        status, document = self._exchange("GET", url, None)
        if status != 200:
            raise OidcError(f"{url}: status {status}")
        return document

    def post_form(
        self, url: str, fields: Mapping[str, str], *, basic: Optional[tuple[str, str]] = None
    ) -> dict[str, Any]:
        """The answer to a form; ``basic`` are a client's name and secret (RFC 6749, section 2.3.1).

        Raises OidcError, with ``oauth_error`` where the answer names one.
        """
        status, document = self._exchange("POST", url, fields, basic)
        if status != 200:
            word = document.get("error")
            word = word if isinstance(word, str) else ""
            words = document.get("error_description", "")
            raise OidcError(f"{url}: {printable(f'{word or status} {words}')}", oauth_error=word)
        return document

    def _exchange(
        self, method: str, url: str, fields: Optional[Mapping[str, str]], basic: Optional[tuple[str, str]] = None
    ) -> tuple[int, dict[str, Any]]:
        checked_address(url)
        ends = time.monotonic() + TOTAL_S
        try:
            with requests.Session() as session:
                session.trust_env = False  # neither .netrc nor the environment's idea of authorities
                with session.request(
                    method,
                    url,
                    data=dict(fields) if fields is not None else None,
                    # Both are form-encoded before they are joined, as the RFC wants it.
                    auth=None if basic is None else (quote_plus(basic[0]), quote_plus(basic[1])),
                    headers={"Accept": "application/json", "User-Agent": f"pilotage/{version()}"},
                    timeout=_TIMEOUT,
                    allow_redirects=False,
                    stream=True,
                    proxies=get_environ_proxies(url),
                    verify=self._verify,
                ) as response:
                    status, body = response.status_code, _read(response, url, ends)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise OidcError(f"{url}: no answer: {error}") from error
        if 300 <= status < 400:
            raise OidcError(f"{url}: it redirects, which is not followed; correct the address")
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise OidcError(f"{url}: status {status}, and no JSON") from error
        if not isinstance(document, dict):
            raise OidcError(f"{url}: the answer is no JSON object")
        return status, document


def _read(response: requests.Response, url: str, ends: float) -> bytes:
    content = bytearray()
    while piece := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        content += piece
        if len(content) > MAX_BYTES:
            raise OidcError(f"{url}: the answer has more than {MAX_BYTES} bytes")
        if time.monotonic() >= ends:
            raise OidcError(f"{url}: the answer came too slowly")
    return bytes(content)


def checked_address(url: object) -> str:
    """``url``, if a token or a key may travel over it. Raises OidcError."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable or not isinstance(url, str) or not url.isprintable() or " " in url or "@" in urlsplit(url).netloc:
        raise OidcError(f"{printable(str(url))!r} is no address of an issuer")
    if not is_private(url):
        raise OidcError(f"{url}: an issuer must be reached over https")
    return url


def discover(http: OidcHttp, issuer: str) -> Metadata:
    """The issuer's metadata (OpenID Connect Discovery 1.0). Raises OidcError."""
    url = f"{checked_address(issuer).rstrip('/')}/.well-known/openid-configuration"
    document = http.get_json(url)
    if document.get("issuer") != issuer:
        raise OidcError(f"{url}: it is the metadata of {printable(str(document.get('issuer')))!r}, not of {issuer!r}")
    found = {name: document.get(name) or "" for name in ("jwks_uri", "token_endpoint", "device_authorization_endpoint")}
    for address in found.values():
        if address:
            checked_address(address)
            if issuer.startswith("https:") and not address.startswith("https:"):
                raise OidcError(f"{url}: {address} is not https")
    if not found["jwks_uri"]:
        raise OidcError(f"{url}: it names no jwks_uri")
    return Metadata(issuer, found["jwks_uri"], found["token_endpoint"], found["device_authorization_endpoint"])


def start_device_flow(
    http: OidcHttp, metadata: Metadata, client_id: str, scopes: list[str], audience: str
) -> DeviceCode:
    """Begin a device flow (RFC 8628, section 3.1). Raises OidcError."""
    if not metadata.device_endpoint or not metadata.token_endpoint:
        raise OidcError(f"{metadata.issuer}: it offers no device flow; get a token otherwise and give --token-file")
    fields = {"client_id": client_id, "scope": " ".join(scopes)}
    if audience:
        fields["audience"] = audience
    answer = http.post_form(metadata.device_endpoint, fields)
    where = metadata.device_endpoint
    complete = answer.get("verification_uri_complete")
    return DeviceCode(
        device_code=_text(answer, "device_code", where),
        user_code=printable(_text(answer, "user_code", where)),
        verification_uri=checked_address(_text(answer, "verification_uri", where)),
        complete_uri=checked_address(complete) if complete else "",
        expires_s=_number(answer, "expires_in", 600.0, _MOST_LIFE_S),
        interval_s=max(1.0, _number(answer, "interval", 5.0, _MOST_INTERVAL_S)),
    )


def finish_device_flow(
    http: OidcHttp, metadata: Metadata, client_id: str, code: DeviceCode, pause: Callable[[float], object]
) -> TokenSet:
    """Ask until the person has agreed (RFC 8628, section 3.4), with ``pause(seconds)`` between. Raises OidcError."""
    fields = {"grant_type": DEVICE_GRANT, "device_code": code.device_code, "client_id": client_id}
    interval_s, waited_s = code.interval_s, 0.0
    while waited_s < code.expires_s:
        pause(interval_s)
        waited_s += interval_s
        try:
            return _token_set(http.post_form(metadata.token_endpoint, fields), metadata.token_endpoint)
        except OidcError as error:
            if error.oauth_error == "slow_down":
                interval_s += 5.0  # as the RFC wants it
            elif error.oauth_error == "access_denied":
                raise OidcError("the login was refused at the issuer", oauth_error=error.oauth_error) from error
            elif error.oauth_error == "expired_token":
                break
            elif error.oauth_error not in ("authorization_pending", ""):
                raise
            elif not error.oauth_error:
                interval_s = min(2 * interval_s, _MOST_INTERVAL_S)  # it did not answer: less often
    raise OidcError("nobody agreed to the login in time; start again", oauth_error="expired_token")


def renew(http: OidcHttp, token_endpoint: str, client_id: str, refresh_token: str) -> TokenSet:
    """New tokens for a refresh token (RFC 6749, section 6). Raises OidcError."""
    fields = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": client_id}
    found = _token_set(http.post_form(token_endpoint, fields), token_endpoint)
    return found if found.refresh_token else TokenSet(found.access_token, found.expires_s, refresh_token)


def client_credentials(
    http: OidcHttp, token_endpoint: str, client_id: str, secret: str, scopes: list[str], audience: str
) -> TokenSet:
    """A token for a program that has a name and a secret at the issuer (RFC 6749, section 4.4). Raises OidcError."""
    fields = {"grant_type": "client_credentials"}
    if scopes:
        fields["scope"] = " ".join(scopes)
    if audience:
        fields["audience"] = audience
    return _token_set(http.post_form(token_endpoint, fields, basic=(client_id, secret)), token_endpoint)


def _token_set(answer: Mapping[str, Any], where: str) -> TokenSet:
    refresh = answer.get("refresh_token")
    return TokenSet(
        access_token=_text(answer, "access_token", where),
        expires_s=_number(answer, "expires_in", 3600.0, 365 * 86400.0),
        refresh_token=refresh if isinstance(refresh, str) else "",
    )


def _text(answer: Mapping[str, Any], name: str, where: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise OidcError(f"{where}: the answer has no {name}")
    return value


def _number(answer: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = answer.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return default
    return float(min(value, most))


def printable(text: str) -> str:
    """``text`` without anything that could steer a terminal, shortened."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:500]
