"""Single task parameters, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.compat.panda_client.job_line import Wrong
from server.compat.panda_client.parameters import empty

MOST = 2**31 - 1


class Values:
    """The parameters of a task; what is empty is not there. Every method raises Wrong for a value of the wrong kind."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def raw(self, name: str) -> Any:
        """A parameter as it is; None if it is empty."""
        value = self._given.get(name)
        return None if empty(value) else value

    def number(self, *names: str) -> int | None:
        """A whole number from 1 on, under the first of these names that is there."""
        for name in names:
            value = self.raw(name)
            if value is None:
                continue
            found = _whole(value)
            if found is None or not 1 <= found <= MOST:
                raise Wrong([(name, f"give a whole number from 1 to {MOST}")])
            return found
        return None

    def signed(self, *names: str) -> int | None:
        """A whole number of any sign."""
        for name in names:
            value = self.raw(name)
            if value is None:
                continue
            found = _whole(value)
            if found is None or abs(found) > MOST:
                raise Wrong([(name, "give a whole number")])
            return found
        return None

    def decimal(self, name: str) -> float | None:
        """A number above zero."""
        value = self.raw(name)
        if value is None:
            return None
        try:
            found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
        except (ValueError, OverflowError):
            found = 0.0
        if not 0 < found <= MOST:
            raise Wrong([(name, "give a number above 0")])
        return found

    def text(self, name: str) -> str:
        """A text; empty if there is none."""
        value = self.raw(name)
        if value is None:
            return ""
        if not isinstance(value, str) or "\0" in value:
            raise Wrong([(name, "give a text")])
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts, or a text with commas."""
        value = self.raw(name)
        if value is None:
            return []
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise Wrong([(name, "give a list of texts")])
        return [each.strip() for each in given if each.strip()]

    def flag(self, name: str) -> bool:
        """Whether it is said, in any way."""
        return self.raw(name) is not None


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    return sign * int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None
