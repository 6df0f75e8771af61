"""Proxies that are made for a key of the caller, judged by OpenSSL itself."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from common.proxies import PROXY_CERT_INFO, BadIssuer, BadRequest, sign_proxy
from common.x509 import new_request, proxy_file

#: Certificates are made and judged at this moment: the suite may come to them an hour later.
NOW = time.time()


def name(*words: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, word) for word in words])


def pem(key: Any) -> str:
    raw = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return str(raw.decode())


class Authority:
    """A certificate authority, and a robot's credential of it."""

    def __init__(self, *, life_s: float = 86400.0, extension: Optional[bytes] = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.robot_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.certificate = self._issue(name("CA"), self.key, life_s + 60, ca=True)
        self.robot = self._issue(name("Robot"), self.robot_key, life_s, extension=extension)
        self.credential = self.robot.public_bytes(serialization.Encoding.PEM).decode() + pem(self.robot_key)

    def _issue(
        self, subject: x509.Name, key: Any, life_s: float, *, ca: bool = False, extension: Optional[bytes] = None
    ) -> x509.Certificate:
        moment = datetime.fromtimestamp(NOW, timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name("CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - timedelta(hours=1))
            .not_valid_after(moment + timedelta(seconds=life_s))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, False, not ca, False, False, ca, ca, False, False), critical=True)
        )
        if extension is not None:
            builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, extension), critical=True)
        return builder.sign(self.key, hashes.SHA256())


def certificates(chain: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(chain.encode())


def test_openssl_takes_the_proxy_for_one(tmp_path: Path) -> None:
    authority = Authority()
    key, request = new_request()
    proxy = sign_proxy(request, authority.credential, 3600, NOW)
    (tmp_path / "ca.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "proxy.pem").write_text(proxy_file(proxy.chain, key))
    (tmp_path / "rest.pem").write_bytes(authority.robot.public_bytes(serialization.Encoding.PEM))
    command = ["openssl", "verify", "-allow_proxy_certs", "-attime", f"{NOW:.0f}"]
    command += ["-CAfile", "ca.pem", "-untrusted", "rest.pem", "proxy.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    first = certificates(proxy.chain)[0]
    assert first.issuer == authority.robot.subject
    assert first.subject.rdns[:-1] == authority.robot.subject.rdns
    assert proxy.life_s == 3600 and len(certificates(proxy.chain)) == 2
    assert "PRIVATE" not in proxy.chain, "the robot's key left the server"


def test_a_proxy_of_a_proxy_stays_limited(tmp_path: Path) -> None:
    limited = bytes.fromhex("300f300d060b2b060104019b5001010109")
    proxy = sign_proxy(new_request()[1], Authority(extension=limited).credential, 3600, NOW)
    found = certificates(proxy.chain)[0].extensions.get_extension_for_oid(PROXY_CERT_INFO)
    assert found.critical and isinstance(found.value, x509.UnrecognizedExtension)
    assert found.value.value == limited


def test_a_proxy_ends_with_what_it_hangs_on() -> None:
    proxy = sign_proxy(new_request()[1], Authority(life_s=500).credential, 3600, NOW)
    assert proxy.life_s == pytest.approx(500, abs=2)
    with pytest.raises(BadIssuer, match="expired: renew it"):
        sign_proxy(new_request()[1], Authority(life_s=-10).credential, 3600, NOW)


def test_a_request_proves_its_key_first() -> None:
    authority = Authority()
    request = x509.load_pem_x509_csr(new_request()[1].encode())
    other = x509.load_pem_x509_csr(new_request()[1].encode())
    raw = bytearray(request.public_bytes(serialization.Encoding.DER))
    raw[-256:] = other.signature  # the right key, and somebody else's signature
    forged = x509.load_der_x509_csr(bytes(raw)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(BadRequest, match="not signed with the key"):
        sign_proxy(forged, authority.credential, 3600, NOW)
    with pytest.raises(BadRequest, match="no certificate signing request"):
        sign_proxy("nonsense", authority.credential, 3600, NOW)


def test_weak_keys_get_nothing() -> None:
    authority = Authority()
    for key in (rsa.generate_private_key(public_exponent=65537, key_size=1024), ed25519.Ed25519PrivateKey.generate()):
        digest = hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None
        builder = x509.CertificateSigningRequestBuilder().subject_name(name("x"))
        request = builder.sign(key, digest).public_bytes(serialization.Encoding.PEM).decode()
        with pytest.raises(BadRequest, match="too weak or of an unusual kind"):
            sign_proxy(request, authority.credential, 3600, NOW)


def test_credentials_that_cannot_be_used() -> None:
    authority, other = Authority(), Authority()
    request = new_request()[1]
    mixed = authority.robot.public_bytes(serialization.Encoding.PEM).decode() + pem(other.robot_key)
    no_further = Authority(extension=bytes.fromhex("300f020100300a06082b06010505071501")).credential
    for credential, words in (
        (mixed, "do not belong together"),
        ("x", "no certificate"),
        (no_further, "path length 0"),
    ):
        with pytest.raises(BadIssuer, match=words):
            sign_proxy(request, credential, 3600, NOW)
