"""Who stands behind a chain of proxy certificates: verified by RFC 3820 and RFC 5280, against a folder of authorities.

The chain leads from the proxy over those that it hangs on to a person's certificate, and may hold intermediate authorities
behind that. The folder is what grid services have in ``/etc/grid-security/certificates``: authorities (PEM) and, as
``*.r0``, their lists of revoked certificates, which count where they are there.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from common.config import ConfigError
from common.proxies import LEAST_RSA_BITS, PROXY_CERT_INFO

MOST_CERTIFICATES = 20
MOST_CHARS = 200_000
MOST_NAME = 240
CLOCK_S = 300.0
"""How far the clock of whoever made a certificate may be ahead."""
_POLICIES = {
    bytes.fromhex("06082b06010505071501"): "inherits all",
    bytes.fromhex("060b2b060104019b5001010109"): "limited",
}
"""Policies under which a proxy may speak for its person, by their identifiers in DER (RFC 3820, 3.8.2)."""
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.CERTIFICATE_POLICIES,
        PROXY_CERT_INFO,
    }
)
_WORDS = {
    NameOID.COMMON_NAME: "CN",
    NameOID.COUNTRY_NAME: "C",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.STREET_ADDRESS: "street",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.USER_ID: "UID",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.GIVEN_NAME: "GN",
    NameOID.SURNAME: "SN",
    NameOID.TITLE: "title",
}
_LIKE_A_PART = re.compile(r"/[\w.\- ]+=")
_WEAK = (hashes.MD5, hashes.SHA1)


class BadChain(Exception):
    """A chain that proves nothing; the words say why."""


@dataclass(frozen=True)
class Proved:
    """Somebody's identity. ``subject`` is the person's (``/DC=org/CN=Alice``); ``chain`` leads from the proxy to it (PEM).

    ``expires`` is when the first of its certificates ends, in seconds since the epoch; ``proxies`` of them are proxies.
    """

    subject: str
    chain: tuple[x509.Certificate, ...]
    expires: float
    proxies: int

    def pem(self) -> str:
        """The chain as text, the proxy first."""
        return "".join(each.public_bytes(Encoding.PEM).decode() for each in self.chain)


@dataclass(frozen=True)
class Authorities:
    """Those whose certificates count, and their lists of revoked ones."""

    certificates: tuple[x509.Certificate, ...]
    revoked: tuple[x509.CertificateRevocationList, ...]


def read_authorities(folder: str) -> Authorities:
    """What a folder holds, read again when a file of it has changed.

    Raises ConfigError: there is no authority in it.
    """
    try:
        found = [(each.name, each.stat()) for each in os.scandir(folder)]
    except OSError as error:
        raise ConfigError(f"[server.compat.act] authorities: {folder}: {error.strerror}") from error
    return _read_authorities(
        folder, tuple(sorted((name, status.st_mtime_ns, status.st_size) for name, status in found))
    )


@functools.lru_cache(maxsize=2)
def _read_authorities(folder: str, _stamp: tuple[tuple[str, int, int], ...]) -> Authorities:
    found: dict[bytes, x509.Certificate] = {}
    lists = []
    try:
        files = sorted(Path(folder).iterdir())
    except OSError as error:
        raise ConfigError(f"[server.compat.act] authorities: {folder}: {error.strerror}") from error
    for file in files:
        try:
            if file.suffix in (".pem", ".crt") or file.suffix[1:].isdecimal():
                for each in x509.load_pem_x509_certificates(file.read_bytes()):
                    found[each.fingerprint(hashes.SHA256())] = each
            elif file.suffix.startswith(".r") and file.suffix[2:].isdecimal():
                lists.append(x509.load_pem_x509_crl(file.read_bytes()))
        except (OSError, ValueError):
            continue  # other files lie there, too, and one that is damaged must not keep all people out
    if not found:
        raise ConfigError(f"[server.compat.act] authorities: {folder}: there is no certificate (PEM) in it")
    return Authorities(tuple(found.values()), tuple(lists))


def verify(pem: str, authorities: Authorities, now: float) -> Proved:
    """Whose chain this is, the proxy's certificate first; a certificate without any proxy will do.

    Raises BadChain.
    """
    chain = _read(pem)
    moment = datetime.fromtimestamp(now, timezone.utc)
    try:
        proxies = _proxies(chain)
        person = chain[len(proxies)]
        for child, parent in zip(proxies, chain[1:]):
            _check_proxy(child, parent)
        _check_depth(proxies)
        path = _path(person, chain[len(proxies) + 1 :], authorities)
        used = [*proxies, *path]
        for each in used[:-1]:
            _check_certificate(each, moment)
        _check_time(used[-1], moment)
        for each, issuer in zip(path, path[1:]):
            _check_revoked(each, issuer, authorities, moment)
        if any(_LIKE_A_PART.search(_text(each.value)) for each in person.subject):
            raise BadChain("the person's name reads like another's: a part of it holds a slash, a word and '='")
        subject = name_of(person.subject)
        if not subject or len(subject) > MOST_NAME or not subject.isprintable():
            raise BadChain("the person's name is none, or too long")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadChain(f"a certificate of the chain cannot be understood: {error}") from error
    expires = min(each.not_valid_after_utc.timestamp() for each in used)
    return Proved(subject, tuple(chain[: len(proxies) + 1]), expires, len(proxies))


def _read(pem: str) -> list[x509.Certificate]:
    if len(pem) > MOST_CHARS:
        raise BadChain("the chain is too long")
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, UnicodeEncodeError) as error:
        raise BadChain("there is no certificate in it (PEM)") from error
    if len(chain) > MOST_CERTIFICATES:
        raise BadChain("the chain is too long")
    return chain


def _proxies(chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The proxies at the beginning."""
    count = 0
    while count < len(chain) and _extension(chain[count], PROXY_CERT_INFO) is not None:
        count += 1
    if count == len(chain):
        raise BadChain("the certificate that the proxy hangs on is not in the chain")
    return list(chain[:count])


