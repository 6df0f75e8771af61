"""Sites, queues, storages, shares and settings: what admins describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, Union

import msgspec
from sqlalchemy import Connection, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from common.wire import QueueSpec, ShareSpec, SiteSpec, StorageSpec
from server.engine.shares import DEFAULT_SHARE
from server.engine.world import World
from server.store.schema import queue, revision, setting, share, site, storage
from server.store.triggers import WORLD

Spec = Union[SiteSpec, QueueSpec, StorageSpec]
T = TypeVar("T", SiteSpec, QueueSpec, StorageSpec)

_TABLES: dict[type[Any], Table] = {SiteSpec: site, QueueSpec: queue, StorageSpec: storage}


class StillUsed(Exception):
    """Something else refers to what was to be deleted."""


def load(connection: Connection) -> World:
    """The whole world."""
    return World(
        sites={spec.name: spec for spec in every(connection, SiteSpec)},
        queues={spec.name: spec for spec in every(connection, QueueSpec)},
        storages={spec.name: spec for spec in every(connection, StorageSpec)},
    )


def revision_of(connection: Connection) -> int:
    """A number that grows with each change of anything here."""
    found = connection.execute(select(revision.c.n).where(revision.c.name == WORLD)).scalar()
    return int(found or 0)


def hold(connection: Connection) -> None:
    """Let nobody else change anything here until the end of this transaction: for who writes what follows from all of it."""
    connection.execute(select(revision.c.n).where(revision.c.name == WORLD).with_for_update())


def _changed(connection: Connection) -> None:
    if not connection.execute(update(revision).where(revision.c.name == WORLD).values(n=revision.c.n + 1)).rowcount:
        connection.execute(insert(revision).values(name=WORLD, n=1))


def every(connection: Connection, kind: type[T]) -> list[T]:
    """All of a kind, by name."""
    table = _TABLES[kind]
    rows = connection.execute(select(table.c.spec).order_by(table.c.name))
    return [msgspec.json.decode(row.spec, type=kind) for row in rows]


def one(connection: Connection, kind: type[T], name: str) -> T | None:
    """The one of that name, if there."""
    table = _TABLES[kind]
    spec = connection.execute(select(table.c.spec).where(table.c.name == name)).scalar()
    return None if spec is None else msgspec.json.decode(spec, type=kind)


def put(connection: Connection, spec: Spec) -> bool:
    """Write it; True if it was not there before."""
    _changed(connection)
    table = _TABLES[type(spec)]
    values: dict[str, object] = {"status": spec.status.value, "spec": msgspec.json.encode(spec).decode()}
    if not isinstance(spec, SiteSpec):
        values["site"] = spec.site
    changed = connection.execute(update(table).where(table.c.name == spec.name).values(**values))
    if changed.rowcount:
        return False
    connection.execute(insert(table).values(name=spec.name, **values))
    return True


def remove(connection: Connection, kind: type[T], name: str) -> bool:
    """Delete it; False if it was not there.

    Raises:
        StillUsed: a queue, storage or worker refers to it.
    """
    _changed(connection)
    table = _TABLES[kind]
    try:
        return bool(connection.execute(delete(table).where(table.c.name == name)).rowcount)
    except IntegrityError as error:
        raise StillUsed(
            f"{table.name} {name} is still used by others; set it offline, or delete those first"
        ) from error


def shares(connection: Connection) -> Sequence[ShareSpec]:
    """The share tree; the default share is always there."""
    found = [
        ShareSpec(row.name, row.parent, row.weight) for row in connection.execute(select(share).order_by(share.c.name))
    ]
    if all(spec.name != DEFAULT_SHARE for spec in found):
        found.append(ShareSpec(DEFAULT_SHARE))
    return found


def put_share(connection: Connection, spec: ShareSpec) -> None:
    """Write a share."""
    _changed(connection)
    values = {"parent": spec.parent, "weight": spec.weight}
    if not connection.execute(update(share).where(share.c.name == spec.name).values(**values)).rowcount:
        connection.execute(insert(share).values(name=spec.name, **values))


def remove_share(connection: Connection, name: str) -> bool:
    """Delete a share; False if it was not there.

    Raises:
        StillUsed: it has children.
    """
    _changed(connection)
    try:
        return bool(connection.execute(delete(share).where(share.c.name == name)).rowcount)
    except IntegrityError as error:
        raise StillUsed(f"share {name} has children; delete those first") from error


def settings(connection: Connection) -> dict[str, Any]:
    """The knobs that admins turned, by key."""
    return {row.key: msgspec.json.decode(row.value) for row in connection.execute(select(setting))}


def remove_setting(connection: Connection, key: str) -> None:
    """Put a knob back to its default."""
    _changed(connection)
    connection.execute(delete(setting).where(setting.c.key == key))


def put_setting(connection: Connection, key: str, value: object) -> None:
    """Turn a knob."""
    _changed(connection)
    encoded = msgspec.json.encode(value).decode()
    if not connection.execute(update(setting).where(setting.c.key == key).values(value=encoded)).rowcount:
        connection.execute(insert(setting).values(key=key, value=encoded))
