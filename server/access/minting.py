"""The built-in issuer of storage tokens (WLCG profile 1.0): signed with a key of its own, whose public half anybody may see.

The tokens with which people and pilots call this server are signed otherwise and never leave it; these are for others to
verify, so they are signed with an elliptic curve (ES256).
"""

from __future__ import annotations

import hashlib
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.config import ConfigError
from common.tokens import SecretFileError, create_secret_file, read_secret_file

ALGORITHM = "ES256"
JWKS_PATH = "/v1/jwks"
EARLIER_S = 60
"""A token is good from so long ago, for clocks that are behind."""


class Signer:
    """Signs with the key in a file (PEM, mode 0600), which is made when it is missing. Raises ConfigError."""

    def __init__(self, key_file: Path) -> None:
        try:
            if not key_file.exists():
                create_secret_file(key_file, _new_key())
            key = serialization.load_pem_private_key(read_secret_file(key_file).encode(), None)
        except SecretFileError as error:
            raise ConfigError(error.detail) from error
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{key_file}: no key for storage tokens: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(f"{key_file}: it holds no P-256 key: remove it for a new one")
        self._key = key
        numbers = key.public_key().public_numbers()
        shape = {"crv": "P-256", "kty": "EC", "x": _coordinate(numbers.x), "y": _coordinate(numbers.y)}
        # The thumbprint of RFC 7638: the members in their order, without blanks.
        self.kid = _base64url(hashlib.sha256(msgspec.json.encode(shape)).digest())
        self.public: dict[str, Any] = {**shape, "kid": self.kid, "use": "sig", "alg": ALGORITHM}

    def mint(
        self, issuer: str, subject: str, audience: str, scopes: Sequence[str], life_s: float, now: float
    ) -> tuple[str, str]:
        """A token and its id. Times in seconds."""
        token_id = uuid.uuid4().hex
        claims = {
            "wlcg.ver": "1.0",
            "iss": issuer,
            "sub": subject,
            "aud": audience,
            "scope": " ".join(scopes),
            "iat": int(now),
            "nbf": int(now) - EARLIER_S,
            "exp": int(now + life_s),
            "jti": token_id,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": self.kid}), token_id


def discovery_of(issuer: str) -> dict[str, Any]:
    """What an issuer says of itself, for those who verify its tokens (OpenID Connect Discovery 1.0)."""
    address = issuer.rstrip("/")
    return {
        "issuer": issuer,
        "jwks_uri": f"{address}{JWKS_PATH}",
        "response_types_supported": ["none"],
        "grant_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
    }


def _new_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _coordinate(number: int) -> str:
    return _base64url(number.to_bytes(32, "big"))


def _base64url(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
