"""Configuration of access: issuers, the front end, limits. Parts of section ``[server]``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.wire import Name

ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
"""What an issuer may sign with: public keys only, so that no published key can serve as a shared secret."""


class OidcIssuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[server.oidc]]``: an issuer whose tokens are taken."""

    label: Name
    """Short name: its people are called ``label:subject``, and the mapping file refers to it by this."""
    issuer: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    """Its URL, exactly as its tokens have it in ``iss``."""
    audience: Annotated[list[str], msgspec.Meta(min_length=1)]
    """A token must be meant for one of these."""
    algorithms: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["RS256", "ES256"]
    )
    """What it signs with; tokens signed otherwise are refused."""
    groups_claim: str = "wlcg.groups"
    """The claim that lists a person's groups; a dot in it is part of the name."""
    client_id: str = ""
    """The client as which ``pilotage login --oidc`` logs in; without one that is not offered."""
    scopes: list[str] = msgspec.field(default_factory=lambda: ["openid", "offline_access", "wlcg.groups"])
    """What that login asks for."""
    ca_file: str = ""
    """Authorities to verify it with (PEM), in place of the system's."""
    refresh_s: float = 3600.0
    """Age at which its keys are fetched again."""
    unknown_key_s: float = 30.0
    """How often, at most, a token with an unknown key makes the server fetch its keys again."""
    keep_keys_s: float = 86400.0
    """How long its keys count while it cannot be reached."""


class FrontEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.front_end]``: a web server in front that verifies certificates. Without ``secret_file`` there is none.

    It must write each value between two copies of the secret, with blanks: ``SECRET SUCCESS SECRET``.
    """

    secret_file: str = ""
    """A file of mode 0600 with the secret that it shares with this server."""
    addresses: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.0/8", "::1/128"])
    """Networks from which it calls."""
    subject_header: str = "X-Client-Subject"
    """The header with the certificate's subject."""
    fqans_header: str = "X-Client-Fqans"
    """The header with the VOMS attributes, separated by commas or semicolons."""
    verify_header: str = "X-Client-Verify"
    """The header that says ``verified`` if the certificate is good."""
    verified: str = "SUCCESS"
    """What that header says then."""


class RoleLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one caller may ask for: requests a second in the long run and at once, and bytes of a body. Zero: no limit."""

    per_s: float = 0.0
    burst: float = 0.0
    body_mb: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.limits]``: for each kind of caller. Callers without a token are told apart by their address."""

    anybody: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(50.0, 500.0, 1))
    person: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(100.0, 1000.0, 256))
    """A list of a million files fits."""
    admin: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(500.0, 5000.0, 256))
    harvester: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(200.0, 2000.0, 64))
    outside_worker: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(1000.0, 5000.0, 16))
    foreign_pilot: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(1000.0, 5000.0, 16))
    """All pilots that share an identity, as those of PanDA do, together."""
    worker: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(0.0, 0.0, 1))
    pilot: RoleLimit = msgspec.field(default_factory=lambda: RoleLimit(0.0, 0.0, 16))
    """Pilots are paced by what the server tells them."""
