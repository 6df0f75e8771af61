"""Routes as data: who may call, what comes in, what goes out. The app, the OpenAPI page and the access tests read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, NotFound
from server.engine.access import Caller, Role

__all__ = ["Call", "Caller", "Handler", "PAGE_LIMIT", "Raw", "Role", "Route", "allow", "page_of"]


@dataclass(frozen=True)
class Raw:
    """A reply that is no JSON."""

    content: bytes | Iterator[bytes]
    content_type: str
    status: int | None = None
    """What the route says, if not another."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request, decoded."""

    caller: Caller
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    audit: dict[str, object] = field(default_factory=dict)
    """What a handler adds to the audit event of a person's change: never a secret."""
    header: Callable[[str], str | None] = lambda _: None
    """A header of the request by its name."""

    @property
    def pilot_id(self) -> int:
        """The pilot that calls, as its token says; only for routes of pilots."""
        if self.caller.pilot_id is None:
            raise AssertionError("a route of pilots was called by somebody else")
        return self.caller.pilot_id

    def number(self, name: str) -> int:
        """A number in the path.

        Raises:
            NotFound: it is no number.
        """
        text = self.path[name]
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise NotFound(f"{text!r} is no {name}")
        return int(text)

    def count(self, name: str, default: int, most: int = 2**62) -> int:
        """A number in the query.

        Raises:
            Invalid: it is none, or too large.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= most):
            raise Invalid(f"{name} is not valid", [(name, f"give a number from 0 to {most}")])
        return int(text)

    def flag(self, name: str) -> bool:
        """Whether the query says so.

        Raises:
            Invalid: it says neither true nor false.
        """
        text = self.query.get(name, "false").lower()
        if text not in ("true", "false", "1", "0"):
            raise Invalid(f"{name} is not valid", [(name, "give true or false")])
        return text in ("true", "1")

    def choice(self, name: str, kind: type[Enum]) -> Any:
        """A word in the query that must be one of ``kind``, or None.

        Raises:
            Invalid: it is none of them.
        """
        text = self.query.get(name)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError as error:
            words = ", ".join(each.value for each in kind)
            raise Invalid(f"{name} is not valid", [(name, f"give one of {words}")]) from error


Handler = Callable[[Dispatcher, Call], Any]


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    access: frozenset[Role]
    handler: Handler
    summary: str
    request: type[msgspec.Struct] | None = None
    reply: type[msgspec.Struct] | None = None
    status: int = 200
    query: tuple[str, ...] = ()
    late_pilots: bool = False
    """Whether a pilot whose token has expired may still call, to end its jobs or learn that they are gone.

    Only one that is not declared lost gets a new token with that.
    """
    audited: bool = True
    """Whether what a person changes by it is told to the audit; work that is done by the thousand is not."""
    stream: bool = False
    """Whether the body is no JSON and given to the handler piece by piece; the handler says how much it takes."""
    changes: bool | None = None
    """Whether it changes something; what is not said follows from the method. Some of other systems' GETs do."""
    recognises: bool = False
    """Whether the handler of a route that is open to anybody is told who calls, if the caller proves it."""
    configured: bool = False
    """Whether it is there only where the server's configuration says so."""

    @property
    def is_change(self) -> bool:
        """Whether what a person does by it is told to the audit."""
        return self.audited and (self.method != "GET" if self.changes is None else self.changes)


def allow(*roles: Role) -> frozenset[Role]:
    """The roles that may call a route; admins and production managers may call all that users may."""
    return frozenset(roles) | ({Role.PRODUCTION, Role.ADMIN} if Role.USER in roles else set())


PAGE_LIMIT = 1000
"""Rows in a page at the most."""


def page_of(call: Call) -> tuple[int, int]:
    """``after`` and ``limit`` of a list."""
    return call.count("after", 0), max(1, call.count("limit", 100, PAGE_LIMIT))
