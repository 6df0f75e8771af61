"""All routes."""

from __future__ import annotations

from typing import Any

from server.api import (
    access,
    accounting,
    agents,
    commands,
    datasets,
    events,
    health,
    inputs,
    metrics,
    pilots,
    projects,
    provenance,
    retry_rules,
    sandboxes,
    secrets,
    tagging,
    work,
    world,
)
from server.api.openapi import document
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher


def _openapi(_: Dispatcher, __: Call) -> dict[str, Any]:
    return document(ROUTES)


ROUTES: tuple[Route, ...] = (
    *pilots.ROUTES,
    *work.ROUTES,
    *datasets.ROUTES,
    *provenance.ROUTES,
    *accounting.ROUTES,
    *commands.ROUTES,
    *inputs.ROUTES,
    *projects.ROUTES,
    *sandboxes.ROUTES,
    *secrets.ROUTES,
    *tagging.ROUTES,
    *world.ROUTES,
    *access.ROUTES,
    *retry_rules.ROUTES,
    *events.ROUTES,
    *agents.ROUTES,
    *metrics.ROUTES,
    *health.ROUTES,
    Route("GET", "/v1/openapi.json", allow(Role.ANYBODY), _openapi, "This protocol as OpenAPI"),
)
