"""OpenAPI, made from the same types that validate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from common.plugins import version
from common.problem import CONTENT_TYPE, FieldError
from server.api.routing import Role, Route


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the native protocol."""
    types = sorted(
        {kind for route in routes for kind in (route.request, route.reply, ProblemDocument) if kind},
        key=lambda t: t.__name__,
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
            **{str(status): _refusal(status, references) for status in _refusals(route)},
        },
    }
    if Role.ANYBODY not in route.access:
        operation["security"] = [{"bearer": []}]
    if route.stream:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[route.request]}},
        }
    return operation


class ProblemDocument(msgspec.Struct):
    """Why a request was refused (RFC 9457); ``errors`` names the fields that are wrong."""

    title: str
    status: int
    type: str = "about:blank"
    detail: str = ""
    errors: list[FieldError] = []


_MEANINGS = {
    400: "the request is not valid",
    401: "no credential, or one that does not count",
    403: "not allowed to this caller",
    404: "there is no such thing",
    405: "what the path names cannot be asked for this",
    409: "this contradicts what was done before",
    410: "the job is gone",
    413: "the request is too large",
    422: "this does not agree with what the server knows",
    429: "too many requests; Retry-After says when the next may come",
    502: "a service that the server asks did not answer as it must",
    503: "not now; Retry-After says when to come again",
}


def _refusals(route: Route) -> list[int]:
    """The statuses with which a route may refuse."""
    found = {400, 429, 503}
    if Role.ANYBODY not in route.access:
        found |= {401, 403}
    if "{" in route.path:
        found |= {404, 405}
    if route.configured:
        found.add(404)
    if route.method != "GET":
        found |= {401, 403, 404, 409, 422}
    if route.request is not None or route.stream:
        found.add(413)
    if route.late_pilots:
        found.add(410)
    return sorted(found)


def _refusal(status: int, references: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _MEANINGS[status],
        "content": {CONTENT_TYPE: {"schema": references[ProblemDocument]}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return found


def _names(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)
