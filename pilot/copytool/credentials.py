"""What a storage is shown to let us in: bearer tokens and X.509 proxies that somebody keeps fresh.

A tool asks for a credential anew for each connection that it opens, and whoever renews a proxy replaces its file: so a
transfer that outlives its credential goes on with the next one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Protocol

from common.tokens import discover_token


@dataclass(frozen=True)
class Credential:
    """A bearer ``token``, its text; and the file of a proxy (certificate chain and key, PEM, mode 0600); either may be
    missing. ``token_file`` is a file of mode 0600 with the token, for tools that want one."""

    token: Optional[str] = field(default=None, repr=False)
    proxy_file: Optional[Path] = None
    token_file: Optional[Path] = None


class CredentialSource(Protocol):
    """Where copytools get their credentials from."""

    def for_url(self, url: str, *, write: bool) -> Credential:
        """What to show for reading, or writing and removing, at ``url``. May wait for the server.

        Raises PilotageError when there should be one and it cannot be had.
        """


class Ambient:
    """What this process was given by its surroundings: WLCG's discovery of a token, and ``X509_USER_PROXY``."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # The token of Pilotage's own user is none of a storage's business.
        self._environ = {name: value for name, value in environ.items() if name != "PILOTAGE_TOKEN_FILE"}

    def for_url(self, url: str, *, write: bool) -> Credential:
        """The same for every storage."""
        proxy = Path(self._environ.get("X509_USER_PROXY") or f"/tmp/x509up_u{os.geteuid()}")
        return Credential(discover_token(None, self._environ), proxy if proxy.is_file() else None)
