"""A certificate authority of the test run: host certificates for loopback, people's certificates and their proxies."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from tests.services.base import run

PROXY_INFO = ObjectIdentifier("1.3.6.1.5.5.7.1.14")  # RFC 3820, 3.8
INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")  # ProxyCertInfo, policy id-ppl-inheritAll
DAY = timedelta(days=1)


class Issued(NamedTuple):
    """A certificate with its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )

    def write(self, certificate: Path, key: Path) -> None:
        """Put both into files, the key's of mode 0600."""
        certificate.write_bytes(self.certificate_pem)
        key.touch(0o600)
        key.write_bytes(self.key_pem)


def _name(*parts: str) -> x509.Name:
    domain = x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "pilotage")
    return x509.Name([domain, *(x509.NameAttribute(NameOID.COMMON_NAME, part) for part in parts)])


class Authority:
    """Issues certificates; ``folder`` holds its own, named by its hash, as grid nodes have them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        name = _name("Test CA")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self._own = _issue(name, None, [(x509.BasicConstraints(True, None), True), (usage, True)])
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._own.certificate_pem)
        hashed = run(["openssl", "x509", "-in", self.file, "-noout", "-subject_hash"]).strip()
        shutil.copyfile(self.file, folder / f"{hashed}.0")
        (folder / f"{hashed}.signing_policy").write_text(
            "access_id_CA X509 '/DC=pilotage/CN=Test CA'\npos_rights globus CA:sign\n"
            "cond_subjects globus '\"/DC=pilotage/*\"'\n"
        )

    def host(self) -> Issued:
        """A certificate for this machine's loopback."""
        addresses = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        return self._leaf("localhost", (addresses, False))

    def person(self, name: str) -> Issued:
        """A person's certificate; its subject is ``/DC=pilotage/CN=<name>``."""
        return self._leaf(name)

    def _leaf(self, name: str, *more: tuple[x509.ExtensionType, bool]) -> Issued:
        usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        constraints = x509.BasicConstraints(False, None)
        return _issue(_name(name), self._own, [(constraints, True), (usage, True), (purposes, False), *more])


def write_proxy(person: Issued, path: Path, lifetime: timedelta = DAY) -> None:
    """Make an RFC 3820 proxy of a person's certificate: a file of mode 0600 with chain and key.

    A negative ``lifetime`` makes one that has expired.
    """
    subject = x509.Name([*person.certificate.subject, x509.NameAttribute(NameOID.COMMON_NAME, "123456789")])
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    info = x509.UnrecognizedExtension(PROXY_INFO, INHERIT_ALL)
    proxy = _issue(subject, person, [(usage, True), (info, True)], lifetime)
    path.touch(0o600)
    path.write_bytes(proxy.certificate_pem + proxy.key_pem + person.certificate_pem)


def _issue(
    subject: x509.Name,
    issuer: Optional[Issued],
    extensions: list[tuple[x509.ExtensionType, bool]],
    lifetime: timedelta = 10 * DAY,
) -> Issued:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    end = datetime.now(timezone.utc) + lifetime
    builder = x509.CertificateBuilder(
        issuer.certificate.subject if issuer else subject, subject, key.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(min(end, datetime.now(timezone.utc)) - DAY / 24).not_valid_after(end)
    # What signs attribute certificates of VOMS names itself by this.
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)
