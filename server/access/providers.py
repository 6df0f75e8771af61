"""Who gives credentials for storages: sections ``[server.credentials.NAME]``, each of one of three kinds."""

from __future__ import annotations

import logging
import threading
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, Union

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.oidc import OidcError, OidcHttp, checked_address, discover
from common.proxies import BadIssuer, sign_proxy
from common.tokens import SecretFileError, read_secret_file
from common.wire import CredentialKind
from server.access.minting import Signer, discovery_of

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Requests that wait for a token endpoint in a process: the other threads go on serving."""
WAIT_S = 5.0
"""How long a request waits to be one of them."""
TOLD_AGAIN_S = 600.0
"""After how long it is told again that a provider fails."""
CLIENT_CREDENTIALS = "client_credentials"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

Life = Annotated[float, msgspec.Meta(ge=60, le=7 * 86400)]


class MintedTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="minted", tag_field="kind"):
    """Tokens that this server signs itself; storages must trust ``issuer``, which is this server's address for them."""

    issuer: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\x00-\x20]+$(?!\n)", max_length=2048)]
    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "pilotage"
    life_s: Life = 3600.0
    key_file: str = ""


class EndpointTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="oidc", tag_field="kind"):
    """Tokens from an OpenID Connect issuer: for this client itself, or in exchange for the token in a file (RFC 8693)."""

    issuer: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    client_id: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    client_secret_file: Annotated[str, msgspec.Meta(min_length=1)]
    subject_token_file: str = ""
    ca_file: str = ""
    life_s: Life = 3600.0


class Proxies(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="proxy", tag_field="kind"):
    """Proxies of a robot's certificate, or of a proxy (with VOMS attributes) that somebody keeps fresh in that file.

    With ``read_only`` it may write nowhere: only such ones are given to payloads.
    """

    credential_file: Annotated[str, msgspec.Meta(min_length=1)]
    life_s: Life = 43200.0
    read_only: bool = False


Section = Union[MintedTokens, EndpointTokens, Proxies]


class ProviderFailed(Exception):
    """A provider gives nothing now; the words are for admins and hold no secret."""


@dataclass(frozen=True)
class Given:
    """A credential: a token, or a chain of certificates (PEM). ``life_s`` is how long it is good for, ``number`` its id."""

    content: str = field(repr=False)
    life_s: float
    number: str


class TokenProvider(Protocol):
    """Gives tokens."""

    def token(self, audience: str, scopes: Sequence[str]) -> Given:
        """A token for exactly this. Raises ProviderFailed."""


class _Minted:
    def __init__(self, name: str, section: MintedTokens, state_dir: str, clock: Clock) -> None:
        self.section = section
        self._clock = clock
        self.signer = Signer(Path(section.key_file or Path(state_dir) / f"storage-tokens-{name}.key"))

    def token(self, audience: str, scopes: Sequence[str]) -> Given:
        """A token of our own."""
        of = self.section
        token, number = self.signer.mint(of.issuer, of.subject, audience, scopes, of.life_s, self._clock.now())
        return Given(token, of.life_s, number)


class _Endpoint:
    def __init__(self, name: str, section: EndpointTokens) -> None:
        try:
            checked_address(section.issuer)
        except OidcError as error:
            raise ConfigError(f"[server.credentials.{name}] issuer: {error.detail}") from error
        self._section = section
        self._http = OidcHttp(section.ca_file or None)
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._token_endpoint = ""
        _secret(section.client_secret_file, f"[server.credentials.{name}] client_secret_file")

    def token(self, audience: str, scopes: Sequence[str]) -> Given:
        """A token from the issuer's token endpoint."""
        if not self._free.acquire(timeout=WAIT_S):
            raise ProviderFailed(f"{self._section.issuer} is slow: {AT_ONCE} requests wait for it already")
        try:
            return self._ask(audience, scopes)
        except (OidcError, SecretFileError) as error:
            raise ProviderFailed(error.detail) from error
        finally:
            self._free.release()

    def _ask(self, audience: str, scopes: Sequence[str]) -> Given:
        of = self._section
        if not self._token_endpoint:
            self._token_endpoint = discover(self._http, of.issuer).token_endpoint
        if not self._token_endpoint:
            raise ProviderFailed(f"{of.issuer} names no token endpoint")
        fields = {"scope": " ".join(scopes), "audience": audience}
        if of.subject_token_file:
            fields["grant_type"] = TOKEN_EXCHANGE
            fields["subject_token"] = read_secret_file(of.subject_token_file)
            fields["subject_token_type"] = fields["requested_token_type"] = ACCESS_TOKEN
        else:
            fields["grant_type"] = CLIENT_CREDENTIALS
        secret = read_secret_file(of.client_secret_file)
        answer = self._http.post_form(self._token_endpoint, fields, basic=(of.client_id, secret))
        return _checked(answer, scopes, of)


