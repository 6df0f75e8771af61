"""Secrets of people: sealed bytes, whose key the database does not have."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from common.wire import SecretView
from server.store.schema_commands import user_secret


def put(connection: Connection, owner: str, name: str, sealed: bytes, now: float) -> None:
    """Keep a person's secret; it replaces one of the same name."""
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        dialect_insert(user_secret)
        .values(owner=owner, name=name, sealed=sealed, changed=now)
        .on_conflict_do_update(
            index_elements=[user_secret.c.owner, user_secret.c.name], set_={"sealed": sealed, "changed": now}
        )
    )


def sealed(connection: Connection, owner: str, names: Sequence[str]) -> dict[str, bytes]:
    """Those of a person's secrets, sealed; names that are not there are left out."""
    query = select(user_secret.c.name, user_secret.c.sealed).where(
        user_secret.c.owner == owner, user_secret.c.name.in_(names)
    )
    return {row.name: bytes(row.sealed) for row in connection.execute(query)}


def of_owner(connection: Connection, owner: str) -> list[SecretView]:
    """The names of a person's secrets."""
    query = select(user_secret.c.name, user_secret.c.changed).where(user_secret.c.owner == owner)
    return [SecretView(row.name, row.changed) for row in connection.execute(query.order_by(user_secret.c.name))]


def drop(connection: Connection, owner: str, name: str) -> bool:
    """Forget a secret; False if there was none."""
    where = (user_secret.c.owner == owner) & (user_secret.c.name == name)
    return bool(connection.execute(delete(user_secret).where(where)).rowcount)
