"""What a client asks for, read with care: nothing that it sends is taken for what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, TypeVar

import msgspec

from server.api.routing import Call
from server.dispatch.errors import Invalid

T = TypeVar("T")

MOST_TIMEOUT_S = 1e9
DEFAULT, NEVER = "default", "no timeout"
_TRUE, _FALSE = ("yes", "true", "1"), ("no", "false", "0", "")


def wrong(name: str, remedy: str) -> Invalid:
    """That something in the request is not as it should be."""
    return Invalid(f"{name}: {remedy}", [(name, remedy)])


def document(call: Call) -> dict[str, Any]:
    """The JSON object in the body. Raises Invalid or TooLarge."""
    found = call.body.json()
    if not isinstance(found, dict):
        raise wrong("body", "send a JSON object")
    return found


def text(call: Call, name: str) -> str:
    """A parameter that must be there. Raises Invalid."""
    found = call.query.get(name, "")
    if not found:
        raise wrong(name, "it must be given")
    return found


def number(value: object) -> int:
    """The number of a project. Raises Invalid."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (value.isascii() and value.isdigit() and len(value) < 19):
        raise wrong("project_id", "give the number of a project")
    return int(value)


def flag(call: Call, name: str, default: bool) -> bool:
    """A yes or no in the query. Raises Invalid."""
    return truth(name, call.query.get(name), default)


def truth(name: str, value: object, default: bool) -> bool:
    """What a yes or no means: JSON's own, or in words. Raises Invalid."""
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    word = str(value).lower() if isinstance(value, (str, int)) else "?"
    if word in _TRUE:
        return True
    if word not in _FALSE:
        raise wrong(name, "say yes or no")
    return False


def table(body: dict[str, Any], name: str) -> dict[str, Any]:
    """A JSON object in the body; none is an empty one. Raises Invalid."""
    found = body.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise wrong(name, "send a JSON object")
    return found


def words(body: dict[str, Any], name: str) -> list[str]:
    """A list of names in the body. Raises Invalid."""
    found = body.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise wrong(name, "send a list of names")
    return found


def timeout(name: str, value: object) -> float | None:
    """A time-out in seconds; None: never. Raises Invalid."""
    if value is None or value == NEVER:
        return None
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_TIMEOUT_S
    if not good or not isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise wrong(name, f"give seconds, more than 0 and at most {MOST_TIMEOUT_S:.0f}, or {NEVER!r}")
    return float(value)  # type: ignore[arg-type]


def one_of(name: str, value: object, known: Sequence[str]) -> str:
    """A word that must be known. Raises Invalid."""
    if not isinstance(value, str) or value not in known:
        raise wrong(name, f"give one of {', '.join(known)}")
    return value


def checked(value: object, kind: type[T]) -> T:
    """``value`` as one of our own messages. Raises Invalid with msgspec's words."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), [("$", str(error))]) from error
