"""All routes."""

from __future__ import annotations

from typing import Any

from server.api import health, pilots, work, world
from server.api.openapi import document
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher


def _openapi(_: Dispatcher, __: Call) -> dict[str, Any]:
    return document(ROUTES)


ROUTES: tuple[Route, ...] = (
    *pilots.ROUTES,
    *work.ROUTES,
    *world.ROUTES,
    *health.ROUTES,
    Route("GET", "/v1/openapi.json", allow(Role.ANYBODY), _openapi, "This protocol as OpenAPI"),
)
