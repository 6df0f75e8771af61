"""Checks of the two settings that say which server to trust with a token: its address and its authorities."""

from __future__ import annotations

import ipaddress
import os
import ssl
from pathlib import Path
from typing import Optional, Union
from urllib.parse import urlsplit

from common.errors import ErrorCode, PilotageError
from common.relay import SCHEME, mailbox_folder

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def checked_url(base_url: str) -> str:
    """``base_url`` without a slash at its end. Raises PilotageError (BAD_CONFIGURATION) for one that cannot be used."""
    if base_url.startswith(SCHEME):
        return f"{SCHEME}//{mailbox_folder(base_url)}"
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise _bad_setting(
            f"server address {without_user(base_url)!r}: write it like https://pilotage.example.org:8443"
        )
    if parts.username is not None:
        raise _bad_setting("server address: it must not contain a user or password; use a token file")
    return f"{parts.scheme}{base_url[len(parts.scheme) :]}".rstrip("/")


def is_private(url: str) -> bool:
    """Whether nobody on the way can read along: TLS, this machine itself, or a folder of this user's own."""
    host = urlsplit(url).hostname or ""
    if url.startswith(("https:", SCHEME)) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without_user(url: str) -> str:
    """``url`` fit to be shown: whatever stands before an ``@`` is masked."""
    head, at, tail = url.rpartition("@")
    return f"***@{tail}" if at and head else url


def certificate_authorities(ca_file: Union[str, Path, None]) -> Optional[str]:
    """The file or folder to verify servers with; None for the built-in one. Never a way to switch verification off.

    Raises PilotageError (BAD_CONFIGURATION) for one that is missing or unreadable.
    """
    found, origin = ca_file, "ca_file"
    if found is None:
        origin = next((name for name in _CA_VARIABLES if os.environ.get(name)), "")
        if not origin:
            return None
        found = os.environ[origin]
    if not str(found) or not Path(found).exists():
        raise _bad_setting(f"{origin}: there is no file {str(found)!r}; name a PEM file of certificate authorities")
    try:
        if not Path(found).is_dir():
            ssl.create_default_context(cafile=str(found))
    except (OSError, ssl.SSLError) as error:
        raise _bad_setting(f"{origin}: {str(found)!r} holds no readable PEM certificates ({error})") from error
    return str(found)


def _bad_setting(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_CONFIGURATION, detail)
