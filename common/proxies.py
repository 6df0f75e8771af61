"""Proxy certificates (RFC 3820): made from a credential of ours, for a key that the caller has or for a new one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

LEAST_RSA_BITS = 2048
EARLIER_S = 300
"""A proxy is valid from so long ago, for clocks that are behind."""
PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")
"""ProxyCertInfo without a limit of its own, policy id-ppl-inheritAll (RFC 3820, 3.8)."""
_LIMITED_OID = bytes.fromhex("060b2b060104019b5001010109")
_LIMITED = bytes.fromhex("300f300d") + _LIMITED_OID
"""The same with Globus' policy of a limited proxy, which all that hang on a limited one must have."""
_INTEGER = 0x02


class BadRequest(Exception):
    """A request for a proxy that is not signed, proves nothing, or asks for a weak key."""


class BadIssuer(Exception):
    """The credential that proxies are made from cannot be used; never shows what is in it."""


@dataclass(frozen=True)
class Proxy:
    """A chain (PEM, the proxy first, without a key), how long it is good for in seconds, and its serial number."""

    chain: str
    life_s: float
    serial: str


def sign_proxy(
    request: str, credential: str, life_s: float, now: float, more: Sequence[x509.ExtensionType] = ()
) -> Proxy:
    """A proxy for the key of ``request`` (PEM), from ``credential``: certificates and key (PEM), the issuer's first.

    It lives for ``life_s`` seconds, or as long as all that it hangs on. Attributes of VOMS that the issuer carries hold
    for it too; ``more`` extensions are its own, not critical.

    Raises:
        BadRequest: the request is not signed with the key that it asks for.
        BadIssuer: the credential has expired or is none.
    """
    return sign_proxy_for(_proven_key(request), credential, life_s, now, more)


def sign_proxy_for(
    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    credential: str,
    life_s: float,
    now: float,
    more: Sequence[x509.ExtensionType] = (),
) -> Proxy:
    """A proxy for a key that the caller knows to be in the right hands; the rest as with :func:`sign_proxy`.

    Raises BadIssuer.
    """
    issuers, key = _issuer(credential)
    issuer = issuers[0]
    left_s = min(each.not_valid_after_utc.timestamp() for each in issuers) - now
    if left_s <= 0:
        raise BadIssuer("it has expired: renew it")
    life_s = min(life_s, left_s)
    number = secrets.randbits(62) | 1
    moment = datetime.fromtimestamp(now, timezone.utc)
    name = x509.Name([*issuer.subject.rdns, x509.RelativeDistinguishedName([_common_name(number)])])
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject)
        .public_key(public)
        .serial_number(number)
        .not_valid_before(max(moment - timedelta(seconds=EARLIER_S), issuer.not_valid_before_utc))
        .not_valid_after(moment + timedelta(seconds=life_s))
        .add_extension(usage, critical=True)
        .add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, _policy(issuer)), critical=True)
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    proxy = builder.sign(key, hashes.SHA256())
    chain = "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in (proxy, *issuers))
    return Proxy(chain, life_s, str(number))


def _common_name(number: int) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, str(number))


def _proven_key(request: str) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """The key of a request, once its signature proves that the caller has the other half."""
    try:
        csr = x509.load_pem_x509_csr(request.encode())
        if not csr.is_signature_valid:
            raise BadRequest("it is not signed with the key that it asks for")
        key = csr.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadRequest("it is no certificate signing request in PEM") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        return key
    raise BadRequest(f"its key is too weak or of an unusual kind: use RSA with {LEAST_RSA_BITS} bits, P-256 or P-384")


def _issuer(credential: str) -> tuple[list[x509.Certificate], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]:
    try:
        certificates = x509.load_pem_x509_certificates(credential.encode())
        key = serialization.load_pem_private_key(credential.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadIssuer("it holds no certificate with its key (PEM, no password)") from error
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise BadIssuer("its key is of an unusual kind: RSA or an elliptic curve is needed")
    if certificates[0].public_key() != key.public_key():
        raise BadIssuer("its first certificate and its key do not belong together")
    return certificates, key


def _policy(issuer: x509.Certificate) -> bytes:
    """The proxy's ProxyCertInfo. Raises BadIssuer when the issuer lets no further proxy hang on it."""
    try:
        found = issuer.extensions.get_extension_for_oid(PROXY_CERT_INFO).value
    except x509.ExtensionNotFound:
        return _INHERIT_ALL
    value = found.value if isinstance(found, x509.UnrecognizedExtension) else b""
    if value[2:3] == bytes([_INTEGER]) and value[4:5] == b"\0":
        raise BadIssuer("it is a proxy that allows no further proxy (path length 0): make it without that limit")
    return _LIMITED if _LIMITED_OID in value else _INHERIT_ALL
