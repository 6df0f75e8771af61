"""Kind ``proxy``: an RFC 3820 proxy made here, from a certificate or from a long proxy that somebody made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from common.clock import Clock
from common.errors import PilotageError
from common.proxies import BadIssuer, sign_proxy
from common.tokens import read_secret_file
from common.x509 import new_request, proxy_file
from harvester.credentials.base import CommonKeys, CredentialError, read_keys
from harvester.credentials.voms import VomsKeys, attributes

GRID_CERTIFICATES = "/etc/grid-security/certificates"
"""Where grid machines have their certificate authorities."""


class ProxyKeys(CommonKeys, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Keys of kind ``proxy``."""

    certificate: str
    """A certificate, or a proxy with its chain (PEM). Whatever VOMS attributes it carries hold for the new one too."""
    key: str | None = None
    """Its key (PEM, no password, mode 0600), where the certificate's file does not hold it."""
    life_s: Annotated[float, msgspec.Meta(ge=60)] = 43200.0
    """How long the proxy is to live; never longer than what it hangs on."""
    voms: list[VomsKeys] = []
    """VOMS servers to get attributes from, each of one experiment."""
    ca_path: str = GRID_CERTIFICATES
    """Certificate authorities to verify VOMS servers with: a PEM file, or a folder as grid machines have it."""


class ProxySource:
    """Makes proxies with a key of their own each."""

    def __init__(self, keys: ProxyKeys, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._certificate = Path(keys.certificate).expanduser()
        self._key = Path(keys.key).expanduser() if keys.key is not None else self._certificate

    @classmethod
    def create(cls, keys: Mapping[str, Any], _memory: Path, clock: Clock) -> ProxySource:
        """Make one from its table. Raises ConfigError."""
        return cls(read_keys(keys, ProxyKeys), clock)

    def obtain(self) -> str:
        """A new proxy: its certificate, its key, and the certificates that it hangs on."""
        key, request = new_request()
        pair = (str(self._certificate), str(self._key))
        extensions = attributes(self._keys.voms, pair, self._keys.ca_path, self._keys.life_s)
        try:
            proxy = sign_proxy(request, self._issuer(), self._keys.life_s, self._clock.now(), extensions)
        except BadIssuer as error:
            raise CredentialError(f"{self._certificate}: {error}") from error
        return proxy_file(proxy.chain, key).strip()

    def _issuer(self) -> str:
        try:
            if self._key == self._certificate:
                return read_secret_file(self._certificate)
            return self._certificate.read_text(encoding="ascii") + "\n" + read_secret_file(self._key)
        except PilotageError as error:
            raise CredentialError(error.detail) from error
        except OSError as error:
            raise CredentialError(f"{self._certificate}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CredentialError(f"{self._certificate}: it is no certificate in PEM") from error
