"""``application/problem+json`` (RFC 9457): how the server says no, and how its callers read it.

Apart from :mod:`common.http` so that the server can write problems without loading an HTTP client.
"""

from __future__ import annotations

from typing import Any, Optional

import msgspec

CONTENT_TYPE = "application/problem+json"
_MAX_TEXT = 300


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field: ``path`` as in ``stages[1].name``, ``message`` with the remedy."""

    path: str
    message: str


class Problem(msgspec.Struct, frozen=True):
    """Why a request failed. ``extensions`` keeps every further member of the JSON object."""

    title: str
    status: int
    type: str = "about:blank"
    detail: str = ""
    errors: list[FieldError] = []
    extensions: dict[str, Any] = {}

    def encode(self) -> bytes:
        """The JSON object, with the extensions beside the standard members (which they cannot replace)."""
        standard = {name: getattr(self, name) for name in _STANDARD}
        return msgspec.json.encode({**self.extensions, **standard})

    def __str__(self) -> str:
        text = f"{self.title}: {self.detail}" if self.detail and self.detail != self.title else self.title
        return "; ".join([text, *(f"{error.path}: {error.message}" for error in self.errors)])


_STANDARD = ("type", "title", "status", "detail", "errors")


def decode_problem(body: bytes, status: int, content_type: str, reason: str = "") -> Problem:
    """The problem that a reply of ``status`` carries; one made up from the status where it carries none.

    Never raises: a proxy on the way may answer with anything. An HTML page is not repeated to the reader.
    """
    fallback = Problem(title=reason or f"HTTP status {status}", status=status)
    if not _is_json(content_type):
        is_text = content_type.startswith("text/plain")
        return msgspec.structs.replace(fallback, detail=_short(body) if is_text else "")
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return fallback
    errors = _field_errors(members.get("errors"))
    return Problem(
        title=_text(members.get("title")) or fallback.title,
        status=status,
        type=_text(members.get("type")) or "about:blank",
        detail=_text(members.get("detail")) or "",
        errors=errors or [],
        extensions={
            name: value
            for name, value in members.items()
            if name not in _STANDARD or (name == "errors" and errors is None)
        },
    )


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _field_errors(value: object) -> Optional[list[FieldError]]:
    try:
        return msgspec.convert(value, type=list[FieldError])
    except msgspec.ValidationError:
        return None


def _text(value: object) -> Optional[str]:
    return value if isinstance(value, str) else None


def _short(body: bytes) -> str:
    return " ".join(body[:_MAX_TEXT].decode("utf-8", "replace").split())
