"""The WSGI app: from :data:`ROUTES` to Falcon resources, and from exceptions to problem documents."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import falcon
import msgspec

from common.problem import CONTENT_TYPE, FieldError, Problem
from server.access.identify import Access
from server.access.limits import limit_of
from server.api.audit import note_change
from server.api.auth import Later, authenticate, bearer
from server.api.metering import Metering
from server.api.routes import ROUTES
from server.api.routing import Call, Raw, Route
from server.compat.bodies import PIECE_BYTES, Body, pieces_of, short_body
from server.compat.face import Face
from server.compat.faces import faces_of
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, Refused, Unauthenticated, Unprocessable
from server.dispatch.rights import check_sight
from server.store.database import DatabaseUnavailable, IntegrityError, UnstorableValue

logger = logging.getLogger(__name__)

MOST_REST = 4 * 1024**3
"""Bytes of a refused body that are taken all the same, of a caller who is known: twice what a person may have here."""
MOST_REST_OF_STRANGERS = 64 * 1024**2


def create_application(
    dispatcher: Dispatcher, routes: Sequence[Route] = ROUTES, faces: Sequence[Face] | None = None
) -> falcon.App[Any, Any]:
    """A WSGI app that serves ``routes`` and ``faces``; which faces, the configuration says if nobody else does.

    Raises:
        ValueError: a route says not who may call it.
        ConfigError: access is not configured as it must be.
    """
    access = Access(dispatcher)
    app = falcon.App(media_type="application/json", middleware=[Metering(dispatcher.watch)])
    resources: dict[str, Any] = {}
    shown = faces_of(dispatcher.config.compat) if faces is None else list(faces)
    served: list[tuple[Route, Face | None]] = [(route, None) for route in routes]
    served += [(route, face) for face in shown for route in face.routes]
    for route, face in served:
        if not route.access:
            raise ValueError(f"{route.method} {route.path} says not who may call it")
        resource = resources.setdefault(route.path, type("Resource", (), {})())
        setattr(resource, f"on_{route.method.lower()}", _responder(dispatcher, access, route, face))
    for path, resource in resources.items():
        app.add_route(path, resource)
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_errors(shown))
    app.add_error_handler(Refused, _refused)
    app.add_error_handler(DatabaseUnavailable, _unavailable)
    app.add_error_handler(IntegrityError, _collision)
    app.add_error_handler(UnstorableValue, _unstorable)
    return app


Responder = Callable[..., None]


def _responder(dispatcher: Dispatcher, access: Access, route: Route, face: Face | None) -> Responder:
    decoder = msgspec.json.Decoder(route.request) if route.request is not None else None

    def respond(req: falcon.Request, resp: falcon.Response, **path: str) -> None:
        req.context.face = face
        caller = authenticate(access, route, req, bearer if face is None else face.credential)
        req.context.known = True
        limit = access.limiter.body_bytes(limit_of(caller.roles))
        body: Any = _decode(decoder, _read(req, limit)) if decoder is not None else None
        if route.stream:
            body = pieces_of(_stream(req), req.content_length)  # whoever takes it counts
        if face is not None:
            body = Body(_stream(req), limit, req.content_length)
        query = _query(req, route, face) if req.query_string else {}
        if caller.pilot_id is None:
            check_sight(dispatcher, caller, path, query)
        call = Call(caller, path, query, body, header=req.get_header)
        reply = route.handler(dispatcher, call)
        if caller.is_person and route.is_change:
            note_change(dispatcher, route, call, reply, req.remote_addr)
            access.forget()
        resp.status = route.status
        if isinstance(reply, Raw):
            _send_raw(resp, reply)
        elif reply is not None:
            resp.data = msgspec.json.encode(reply)

    return respond


def _query(req: falcon.Request, route: Route, face: Face | None) -> dict[str, str]:
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in req.params.items()}
    unknown = sorted(set(query) - set(route.query))
    if unknown and face is None:
        known = ", ".join(route.query) or "none"
        raise Invalid(f"unknown parameter {unknown[0]!r}", [(unknown[0], f"leave it out; known: {known}")])
    return query


def _send_raw(resp: falcon.Response, reply: Raw) -> None:
    if reply.status is not None:
        resp.status = reply.status
    for name, value in reply.headers.items():
        resp.set_header(name, value)
    resp.content_type = reply.content_type
    if isinstance(reply.content, bytes):
        resp.data = reply.content
    else:
        resp.stream = reply.content


def _stream(req: falcon.Request) -> Any:
    """The body of a request, which ends where its length says, if it has one."""
    return req.bounded_stream if req.content_length is not None else req.stream


def _read(req: falcon.Request, limit: int) -> bytes:
    said = req.content_length
    if said is None or said > min(limit, PIECE_BYTES):
        return Body(_stream(req), limit, said).raw()
    return short_body(req.stream, said)


_WHERE = re.compile(r"^(?P<what>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        found = _WHERE.match(str(error))
        path, what = (found["path"], found["what"]) if found else ("$", str(error))
        raise Invalid(f"{path}: {what}", [(path, what)]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is no JSON: {error}", [("$", "send JSON in UTF-8")]) from error


def _send(req: falcon.Request, resp: falcon.Response, problem: Problem) -> None:
    """Say no, in the words of the caller's protocol."""
    face = getattr(req.context, "face", None)
    if face is not None:
        _send_raw(resp, face.refused(req, problem))
        _take_rest(req)
        return
    resp.status = problem.status
    resp.content_type = CONTENT_TYPE
    resp.data = problem.encode()


