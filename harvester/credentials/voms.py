"""Attributes of VOMS servers, by the HTTPS call ``/generate-ac`` that VOMS and IAM servers have."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3.exceptions
from cryptography import x509

from common.plugins import version
from harvester.credentials.base import CredentialError
from harvester.credentials.ends import VOMS_ATTRIBUTES

MOST_BYTES = 256 * 1024
_TIMEOUT = (10.0, 30.0)
_SEQUENCE = 0x30
_AC = re.compile(r"<ac>([A-Za-z0-9+/=\s]+)</ac>")
_MESSAGE = re.compile(r"<message>([^<]*)</message>")


class VomsKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A VOMS server to ask."""

    server: Annotated[str, msgspec.Meta(pattern=r"^https://[^\s@]+$")]
    """Its address, such as ``https://voms.example.org:15003``."""
    fqans: list[str] = []
    """The attributes to ask for, such as ``/atlas/Role=pilot``; without any, what the server gives by itself."""


def attributes(
    servers: Sequence[VomsKeys], pair: tuple[str, str], ca_path: str, life_s: float
) -> list[x509.ExtensionType]:
    """The extension that carries the attributes of all ``servers``; none without any.

    ``pair`` are the files of the certificate and key to ask with. Raises CredentialError.
    """
    if not servers:
        return []
    certificates = b"".join(_ask(server, pair, ca_path, life_s) for server in servers)
    return [x509.UnrecognizedExtension(VOMS_ATTRIBUTES, _sequence(_sequence(certificates)))]


def _ask(keys: VomsKeys, pair: tuple[str, str], ca_path: str, life_s: float) -> bytes:
    """An attribute certificate (DER)."""
    url = f"{keys.server.rstrip('/')}/generate-ac"
    params = {"lifetime": str(int(life_s)), **({"fqans": ",".join(keys.fqans)} if keys.fqans else {})}
    where = f"VOMS server {urlsplit(keys.server).netloc}"
    try:
        with requests.Session() as session:
            session.trust_env = False  # neither .netrc nor the environment's idea of authorities
            answer = session.get(
                url,
                params=params,
                cert=pair,
                verify=ca_path,
                timeout=_TIMEOUT,
                allow_redirects=False,
                stream=True,
                headers={"User-Agent": f"pilotage/{version()}"},
            )
            with answer:
                text = answer.raw.read(MOST_BYTES, decode_content=True).decode("utf-8", "replace")
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise CredentialError(f"{where}: no answer: {error}") from error
    found = _AC.search(text)
    if answer.status_code != 200 or found is None:
        message = _MESSAGE.search(text)
        words = "".join(letter for letter in (message[1] if message else "") if letter.isprintable())[:300]
        raise CredentialError(f"{where}: status {answer.status_code}: {words or 'it gave no attributes'}")
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise CredentialError(f"{where}: it gave damaged attributes") from error
    if der[:1] != bytes([_SEQUENCE]):
        raise CredentialError(f"{where}: it gave something else than attributes")
    return der


def _sequence(content: bytes) -> bytes:
    """DER of a sequence (X.690, 8.1.3)."""
    if len(content) < 0x80:
        return bytes([_SEQUENCE, len(content)]) + content
    size = (len(content).bit_length() + 7) // 8
    return bytes([_SEQUENCE, 0x80 | size]) + len(content).to_bytes(size, "big") + content