def _check_proxy(proxy: x509.Certificate, issuer: x509.Certificate) -> None:
    """RFC 3820, 3: what a proxy must and must not be."""
    info = _extension(proxy, PROXY_CERT_INFO)
    if info is None or not info.critical:
        raise BadChain("a proxy's ProxyCertInfo must be critical")
    length, policy = _info(info)
    if policy not in _POLICIES:
        raise BadChain("a proxy of that policy speaks for nobody")
    parent = _extension(issuer, PROXY_CERT_INFO)
    if parent is not None and _POLICIES[policy] != "limited" and _POLICIES.get(_info(parent)[1]) == "limited":
        raise BadChain("a proxy that hangs on a limited one must be limited, too")
    for odd in (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.ISSUER_ALTERNATIVE_NAME):
        if _extension(proxy, odd) is not None:
            raise BadChain("a proxy has no alternative names")
    if _is_authority(proxy) or _is_authority(issuer):
        raise BadChain("neither a proxy nor whom it hangs on may be an authority")
    if not _may_sign(issuer):
        raise BadChain("a certificate that a proxy hangs on is not for signatures")
    above, own = list(issuer.subject.rdns), list(proxy.subject.rdns)
    if own[:-1] != above or not own or [each.oid for each in own[-1]] != [NameOID.COMMON_NAME]:
        raise BadChain("a proxy's name is not its issuer's with one common name more")
    _check_signed(proxy, issuer)


def _info(extension: x509.Extension[x509.ExtensionType]) -> tuple[int | None, bytes]:
    """Path length and policy's identifier of a ProxyCertInfo (RFC 3820, 3.8)."""
    value = extension.value
    raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    body, rest = _element(raw, 0x30)
    if rest:
        raise BadChain("a proxy's ProxyCertInfo is damaged")
    length = None
    if body[:1] == b"\x02":
        number, body = _element(body, 0x02)
        length = int.from_bytes(number, "big", signed=True)
        if length < 0:
            raise BadChain("a proxy's ProxyCertInfo is damaged")
    policy, rest = _element(body, 0x30)
    if rest:
        raise BadChain("a proxy's ProxyCertInfo is damaged")
    oid, _ = _element(policy, 0x06)
    return length, policy[: 2 + len(oid)]


