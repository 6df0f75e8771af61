"""Whose a chain of proxies is, and why some prove nothing (RFC 3820)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from common import proxies
from common.config import ConfigError
from server.access.chains import BadChain, Proved, read_authorities, verify

INHERIT = bytes.fromhex("06082b06010505071501")
LIMITED = bytes.fromhex("060b2b060104019b5001010109")
INDEPENDENT = bytes.fromhex("06082b06010505071502")
INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
HOUR = timedelta(hours=1)
#: Certificates are made and judged at this moment: the suite may come to them an hour later.
NOW = datetime.now(timezone.utc)
_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(4)]
_SMALL = rsa.generate_private_key(65537, 1024)


def name(*parts: str) -> x509.Name:
    found = [x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org")]
    return x509.Name(found + [x509.NameAttribute(NameOID.COMMON_NAME, part) for part in parts])


def info(policy: bytes = INHERIT, length: int | None = None) -> x509.UnrecognizedExtension:
    number = b"" if length is None else bytes([2, 1, length])
    inner = bytes([0x30, len(policy)]) + policy
    return x509.UnrecognizedExtension(INFO, bytes([0x30, len(number) + len(inner)]) + number + inner)


def usage(sign: bool = True, certify: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, True, False, False, certify, certify, False, False)


def made(
    subject: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer: x509.Name,
    signer: rsa.RSAPrivateKey,
    *extensions: tuple[x509.ExtensionType, bool],
    begins: datetime = NOW - HOUR,
    ends: datetime = NOW + HOUR,
    number: int | None = None,
    digest: Any = None,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        issuer, subject, key.public_key(), number or x509.random_serial_number(), begins, ends
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, digest or hashes.SHA256())


CA_KEY, ALICE_KEY, KEY, OTHER = _KEYS
AUTHORITY = ((x509.BasicConstraints(True, None), True), (usage(False, True), True))
CA = made(name("CA"), CA_KEY, name("CA"), CA_KEY, *AUTHORITY)
ALICE = made(name("Alice"), ALICE_KEY, name("CA"), CA_KEY, (x509.BasicConstraints(False, None), True), (usage(), True))


def proxy(
    below: x509.Certificate = ALICE,
    signer: rsa.RSAPrivateKey = ALICE_KEY,
    key: rsa.RSAPrivateKey = KEY,
    of: x509.Name | None = None,
    proxy_info: tuple[x509.UnrecognizedExtension, bool] | None = (info(), True),
    more: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    **times: Any,
) -> x509.Certificate:
    subject = of or x509.Name([*below.subject.rdns, x509.RelativeDistinguishedName(list(name("1").rdns[1]))])
    extensions = [(usage(), True), *([proxy_info] if proxy_info else []), *more]
    return made(subject, key, below.subject, signer, *extensions, **times)


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Proved]:
    """Judges a chain by the authority, and by what else lies in its folder."""
    (tmp_path / "ca.pem").write_bytes(CA.public_bytes(Encoding.PEM))
    (tmp_path / "abcdef01.signing_policy").write_text("no certificate")
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense")

    def judge(*chain: x509.Certificate) -> Proved:
        pem = "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)
        return verify(pem, read_authorities(str(tmp_path)), NOW.timestamp())

    return judge


def test_a_chain_proves_its_person(judged: Callable[..., Proved]) -> None:
    first = proxy()
    second = proxy(first, KEY, OTHER)
    for chain, many in (
        ([ALICE], 0),
        ([first, ALICE], 1),
        ([second, first, ALICE], 2),
        ([second, first, ALICE, CA], 2),
    ):
        found = judged(*chain)
        assert found.subject == "/DC=org/CN=Alice"
        assert found.proxies == many
        assert [each.subject for each in found.chain] == [each.subject for each in chain[: many + 1]]
    assert judged(proxy(ends=NOW + HOUR / 2), ALICE).expires == pytest.approx((NOW + HOUR / 2).timestamp(), abs=1)


def test_a_limited_proxy_and_a_limited_one_below_it(judged: Callable[..., Proved]) -> None:
    limited = proxy(proxy_info=(info(LIMITED), True))
    assert judged(limited, ALICE).proxies == 1
    assert judged(proxy(limited, KEY, OTHER, proxy_info=(info(LIMITED), True)), limited, ALICE).proxies == 2
    with pytest.raises(BadChain, match="must be limited"):
        judged(proxy(limited, KEY, OTHER), limited, ALICE)


def test_the_identifier_of_globus_limited_policy_is_written_as_der_wants_it() -> None:
    made_by_us = proxies._LIMITED
    extension = x509.UnrecognizedExtension(INFO, made_by_us)
    assert made_by_us == info(LIMITED).value == extension.value
    oid = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.3.6.1.4.1.3536.1.1.1.9"), None)])
    assert LIMITED in oid.public_bytes()


def test_an_intermediate_authority_counts_below_one_that_is_trusted(judged: Callable[..., Proved]) -> None:
    middle = made(name("Middle"), OTHER, name("CA"), CA_KEY, *AUTHORITY)
    bob = made(name("Bob"), ALICE_KEY, name("Middle"), OTHER, (usage(), True))
    assert judged(proxy(bob), bob, middle).subject == "/DC=org/CN=Bob"
    with pytest.raises(BadChain, match="no authority that is trusted"):
        judged(proxy(bob), bob)
    plain = made(name("Middle"), OTHER, name("CA"), CA_KEY, (usage(), True))
    with pytest.raises(BadChain, match="is no authority"):
        judged(proxy(bob), bob, plain)


UNCRITICAL = proxy(proxy_info=(info(), False))
WRONG = {
    "of another key": ([proxy(signer=OTHER), ALICE], "not signed with the key"),
    "expired": ([proxy(ends=NOW - HOUR / 2), ALICE], "has expired"),
    "of the future": ([proxy(begins=NOW + HOUR / 2), ALICE], "not valid yet"),
    "alone": ([proxy()], "not in the chain"),
    "of nobody": ([], "no certificate"),
    "of an authority": ([CA], "nobody's"),
    "of an unknown authority": (
        [made(name("Alice"), ALICE_KEY, name("CA"), OTHER, (usage(), True))],
        "no authority that is trusted",
    ),
    "of another name": ([proxy(of=name("Alice", "1", "2")), ALICE], "one common name more"),
    "of somebody else": ([proxy(of=name("Bob", "1")), ALICE], "one common name more"),
    "with a policy of its own": ([proxy(proxy_info=(info(INDEPENDENT), True)), ALICE], "speaks for nobody"),
    "with an info that may be ignored": ([UNCRITICAL, ALICE], "must be critical"),
    "with a damaged info": (
        [proxy(proxy_info=(x509.UnrecognizedExtension(INFO, b"\x30\x7f"), True)), ALICE],
        "damaged",
    ),
    "of the old kind": ([proxy(proxy_info=None), ALICE], "no authority"),
    "with another name": (
        [proxy(more=((x509.SubjectAlternativeName([x509.DNSName("a")]), False),)), ALICE],
        "no alternative names",
    ),
    "that is an authority": ([proxy(more=((x509.BasicConstraints(True, None), True),)), ALICE], "may be an authority"),
    "with a weak key": ([proxy(key=_SMALL), ALICE], "too weak"),
    "with demands": (
        [proxy(more=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True),)), ALICE],
        "demands what is not known",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_chain_that_proves_nothing(judged: Callable[..., Proved], case: str) -> None:
    chain, words = WRONG[case]
    with pytest.raises(BadChain, match=words):
        judged(*chain)


def test_a_proxy_below_one_that_allows_none(judged: Callable[..., Proved]) -> None:
    last = proxy(proxy_info=(info(length=0), True))
    assert judged(last, ALICE).proxies == 1
    with pytest.raises(BadChain, match="than it allows"):
        judged(proxy(last, KEY, OTHER), last, ALICE)


def test_a_certificate_that_is_not_for_signatures(judged: Callable[..., Proved]) -> None:
    mute = made(name("Alice"), ALICE_KEY, name("CA"), CA_KEY, (usage(False), True))
    with pytest.raises(BadChain, match="not for signatures"):
        judged(proxy(mute), mute)


def test_a_name_that_reads_like_another_proves_nobody(judged: Callable[..., Proved]) -> None:
    """Written with slashes, one part ``x/CN=Alice`` and two parts ``x`` and ``Alice`` are the same."""
    mimic = made(name("x/CN=Alice"), ALICE_KEY, name("CA"), CA_KEY, (usage(), True))
    with pytest.raises(BadChain, match="reads like another"):
        judged(mimic)
    host = made(name("host/node.example.org"), ALICE_KEY, name("CA"), CA_KEY, (usage(), True))
    assert judged(host).subject == "/DC=org/CN=host/node.example.org"


def test_a_revoked_certificate(judged: Callable[..., Proved], tmp_path: Path) -> None:
    gone = x509.RevokedCertificateBuilder(ALICE.serial_number, NOW - HOUR).build()

    def publish(key: rsa.RSAPrivateKey) -> None:
        builder = x509.CertificateRevocationListBuilder(name("CA"), NOW - HOUR, NOW + HOUR)
        signed = builder.add_revoked_certificate(gone).sign(key, hashes.SHA256())
        (tmp_path / "abcdef01.r0").write_bytes(signed.public_bytes(Encoding.PEM))

    publish(OTHER)
    assert judged(proxy(), ALICE).proxies == 1, "a list that the authority has not signed"
    publish(CA_KEY)
    with pytest.raises(BadChain, match="was revoked"):
        judged(proxy(), ALICE)


def test_a_folder_without_authorities(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="authorities"):
            read_authorities(str(folder))


@pytest.mark.parametrize("text", ["", "nonsense", "\ud800", "-----BEGIN CERTIFICATE-----\n", "x" * 300_000])
def test_text_that_is_no_chain(text: str, judged: Callable[..., Proved], tmp_path: Path) -> None:
    with pytest.raises(BadChain):
        verify(text, read_authorities(str(tmp_path)), time.time())
