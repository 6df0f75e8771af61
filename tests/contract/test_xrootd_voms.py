"""Storages that let in by attributes of a virtual organisation (VOMS), reached with what the server hands to pilots."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.clock import SystemClock
from common.errors import ErrorCode
from common.x509 import new_request, proxy_file
from pilot.copytool import TransferRequest
from pilot.copytool.credentials import Credential
from server.access.providers import Proxies, ProxyProvider
from tests.contract.storages_secure import SecureStorage, Source
from tests.services.certificates import Authority, write_proxy
from tests.services.xrootd_secure import PERSON, VomsXrootd, write_voms_proxy

NEVER = threading.Event()
DATA = bytes(range(256)) * 4096


def curved_request() -> tuple[str, str]:
    """As :func:`new_request`, with a key on an elliptic curve."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, *form).decode(), request.public_bytes(pem).decode()


def delegated(credential: Path, to: Path, made: Callable[[], tuple[str, str]] = new_request) -> Path:
    """A proxy as a pilot gets it from the server: for a key of its own, signed with the server's credential."""
    key, request = made()
    provider = ProxyProvider("p", Proxies(credential_file=str(credential)), SystemClock())
    to.touch(0o600)
    to.write_text(proxy_file(provider.proxy(request).content, key))
    return to


@pytest.mark.parametrize("handed", ["as it is", "by the server"])
def test_attributes_let_in(xrootd_voms: VomsXrootd, authority: Authority, tmp_path: Path, handed: str) -> None:
    (tmp_path / "out").write_bytes(DATA)
    proxy = tmp_path / "voms.pem"
    write_voms_proxy(xrootd_voms, authority.person(PERSON), proxy)
    shown = proxy if handed == "as it is" else delegated(proxy, tmp_path / "delegated.pem")
    storage = SecureStorage(xrootd_voms, Source(Credential(proxy_file=shown)))
    request = TransferRequest(storage.url("f"), tmp_path / "out", None, None, "test:f", 60.0)
    assert storage.tool.copy_out([request], cancel=NEVER)[0].error is None
    assert storage.path("f").read_bytes() == DATA


def test_a_proxy_without_attributes_stays_outside(
    xrootd_voms: VomsXrootd, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(DATA)
    write_proxy(authority.person(PERSON), tmp_path / "plain.pem")
    storage = SecureStorage(xrootd_voms, Source(Credential(proxy_file=tmp_path / "plain.pem")))
    request = TransferRequest(storage.url("f"), tmp_path / "out", None, None, "test:f", 60.0)
    error = storage.tool.copy_out([request], cancel=NEVER)[0].error
    assert error is not None and error.code is ErrorCode.STAGE_OUT_AUTHENTICATION


def test_a_proxy_on_an_elliptic_curve_is_refused_and_does_not_end_the_pilot(
    xrootd_voms: VomsXrootd, authority: Authority, tmp_path: Path
) -> None:
    """The library crashes with one, and the process with it."""
    (tmp_path / "out").write_bytes(DATA)
    write_proxy(authority.person(PERSON), tmp_path / "plain.pem")
    curved = delegated(tmp_path / "plain.pem", tmp_path / "curved.pem", curved_request)
    storage = SecureStorage(xrootd_voms, Source(Credential(proxy_file=curved)))
    request = TransferRequest(storage.url("f"), tmp_path / "out", None, None, "test:f", 60.0)
    error = storage.tool.copy_out([request], cancel=NEVER)[0].error
    assert error is not None and error.code is ErrorCode.MISSING_CREDENTIALS and "RSA" in error.detail
