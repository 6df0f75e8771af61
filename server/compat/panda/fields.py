"""What PanDA's clients send: flat objects, whose values are texts or numbers as it pleases them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from server.dispatch.errors import Invalid

MOST_TEXT = 255
MOST_ID = 2**63 - 1
NONE = "NULL"
"""What stands for nothing."""


class Fields:
    """The fields of one request. Odd values of fields that are not needed are nothing."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def all(self) -> Mapping[str, Any]:
        """Every field as it was sent."""
        return self._given

    def raw(self, name: str) -> Any:
        """A value as it was sent."""
        return self._given.get(name)

    def text(self, name: str, most: int = MOST_TEXT) -> str:
        """A text without NUL, at most so long; empty if there is none."""
        value = self._given.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return ""
        if isinstance(value, str):
            found = value
        else:
            found = str(value) if abs(value) < MOST_ID else ""
        found = found.replace("\0", "").strip()
        return "" if found == NONE else found[:most]

    def end_of(self, name: str, most: int) -> str:
        """The same of a long text, whose end counts."""
        value = self._given.get(name)
        return value.replace("\0", "")[-most:] if isinstance(value, str) and value != NONE else ""

    def number(self, name: str) -> float | None:
        """A finite number, as such or as a text."""
        value = self._given.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        try:
            found = float(value[:64] if isinstance(value, str) else value)
        except (ValueError, OverflowError):
            return None
        return found if math.isfinite(found) else None

    def count(self, name: str, most: int = 2**31 - 1) -> int:
        """A number from 0 to ``most``; what is not known is 0."""
        found = self.number(name)
        return 0 if found is None else int(min(max(found, 0.0), float(most)))

    def signed(self, name: str) -> int:
        """A whole number that fits 32 bits, else 0."""
        found = self.number(name)
        return int(found) if found is not None and abs(found) < 2**31 else 0

    def id(self, name: str) -> int:
        """The id of a job, which must be there.

        Raises:
            Invalid: it is none.
        """
        found = id_of(self._given.get(name))
        if found is None:
            raise Invalid(f"{name} names no job", [(f"$.{name}", "give the number that the job came with")])
        return found


def id_of(value: Any) -> int | None:
    """The id that a text or a number is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 < value <= MOST_ID else None
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text) or None
    return None
