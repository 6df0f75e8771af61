"""What PanDA's client asks for: parameters of a GET, or the object that a POST carries, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from server.api.routing import Call
from server.compat.bodies import Body, json_of
from server.dispatch.errors import Invalid

MOST_IDS = 1000
"""Ids of one request."""
_DIGITS = 18
_TRUE, _FALSE = ("true", "1"), ("false", "0", "", "none")


@dataclass(frozen=True)
class Asked:
    """The fields of one request; those that are None are as good as not there."""

    fields: Mapping[str, Any]

    def number(self, name: str) -> int:
        """A whole number that must be there. Raises Invalid."""
        found = self.maybe_number(name)
        if found is None:
            raise Invalid(f"{name} is missing", [(name, "give a number")])
        return found

    def maybe_number(self, name: str) -> int | None:
        """A whole number, from zero on. Raises Invalid."""
        value = self.fields.get(name)
        if value is None or value == "None":
            return None
        return _number(value, name)

    def numbers(self, name: str) -> list[int]:
        """Whole numbers. Raises Invalid."""
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise Invalid(f"{name} is no list", [(name, "give a list of numbers")])
        if len(value) > MOST_IDS:
            raise Invalid(f"{name} has {len(value)} entries", [(name, f"ask for at most {MOST_IDS} at a time")])
        return [_number(each, name) for each in value]

    def text(self, name: str) -> str | None:
        """A text. Raises Invalid."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or "\0" in value:
            raise Invalid(f"{name} is no text", [(name, "give a text")])
        return value

    def flag(self, name: str) -> bool:
        """Yes or no; no if it is not there. Raises Invalid."""
        value = self.fields.get(name)
        word = str(value).lower() if isinstance(value, (bool, int, str)) else ""
        if value is None or word in _FALSE:
            return False
        if word not in _TRUE:
            raise Invalid(f"{name} is neither true nor false", [(name, "give true or false")])
        return True

    def moment(self, name: str) -> float | None:
        """A time in UTC, in seconds since the epoch. Raises Invalid."""
        value = self.text(name)
        if value is None or value == "None":
            return None
        try:
            return datetime.strptime(value[:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
        except (ValueError, OverflowError) as error:
            raise Invalid(f"{name} is no time", [(name, "give it as YYYY-MM-DD HH:MM:SS")]) from error


def asked(call: Call, *, secret: bool = False) -> Asked:
    """The fields of a request. Those that are ``secret`` come in the body only: addresses are written down.

    Raises Invalid or TooLarge.
    """
    body = call.body
    assert isinstance(body, Body)
    given = body.json_or_form()
    return Asked(given if secret else {**call.query, **given})


def decoded(text: str, name: str) -> object:
    """What a field that is JSON, written out, says. Nothing is in it that a text or a number here cannot be.

    Raises Invalid.
    """
    try:
        return json_of(text.encode())
    except (Invalid, UnicodeEncodeError) as error:
        raise Invalid(f"{name} is no JSON", [(name, "give a JSON object")]) from error


def json_field(text: str | None, name: str) -> dict[str, Any]:
    """A field that is a JSON object, written out. Raises Invalid."""
    if text is None:
        return {}
    found = decoded(text, name)
    if not isinstance(found, dict):
        raise Invalid(f"{name} is no JSON object", [(name, "give a JSON object")])
    return found


def _number(value: object, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**_DIGITS:
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS:
        return int(text)
    raise Invalid(f"{name} is no number", [(name, f"give a whole number of at most {_DIGITS} digits")])
