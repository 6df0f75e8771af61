"""Routes of datasets of outputs, and of registrations that wait."""

from __future__ import annotations

from common.wire import DatasetKind, DatasetPage, DatasetView, OutputPage, RegistrationPage
from server.api.routing import Call, Role, Route, allow, page_of
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.dispatch.rights import sight_of
from server.store import datasets, registrations
from server.store.database import Connection

_USER = allow(Role.USER)
_PAGE = ("after", "limit")


def _datasets(dispatcher: Dispatcher, call: Call) -> DatasetPage:
    after, limit = page_of(call)
    task_id = call.count("task", 0) or None
    kind = call.choice("kind", DatasetKind)
    sight = sight_of(dispatcher, call.caller)
    with dispatcher.database.read() as connection:
        wanted = datasets.Wanted(task_id, call.query.get("scope"), kind)
        items = datasets.page(connection, wanted, sight, after=after, limit=limit)
    return DatasetPage(items[-1].id if len(items) == limit else None, items)


def _existing(dispatcher: Dispatcher, connection: Connection, call: Call) -> DatasetView:
    did = call.path["did"]
    found = datasets.by_did(connection, did, sight_of(dispatcher, call.caller))
    if found is None:
        raise NotFound(f"there is no dataset {did!r}")
    return found


def _dataset(dispatcher: Dispatcher, call: Call) -> DatasetView:
    with dispatcher.database.read() as connection:
        return _existing(dispatcher, connection, call)


def _files(dispatcher: Dispatcher, call: Call) -> OutputPage:
    after, limit = page_of(call)
    world = dispatcher.looks.get().world
    with dispatcher.database.read() as connection:
        found = _existing(dispatcher, connection, call)
        items, following = datasets.files(connection, found.id, world, after=after, limit=limit)
    return OutputPage(next=following, items=list(items))


def _registrations(dispatcher: Dispatcher, call: Call) -> RegistrationPage:
    after, limit = page_of(call)
    task_id = call.count("task", 0) or None
    sight = sight_of(dispatcher, call.caller)
    with dispatcher.database.read() as connection:
        items = registrations.page(connection, task_id, sight, after=after, limit=limit)
    return RegistrationPage(items[-1].job_id if len(items) == limit else None, items)


ROUTES = [
    Route(
        "GET", "/v1/datasets", _USER, _datasets, "List datasets of outputs", reply=DatasetPage,
        query=("task", "scope", "kind", *_PAGE),
    ),
    Route("GET", "/v1/datasets/{did}", _USER, _dataset, "Look at a dataset", reply=DatasetView),
    Route(
        "GET", "/v1/datasets/{did}/files", _USER, _files, "List the visible outputs of a dataset", reply=OutputPage,
        query=_PAGE,
    ),
    Route(
        "GET", "/v1/registrations", _USER, _registrations, "List confirmed jobs whose outputs are not registered yet",
        reply=RegistrationPage, query=("task", *_PAGE),
    ),
]  # fmt: skip
