"""Logging of the programs: UTC time stamps, and never a token."""

from __future__ import annotations

import logging
import re
import sys
from datetime import datetime, timezone
from typing import Optional, TextIO

MASK = "***"
_HANDLER = "pilotage"
_SECRETS = (
    # Authorization headers and the query parameters that XRootD and OAuth put tokens into.
    (re.compile(r"\b(bearer(?:\s+|%20|\+)|basic\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\g<1>{MASK}"),
    (re.compile(r"\b(authz=|access_token=|refresh_token=|client_secret=)[^&\s\"']+", re.IGNORECASE), rf"\g<1>{MASK}"),
    # JSON web tokens wherever they stand, and Pilotage's own secrets and tokens (common.tokens.*_PREFIX).
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){1,4}"), MASK),
    (re.compile(r"\bpl[scpr]_[A-Za-z0-9_-]{8,}"), MASK),
    # Passwords in URLs.
    (re.compile(r"(://[^\s/:@]*:)[^\s/@]+@"), rf"\g<1>{MASK}@"),
)


def mask(text: str) -> str:
    """``text`` with everything that looks like a bearer token, a JSON web token, a secret or a password masked."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class MaskingFilter(logging.Filter):
    """Masks the message of a record: for handlers with a formatter of their own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; replaces the record's message by the masked one."""
        record.msg, record.args = mask(record.getMessage()), None
        return True


class UtcFormatter(logging.Formatter):
    """``2026-05-04T12:34:56.789Z WARNING server.agents: message``, masked, tracebacks included."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: Optional[str] = None) -> str:
        """The time of the record in UTC, ISO 8601, in milliseconds."""
        stamp = datetime.fromtimestamp(record.created, timezone.utc).replace(tzinfo=None)
        return f"{stamp.isoformat(timespec='milliseconds')}Z"

    def format(self, record: logging.LogRecord) -> str:
        """The whole entry, masked."""
        return mask(super().format(record))


def setup_logging(level: str = "INFO", stream: Optional[TextIO] = None) -> None:
    """Log to ``stream`` (default: standard error) from ``level`` upwards. A second call replaces the first.

    Raises ValueError for a level that logging does not know.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    for earlier in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(earlier)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(UtcFormatter())
    root.addHandler(handler)
    # One line for each connection and each retry is not news; our own client logs its calls.
    logging.getLogger("urllib3").setLevel(max(logging.INFO, root.level))
