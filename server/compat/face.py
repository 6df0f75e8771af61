"""A face: one protocol of another system's clients, as data that the app mounts.

Its routes are routes like our own: who may call each is said there and tested alike. A handler finds a
:class:`server.compat.bodies.Body` in ``call.body``, checks what it needs (unknown fields and parameters are nothing to
complain of: these clients are not ours), calls ``server/dispatch``, and answers with ``Raw``. Whatever is refused, by the
handler or before it, reaches the client through :attr:`Face.refused`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import falcon
import msgspec

from common.problem import Problem
from server.api.auth import bearer
from server.api.routing import Raw, Route
from server.compat.settings import Compat

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
NO_PAGE = "pilotage:http"
"""The type of a problem with the address or the method of a request; its detail is the address alone."""


@dataclass(frozen=True)
class Face:
    """One protocol: its routes, how its clients want to be refused, and where they have their token."""

    name: str
    routes: tuple[Route, ...]
    refused: Callable[[falcon.Request, Problem], Raw]
    """A refusal in this client's words; the status is the client's, too."""
    credential: Callable[[falcon.Request], str | None] = bearer
    """The token that a request carries, if any."""
    below: tuple[str, ...] = ()
    """Paths that are this protocol's with all that is below them: what is not there is refused in its client's words, too."""
    check: Callable[[Compat], None] = lambda _: None
    """Raises ConfigError for settings with which it could serve nobody; asked when the server starts."""

    def owns(self, path: str) -> bool:
        """Whether a path is this protocol's, whether something is there or not."""
        return any(path == each or path.startswith(f"{each}/") for each in self.below)


def words_of(problem: Problem) -> str:
    """What a refusal says to a person, in one line."""
    if problem.type == NO_PAGE:
        return f"{problem.title}: {problem.detail}"
    return problem.detail or problem.title


def as_json(content: Any, status: int = 200, content_type: str = JSON, **headers: str) -> Raw:
    """An answer in JSON; underscores in the headers' names stand for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Raw(msgspec.json.encode(content), content_type, status, named)


def as_text(content: str, status: int = 200, **headers: str) -> Raw:
    """An answer in words."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Raw(content.encode(), TEXT, status, named)
