"""Where an object is, and with which keys: what the copytool s3 reads from URLs, files and credentials."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import NamedTuple, Optional
from urllib.parse import unquote, urlsplit

from common.errors import ErrorCode, PilotageError
from common.tokens import read_secret_file
from pilot.copytool.base import Direction, refuse_climbing, safe_url


class Keys(NamedTuple):
    """An access key with its secret, and with a session token where it is temporary."""

    access: str
    secret: str
    session: Optional[str]

    def __repr__(self) -> str:
        return f"Keys({self.access!r})"


class Place(NamedTuple):
    """An object: ``endpoint`` is the service's address where the URL names it, ``key`` is decoded."""

    endpoint: Optional[str]
    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str, direction: Direction) -> Place:
        """Read ``s3://bucket/key`` or, with a port, ``s3://host:port/bucket/key``.

        Raises the direction's error for a URL that is neither.
        """
        shown = safe_url(url)
        try:
            parts = urlsplit(url.partition("?")[0])
            port = parts.port
        except ValueError as error:
            raise PilotageError(direction.failed, f"{shown}: is no URL ({error})") from error
        path = unquote(parts.path.lstrip("/"))
        refuse_climbing(path, shown, direction)
        bucket, key = parts.netloc, path
        if port is not None:
            bucket, _, key = path.partition("/")
        if not bucket or not key or "@" in parts.netloc or not key.isprintable():
            raise PilotageError(
                direction.failed, f"{shown}: is no URL like s3://bucket/key or s3://host:443/bucket/key"
            )
        return cls(f"https://{parts.netloc}" if port is not None else None, bucket, key)

    @property
    def shown(self) -> str:
        """The object as it is told."""
        return f"s3://{self.bucket}/{self.key}"


def keys_from_token(token: Optional[str]) -> Optional[Keys]:
    """Read ``ACCESS:SECRET`` or ``ACCESS:SECRET:SESSION``; ``None`` for what is no keys, a bearer token for example."""
    parts = (token or "").split(":", 2)
    if len(parts) < 2 or not all(parts):
        return None
    return Keys(parts[0], parts[1], parts[2] if len(parts) == 3 else None)


def keys_from_file(path: Path) -> Keys:
    """Read a file of mode 0600 as AWS's own programs write it: ``aws_access_key_id``, … below ``[default]``.

    Raises :class:`PilotageError` ``BAD_CONFIGURATION`` for one that others can read or that lacks a key.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_secret_file(path))
        section = parser["default"]
        return Keys(section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token"))
    except (configparser.Error, KeyError):
        # without the parser's own words, which show the line
        detail = f"{path}: write [default], aws_access_key_id = … and aws_secret_access_key = … into it"
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail) from None
