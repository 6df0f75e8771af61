"""Until when a credential is good, read from the credential itself; nothing is verified here."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

VOMS_ATTRIBUTES = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
"""The extension of a proxy that holds VOMS' attribute certificates."""
_SEQUENCE, _OCTETS, _TIME = 0x30, 0x04, 0x18
_CONSTRUCTED = 0x20
_MOST_DEPTH = 20


@dataclass(frozen=True)
class Ends:
    """What a credential says of itself.

    ``expires`` (seconds since the epoch) is the first end of all that it consists of, none where it doesn't tell;
    ``voms_expires`` that of its VOMS attributes, which are named in ``attributes``.
    """

    expires: float | None = None
    voms_expires: float | None = None
    attributes: list[str] = field(default_factory=list)


def ends_of(text: str) -> Ends:
    """The ends of a proxy or certificate (PEM) or of a JSON web token; of anything else nothing is known.

    Raises ValueError for a damaged certificate.
    """
    if "-----BEGIN CERTIFICATE-----" in text:
        return _of_chain(text)
    return Ends(expires=_of_token(text))


def _of_token(text: str) -> float | None:
    parts = text.strip().split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    end = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(end, bool) or not isinstance(end, (int, float)) or not math.isfinite(end):
        return None
    return float(end)


def _of_chain(text: str) -> Ends:
    ends, voms_ends, attributes = [], [], []
    for certificate in _certificates(text):
        ends.append(certificate.not_valid_after_utc.timestamp())
        try:
            found = certificate.extensions.get_extension_for_oid(VOMS_ATTRIBUTES).value
        except x509.ExtensionNotFound:
            continue
        value = found.value if isinstance(found, x509.UnrecognizedExtension) else b""
        voms_ends += list(_validity_ends(value))
        attributes += _names(value)
    voms = min(voms_ends, default=None)
    return Ends(min([*ends, *voms_ends]), voms, list(dict.fromkeys(attributes)))


def _certificates(text: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("it holds a damaged certificate") from error


def _validity_ends(der: bytes) -> Iterator[float]:
    """The ends in attribute certificates: AttCertValidityPeriod is a sequence of two GeneralizedTimes (RFC 5755, 4.1)."""
    for tag, content in _elements(der):
        if tag != _SEQUENCE:
            continue
        parts = list(_flat(content))
        if [part for part, _ in parts] == [_TIME, _TIME]:
            yield _moment(parts[1][1])


def _names(der: bytes) -> list[str]:
    """The attributes (FQANs), such as ``/atlas/Role=pilot``: octet strings that begin with a slash."""
    names = [content for tag, content in _elements(der) if tag == _OCTETS and content.startswith(b"/")]
    return [name.decode("ascii") for name in names if name.isascii() and name.decode("ascii").isprintable()]


def _moment(content: bytes) -> float:
    try:
        read = datetime.strptime(content.decode("ascii"), "%Y%m%d%H%M%SZ")
    except ValueError as error:
        raise ValueError("its VOMS attributes have a damaged validity") from error
    return read.replace(tzinfo=timezone.utc).timestamp()


def _elements(der: bytes, depth: int = 0) -> Iterator[tuple[int, bytes]]:
    """Every element of DER, at any depth: tag and content."""
    for tag, content in _flat(der):
        yield tag, content
        if tag & _CONSTRUCTED and depth < _MOST_DEPTH:
            yield from _elements(content, depth + 1)


def _flat(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of DER at its outermost level; ends at what is none (X.690, 8.1)."""
    at = 0
    while at + 2 <= len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length >= 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size], "big")
            at += size
        if at + length > len(der):
            return
        yield tag, der[at : at + length]
        at += length
