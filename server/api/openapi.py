"""OpenAPI, made from the same types that validate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from common.plugins import version
from server.api.routing import Role, Route


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the native protocol."""
    types = sorted(
        {kind for route in routes for kind in (route.request, route.reply) if kind}, key=lambda t: t.__name__
    )
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    references = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pilotage", "version": version()},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, references: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    reply: dict[str, Any] = {"description": "done"}
    if route.reply is not None:
        reply["content"] = {"application/json": {"schema": references[route.reply]}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{route.method.lower()} {route.path}").strip("_"),
        "x-roles": sorted(role.value for role in route.access),
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in _names(route.path)),
            *({"name": n, "in": "query", "schema": {"type": "string"}} for n in route.query),
        ],
        "responses": {
            str(route.status): reply,
            "default": {"description": "a problem document", "content": {"application/problem+json": {}}},
        },
    }
    if Role.ANYBODY not in route.access:
        operation["security"] = [{"bearer": []}]
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[route.request]}},
        }
    return operation


def _names(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)