def _take_rest(req: falcon.Request) -> None:
    """Take what is left of a body that was refused, and keep nothing of it.

    A client of another system sends all of it before it listens: it would find the connection broken, and no words.
    """
    if not req.content_length and not req.get_header("Transfer-Encoding"):
        return
    left = MOST_REST if getattr(req.context, "known", False) else MOST_REST_OF_STRANGERS
    stream = _stream(req)
    while left > 0 and (piece := stream.read(PIECE_BYTES)):
        left -= len(piece)


def _refused(req: falcon.Request, resp: falcon.Response, error: Refused, _: Any) -> None:
    if isinstance(error, Unauthenticated):
        resp.set_header("WWW-Authenticate", "Bearer")
    if isinstance(error, Later):
        resp.set_header("Retry-After", str(max(1, math.ceil(error.retry_after_s))))
    _send(
        req,
        resp,
        Problem(
            title=error.title,
            status=error.status,
            type=error.type,
            detail=error.detail,
            errors=[FieldError(path, message) for path, message in error.errors],
            extensions=error.extensions,
        ),
    )


def _http_errors(faces: Sequence[Face]) -> Responder:
    """The handler of what Falcon refuses: an address or a method that no route has is some protocol's all the same."""

    def handle(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: Any) -> None:
        if getattr(req.context, "face", None) is None:
            req.context.face = next((face for face in faces if face.owns(req.path)), None)
        _http_error(req, resp, error, params)

    return handle


def _http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, _: Any) -> None:
    status = falcon.http_status_to_code(error.status)
    title = "There is no such page" if status == 404 else error.title or "The request cannot be carried out"
    _send(req, resp, Problem(title=title, status=status, type="pilotage:http", detail=error.description or req.path))
    for name, value in (error.headers or {}).items():  # type: ignore[union-attr]
        resp.set_header(name, value)


def _unavailable(req: falcon.Request, resp: falcon.Response, error: DatabaseUnavailable, _: Any) -> None:
    logger.warning("%s %s: the database is not available: %s", req.method, req.path, error)
    req.context.database_failed = True
    resp.set_header("Retry-After", "1")
    _send(req, resp, Problem(title="The database is not available", status=503, type="pilotage:unavailable"))


def _collision(req: falcon.Request, resp: falcon.Response, error: IntegrityError, _: Any) -> None:
    # Two requests did the same thing at the same moment: the one that repeats sees what the other did.
    logger.info("%s %s collided: %s", req.method, req.path, error.orig)
    resp.set_header("Retry-After", "1")
    _send(
        req, resp, Problem(title="Another request did this at the same moment", status=503, type="pilotage:collision")
    )


def _unstorable(req: falcon.Request, resp: falcon.Response, error: UnstorableValue, state: Any) -> None:
    # What the types of the messages don't bound, the columns do.
    refused = Unprocessable(f"a value cannot be kept: {error}", [("$", "send smaller numbers and shorter texts")])
    _refused(req, resp, refused, state)


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, _: Any) -> None:
    logger.error("%s %s failed", req.method, req.path, exc_info=error)
    _send(
        req, resp, Problem(title="A mistake inside the server; its log says more", status=500, type="pilotage:internal")
    )
