"""The credential that a CE holds for our jobs: one for all of them, made once and renewed ahead of its end (RFC 3820).

The CE makes a key and asks for a certificate; what is signed is a proxy of ours. Its id and end are kept in a file, so that
after a restart jobs share the same one still.
"""

from __future__ import annotations

import logging
from base64 import b64decode
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from common.clock import Clock
from common.proxies import BadIssuer, sign_proxy_for
from harvester.backends.arc_rest import ArcRest, Credential
from harvester.backends.base import BackendError

log = logging.getLogger(__name__)

_SEQUENCE = 0x30


class Kept(msgspec.Struct):
    """What is remembered of a delegation. ``ends`` is in seconds since the epoch; ``stamp`` is of the file behind it."""

    id: str
    ends: float
    stamp: tuple[int, ...] = ()


class Delegation:
    """The one delegation to a CE; ``file`` remembers it.

    It lives for ``life_s`` at most and is renewed ``renew_before_s`` before its end, or as soon afterwards as the
    credential behind it lives longer.
    """

    def __init__(
        self, rest: ArcRest, credential: Credential, file: Path, clock: Clock, life_s: float, renew_before_s: float
    ) -> None:
        self._rest = rest
        self._credential = credential
        self._file = file
        self._clock = clock
        self._life_s = life_s
        self._renew_before_s = renew_before_s
        self._warned = False

    def current(self) -> Kept:
        """The delegation, made, or renewed, where that is due.

        Raises BackendError: the CE can't be asked, or the credential has ended and so has the delegation.
        """
        kept, stamp = self._kept(), self._credential.stamp()
        now = self._clock.now()
        if kept is None:
            return self._sign(None, stamp)
        due = kept.ends - now < self._renew_before_s
        # From the same file nothing that lives longer could be made, unless the delegation's own limit ended it.
        if due and (kept.stamp != stamp or kept.ends < self._credential_ends() - 1):
            return self._sign(kept.id, stamp)
        if kept.ends <= now:
            raise BackendError(f"{self._credential.certificate}: it has ended, and what the CE holds of it: renew it")
        if due and not self._warned:
            self._warned = True
            log.warning(
                "%s: it ends in %.0f minutes, and then the CE's jobs have none: renew it",
                self._credential.certificate,
                (kept.ends - now) / 60,
            )
        return kept

    def _sign(self, delegation: str | None, stamp: tuple[int, ...]) -> Kept:
        name, request = self._rest.request_delegation(delegation)
        try:
            proxy = sign_proxy_for(_asked_key(request), self._pem(), self._life_s, self._clock.now())
        except BadIssuer as error:
            raise BackendError(f"{self._credential.certificate}: {error}") from error
        self._rest.put_delegation(name, proxy.chain)
        kept = Kept(name, self._clock.now() + proxy.life_s, stamp)
        temporary = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(kept))
            temporary.replace(self._file)
        except OSError as error:
            raise BackendError(f"{self._file}: {error.strerror}") from error
        self._warned = False
        log.info("%s: delegation %s %s", self._rest.url, name, "renewed" if delegation else "made")
        return kept

    def _kept(self) -> Kept | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            # A new one does no harm: jobs that are there keep theirs.
            log.warning("%s: %s: a new delegation is made", self._file, error)
            return None

    def _credential_ends(self) -> float:
        try:
            chain = x509.load_pem_x509_certificates(self._pem().encode())
        except ValueError as error:
            raise BackendError(f"{self._credential.certificate}: it holds no certificate (PEM)") from error
        return min(each.not_valid_after_utc.timestamp() for each in chain)

    def _pem(self) -> str:
        """Certificates and key of the credential, as one text."""
        files = [self._credential.certificate, self._credential.key]
        try:
            return "\n".join(path.read_text(encoding="ascii") for path in files if path is not None)
        except (OSError, UnicodeDecodeError) as error:
            raise BackendError(f"{self._credential.certificate}: {error}") from error


def _asked_key(request: str) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """The public key of a CE's request (PEM). Raises BackendError.

    ARC 6 numbers its requests with a version that there isn't, so that they can't be read as a whole. The signature
    proves nothing that the connection to the CE hasn't.
    """
    try:
        lines = request.strip().splitlines()
        body = b64decode("".join(line for line in lines if not line.startswith("-----")))
        # CertificationRequest { CertificationRequestInfo { version, subject, subjectPKInfo, … }, … } (RFC 2986, 4)
        info = _inside(_inside(body))
        _, rest = _split(info)
        _, rest = _split(rest)
        key = serialization.load_der_public_key(_split(rest)[0])
    except (ValueError, IndexError, UnsupportedAlgorithm) as error:
        raise BackendError(f"the CE's request for a delegation can't be read: {request[:100]!r}") from error
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise BackendError("the CE asks for a delegation to a key of an unusual kind")
    return key


def _split(der: bytes) -> tuple[bytes, bytes]:
    """The first element of DER, header included, and what follows it."""
    start, size = _header(der)
    return der[: start + size], der[start + size :]


def _inside(der: bytes) -> bytes:
    """What the sequence at the beginning of DER holds."""
    start, size = _header(der)
    if der[0] != _SEQUENCE:
        raise ValueError("no sequence")
    return der[start : start + size]


def _header(der: bytes) -> tuple[int, int]:
    """Where the content of the element at the beginning starts, and its length (X.690, 8.1.3)."""
    size, start = der[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[2:start], "big")
    if start + size > len(der):
        raise ValueError("cut off")
    return start, size
