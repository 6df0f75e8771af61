"""Identities that a web server in front has verified: X.509 certificates and their VOMS attributes.

Over WSGI two headers are one: ``X_Client_Subject`` from a client replaces the front end's ``X-Client-Subject`` (seen with
granian), and two of the same name are joined by a comma. So a secret in a header of its own would prove nothing about the
others. Each value therefore stands between two copies of the secret: what a client slipped in, or appended, has none.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

from common.config import ConfigError
from common.tokens import SecretFileError, read_secret_file
from server.access.mapping import X509, Identity
from server.access.settings import FrontEnd

_MOST_CHARS = 240
_LEAST_SECRET_CHARS = 32
_VOID = re.compile(r"/(Role|Capability)=NULL(?=/|$)")


class Smuggled(Exception):
    """A request carries headers that only the front end may send, and was not sent by it."""


class FrontEndReader:
    """Reads the headers of the front end. Raises ConfigError for settings that cannot be used."""

    def __init__(self, config: FrontEnd) -> None:
        self._config = config
        self._names = (config.verify_header, config.subject_header, config.fqans_header)
        self._secret = b""
        if not config.secret_file:
            return
        where = "[server.front_end]"
        if len({_plain(name) for name in self._names}) < len(self._names) or not all(self._names):
            raise ConfigError(f"{where} the headers' names must differ, dashes and underscores being the same")
        try:
            self._networks = [ipaddress.ip_network(each) for each in config.addresses]
        except ValueError as error:
            raise ConfigError(f"{where} addresses: {error}") from error
        try:
            self._secret = read_secret_file(Path(config.secret_file)).encode()
        except SecretFileError as error:
            raise ConfigError(f"{where} secret_file: {error.detail}") from error
        if len(self._secret) < _LEAST_SECRET_CHARS or b" " in self._secret:
            raise ConfigError(f"{where} secret_file: write at least {_LEAST_SECRET_CHARS} characters, no blanks")

    def read(self, header: Callable[[str], str | None], address: str | None) -> Identity | None:
        """The identity that the front end passes; None if it passes none, or if there is no front end.

        ``header`` finds a header by name, ``address`` is the peer's.

        Raises:
            Smuggled: somebody else sent its headers.
        """
        if not self._secret:
            return None
        values = [header(name) for name in self._names]
        if all(value is None for value in values):
            return None
        if not self._is_ours(address):
            raise Smuggled("only the front end may send its headers, and this address is not the front end's")
        verify, subject, fqans = (None if value is None else self._opened(value) for value in values)
        if verify != self._config.verified or not subject:
            return None  # a client without a certificate, or with a bad one: it has no identity
        if len(subject) > _MOST_CHARS or not subject.isprintable():
            raise Smuggled("the certificate's subject is no name")
        groups = (_VOID.sub("", each.strip()) for each in re.split("[,;]", fqans or ""))
        return Identity(X509, subject, frozenset(each for each in groups if each))

    def _is_ours(self, address: str | None) -> bool:
        try:
            peer = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        mapped = getattr(peer, "ipv4_mapped", None)
        return any((mapped or peer) in network for network in self._networks)

    def _opened(self, value: str) -> str:
        """What stands between the two copies of the secret."""
        # WSGI hands headers over as Latin-1.
        raw = value.encode("latin-1", "replace")
        size = len(self._secret)
        head, tail, middle = raw[:size], raw[-size:], raw[size:-size]
        good = hmac.compare_digest(head, self._secret) & hmac.compare_digest(tail, self._secret)
        if not good or len(raw) < 2 * size + 2 or middle[:1] != b" " or middle[-1:] != b" ":
            raise Smuggled("only the front end may send its headers, and this one lacks its secret")
        try:
            return middle[1:-1].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise Smuggled("the front end's header is no text") from error


def _plain(name: str) -> str:
    return name.upper().replace("-", "_")