def _element(der: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first element of DER, which must have this tag and a short length, and what follows it."""
    if len(der) < 2 or der[0] != tag or der[1] & 0x80 or 2 + der[1] > len(der):
        raise BadChain("a proxy's ProxyCertInfo is damaged")
    return der[2 : 2 + der[1]], der[2 + der[1] :]


def _check_depth(proxies: Sequence[x509.Certificate]) -> None:
    """Each proxy may allow only so many below it."""
    for below, each in enumerate(proxies):
        info = _extension(each, PROXY_CERT_INFO)
        length = _info(info)[0] if info is not None else None
        if length is not None and below > length:
            raise BadChain("more proxies hang on one than it allows")


def _path(
    person: x509.Certificate, more: Sequence[x509.Certificate], authorities: Authorities
) -> list[x509.Certificate]:
    """From the person's certificate to an authority that counts."""
    if _is_authority(person):
        raise BadChain("an authority's certificate is nobody's")
    trusted = {each.fingerprint(hashes.SHA256()) for each in authorities.certificates}
    path = [person]
    while len(path) <= MOST_CERTIFICATES:
        last = path[-1]
        if len(path) > 1 and last.fingerprint(hashes.SHA256()) in trusted:
            return path
        issuer = next((each for each in [*authorities.certificates, *more] if _issued(last, each)), None)
        if issuer is None or issuer in path:
            raise BadChain(f"{name_of(last.issuer)} is no authority that is trusted here")
        constraints = _extension(issuer, ExtensionOID.BASIC_CONSTRAINTS)
        value = None if constraints is None else constraints.value
        if not isinstance(value, x509.BasicConstraints) or not value.ca or not _may_certify(issuer):
            raise BadChain(f"{name_of(issuer.subject)} is no authority")
        if value.path_length is not None and len(path) - 1 > value.path_length:
            raise BadChain(f"{name_of(issuer.subject)} allows no authority below it")
        path.append(issuer)
    raise BadChain("the chain is too long")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    if not _issued(certificate, issuer):
        raise BadChain("a proxy is not signed with the key of the certificate that it hangs on")


def _check_certificate(certificate: x509.Certificate, moment: datetime) -> None:
    _check_time(certificate, moment)
    if isinstance(certificate.signature_hash_algorithm, _WEAK):
        raise BadChain(f"{name_of(certificate.subject)} is signed with a hash that is too weak")
    key = certificate.public_key()
    strong = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size >= 256
    if not (strong or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS)):
        raise BadChain(f"{name_of(certificate.subject)} has a key that is too weak or of an unusual kind")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise BadChain(f"{name_of(certificate.subject)} demands what is not known here: {extension.oid}")


def _check_time(certificate: x509.Certificate, moment: datetime) -> None:
    if certificate.not_valid_after_utc <= moment:
        raise BadChain(f"{name_of(certificate.subject)} has expired: get a new proxy")
    if certificate.not_valid_before_utc.timestamp() > moment.timestamp() + CLOCK_S:
        raise BadChain(f"{name_of(certificate.subject)} is not valid yet: set the clock")


def _check_revoked(
    certificate: x509.Certificate, issuer: x509.Certificate, authorities: Authorities, moment: datetime
) -> None:
    key = issuer.public_key()
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise BadChain(f"{name_of(issuer.subject)} has a key of an unusual kind")
    for each in authorities.revoked:
        if each.issuer != issuer.subject or not each.is_signature_valid(key):
            continue
        if each.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise BadChain(f"{name_of(certificate.subject)} was revoked")


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> x509.Extension[x509.ExtensionType] | None:
    return next((each for each in certificate.extensions if each.oid == oid), None)


def _is_authority(certificate: x509.Certificate) -> bool:
    found = _extension(certificate, ExtensionOID.BASIC_CONSTRAINTS)
    return found is not None and isinstance(found.value, x509.BasicConstraints) and found.value.ca


def _usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    found = _extension(certificate, ExtensionOID.KEY_USAGE)
    return found.value if found is not None and isinstance(found.value, x509.KeyUsage) else None


def _may_sign(certificate: x509.Certificate) -> bool:
    usage = _usage(certificate)
    return usage is None or usage.digital_signature


def _may_certify(certificate: x509.Certificate) -> bool:
    usage = _usage(certificate)
    return usage is None or usage.key_cert_sign


def name_of(name: x509.Name) -> str:
    """A name as grid services write it: ``/DC=org/CN=Alice``."""
    parts = []
    for rdn in name.rdns:
        parts += [f"{_WORDS.get(each.oid, each.oid.dotted_string)}={_text(each.value)}" for each in rdn]
    return "".join(f"/{part}" for part in parts)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()
