"""Admins describe storages."""

from __future__ import annotations

from common.wire import SiteSpec, StorageSpec
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid
from server.engine.credentials import endpoint_problem
from server.store import world
from server.store.world import StillUsed


def put(dispatcher: Dispatcher, spec: StorageSpec) -> StorageSpec:
    """Write a storage, in place of the one of that name.

    Raises:
        Invalid: its site is not known, or what an endpoint wants to be shown cannot be had.
    """
    _check_endpoints(dispatcher, spec)
    with dispatcher.database.write() as connection:
        if world.one(connection, SiteSpec, spec.site) is None:
            names = ", ".join(each.name for each in world.every(connection, SiteSpec)) or "none yet"
            raise Invalid(f"there is no site {spec.site!r}", [("$.site", f"make the site first; known: {names}")])
        world.put(connection, spec)
    dispatcher.changed()
    return spec


def _check_endpoints(dispatcher: Dispatcher, spec: StorageSpec) -> None:
    for index, endpoint in enumerate(spec.endpoints):
        field, remedy = endpoint_problem(endpoint)
        if field:
            where = f"$.endpoints[{index}].{field}"
            raise Invalid(f"{field} does not go with credential {endpoint.credential.value}", [(where, remedy)])
        known = dispatcher.providers.names(endpoint.credential)
        for word in ("provider", "payload_provider"):
            name = getattr(endpoint, word)
            if name is not None and name not in known:
                words = f"name a section [server.credentials.NAME] that gives such credentials: {', '.join(known) or 'none yet'}"
                where = f"$.endpoints[{index}].{word}"
                raise Invalid(f"nobody gives a {endpoint.credential.value} as {name!r}", [(where, words)])


def remove(dispatcher: Dispatcher, name: str) -> bool:
    """Delete a storage; False if there was none of that name.

    Raises:
        Conflict: something refers to it.
    """
    try:
        with dispatcher.database.write() as connection:
            found = world.remove(connection, StorageSpec, name)
    except StillUsed as error:
        raise Conflict(str(error)) from error
    dispatcher.changed()
    return found
