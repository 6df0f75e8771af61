"""All routes."""

from __future__ import annotations

from typing import Any

from server.api import (
    access,
    accounting,
    agents,
    commands,
    credentials,
    datasets,
    direct,
    events,
    harvesters,
    health,
    imports,
    inputs,
    metrics,
    peeks,
    pilots,
    probes,
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
    *credentials.ROUTES,
    *work.ROUTES,
    *peeks.ROUTES,
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
    *imports.ROUTES,
    *harvesters.ROUTES,
    *direct.ROUTES,
    *probes.ROUTES,
    *access.ROUTES,
    *retry_rules.ROUTES,
    *events.ROUTES,
    *agents.ROUTES,
    *metrics.ROUTES,
    *health.ROUTES,
    Route("GET", "/v1/openapi.json", allow(Role.ANYBODY), _openapi, "This protocol as OpenAPI"),
)