def _checked(answer: Mapping[str, Any], scopes: Sequence[str], of: EndpointTokens) -> Given:
    """The token in an answer, if it allows nothing beyond what was asked for."""
    token, life_s = answer.get("access_token"), answer.get("expires_in", 0)
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise ProviderFailed(f"{of.issuer}: its answer has no access_token")
    claims = _claims(token)
    said = answer.get("scope", claims.get("scope"))
    granted = set(said.split()) if isinstance(said, str) else set(scopes)
    more, fewer = sorted(granted - set(scopes)), sorted(set(scopes) - granted)
    if more:
        raise ProviderFailed(f"{of.issuer} grants more than was asked for ({more[0]}): narrow the client's scopes")
    if fewer:
        raise ProviderFailed(f"{of.issuer} does not grant {fewer[0]}: allow the client that scope")
    if isinstance(life_s, bool) or not isinstance(life_s, (int, float)) or life_s <= 0:
        raise ProviderFailed(f"{of.issuer}: its answer has no expires_in")
    number = claims.get("jti")
    return Given(token, min(float(life_s), of.life_s), number if isinstance(number, str) else "")


def _claims(token: str) -> Mapping[str, Any]:
    """What a token says, if it is a JWT; the storage verifies it, not we."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        found = msgspec.json.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class ProxyProvider:
    """Gives proxies."""

    def __init__(self, name: str, section: Proxies, clock: Clock) -> None:
        self.section = section
        self._clock = clock
        _secret(section.credential_file, f"[server.credentials.{name}] credential_file")

    def proxy(self, request: str) -> Given:
        """A proxy for the key of a request. The file is read each time: somebody may have renewed it.

        Raises:
            BadRequest: the request proves no key.
            ProviderFailed: the credential is not there, or has expired.
        """
        path = self.section.credential_file
        try:
            proxy = sign_proxy(request, read_secret_file(path), self.section.life_s, self._clock.now())
        except SecretFileError as error:
            raise ProviderFailed(error.detail) from error
        except BadIssuer as error:
            raise ProviderFailed(f"{path}: {error}") from error
        return Given(proxy.chain, proxy.life_s, proxy.serial)


class Providers:
    """All that are configured, by the names of their sections.

    Raises:
        ConfigError: a section is wrong, or a file that it names cannot be used.
    """

    def __init__(self, sections: Mapping[str, Mapping[str, Any]], state_dir: str, clock: Clock) -> None:
        self.tokens: dict[str, TokenProvider] = {}
        self.proxies: dict[str, ProxyProvider] = {}
        self._clock = clock
        self._minted: list[_Minted] = []
        self._failing: dict[str, float] = {}
        self._mutex = threading.Lock()
        for name, table in sorted(sections.items()):
            try:
                section: Section = msgspec.convert(table, Section)
            except msgspec.ValidationError as error:
                raise ConfigError(f"[server.credentials.{name}] {error}; kind: minted, oidc or proxy") from error
            if isinstance(section, MintedTokens):
                self._minted.append(_Minted(name, section, state_dir, clock))
                self.tokens[name] = self._minted[-1]
            elif isinstance(section, EndpointTokens):
                self.tokens[name] = _Endpoint(name, section)
            else:
                self.proxies[name] = ProxyProvider(name, section, clock)
        if len({each.section.issuer for each in self._minted}) > 1:
            raise ConfigError("[server.credentials] sections of kind minted have different issuers: this server is one")

    def names(self, kind: CredentialKind) -> list[str]:
        """The sections that give such credentials."""
        found: Mapping[str, object] = self.tokens if kind is CredentialKind.TOKEN else self.proxies
        return sorted(found)

    def discovery(self) -> dict[str, Any] | None:
        """What the built-in issuer says of itself; None if there is none."""
        return discovery_of(self._minted[0].section.issuer) if self._minted else None

    def jwks(self) -> dict[str, Any] | None:
        """The public keys of the built-in issuer; None if there is none."""
        return {"keys": [each.signer.public for each in self._minted]} if self._minted else None

    def failed(self, name: str) -> bool:
        """Note down that a provider failed; whether that is worth an event."""
        now = self._clock.monotonic()
        with self._mutex:
            told = self._failing.get(name)
            if told is not None and now - told < TOLD_AGAIN_S:
                return False
            self._failing[name] = now
            return True

    def well(self, name: str) -> None:
        """Note down that a provider gave something."""
        with self._mutex:
            self._failing.pop(name, None)


def _secret(path: str, where: str) -> None:
    """Look at the start whether a file can be used, so that an admin sees it then."""
    try:
        read_secret_file(path)
    except SecretFileError as error:
        raise ConfigError(f"{where}: {error.detail}") from error
