"""Proxies that people delegated: sealed bytes, whose key the database does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from server.store.schema_direct import delegated_proxy, direct_run


@dataclass(frozen=True)
class ProxyRow:
    """A delegated proxy; without ``subject`` a request that nobody has answered. ``sealed`` holds key and chain."""

    id: int
    subject: str | None
    sealed: bytes
    stamp: str
    expires: float


def add(connection: Connection, stamp: str, expires: float, now: float) -> int:
    """Make room for a request; its number. What it holds follows, sealed for that number."""
    result = connection.execute(
        insert(delegated_proxy)
        .values(sealed=b"", stamp=stamp, created=now, expires=expires)
        .returning(delegated_proxy.c.id)
    )
    return int(result.scalar_one())


def seal(connection: Connection, proxy_id: int, sealed: bytes) -> None:
    """Write down what a request holds."""
    connection.execute(update(delegated_proxy).where(delegated_proxy.c.id == proxy_id).values(sealed=sealed))


def unanswered(connection: Connection, now: float) -> int:
    """How many requests wait for an answer."""
    query = select(func.count()).where(delegated_proxy.c.subject.is_(None), delegated_proxy.c.expires > now)
    return int(connection.execute(query).scalar_one())


def get(connection: Connection, proxy_id: int, *, lock: bool = False) -> ProxyRow | None:
    """A proxy, or a request."""
    query = select(delegated_proxy).where(delegated_proxy.c.id == proxy_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    return None if row is None else _row(row)


def _row(row: Any) -> ProxyRow:
    return ProxyRow(row.id, row.subject, bytes(row.sealed), row.stamp, row.expires)


def of_subject(connection: Connection, subject: str) -> ProxyRow | None:
    """A person's proxy, ended or not; its row is held."""
    query = select(delegated_proxy).where(delegated_proxy.c.subject == subject).with_for_update()
    row = connection.execute(query).first()
    return None if row is None else _row(row)


def empty(connection: Connection, subject: str, now: float) -> None:
    """A person's proxy has ended, and nothing is kept of it but whose it was."""
    connection.execute(
        update(delegated_proxy).where(delegated_proxy.c.subject == subject).values(sealed=b"", expires=now - 1)
    )


def prove(connection: Connection, proxy: ProxyRow) -> None:
    """Write down whose proxy it is, and its chain."""
    connection.execute(
        update(delegated_proxy)
        .where(delegated_proxy.c.id == proxy.id)
        .values(subject=proxy.subject, sealed=proxy.sealed, stamp=proxy.stamp, expires=proxy.expires)
    )


def drop(connection: Connection, proxy_ids: Sequence[int]) -> int:
    """Forget proxies; how many there were."""
    return int(connection.execute(delete(delegated_proxy).where(delegated_proxy.c.id.in_(proxy_ids))).rowcount)


def used_by(connection: Connection, harvester: str, proxy_ids: Sequence[int]) -> set[int]:
    """Those of the proxies under which runs of a harvester run."""
    query = select(direct_run.c.proxy_id).where(
        direct_run.c.proxy_id.in_(proxy_ids), direct_run.c.harvester == harvester
    )
    return {row.proxy_id for row in connection.execute(query.distinct())}


def drop_old(connection: Connection, now: float, kept_until: float, limit: int = 500) -> int:
    """Take away requests that nobody answered in time, and proxies that ended long ago; how many."""
    over = (delegated_proxy.c.subject.is_(None) & (delegated_proxy.c.expires <= now)) | (
        delegated_proxy.c.expires <= kept_until
    )
    runs = select(direct_run.c.proxy_id).where(direct_run.c.proxy_id == delegated_proxy.c.id).exists()
    query = select(delegated_proxy.c.id).where(delegated_proxy.c.expires <= now, over, ~runs)
    old = [row.id for row in connection.execute(query.order_by(delegated_proxy.c.expires).limit(limit))]
    return drop(connection, old) if old else 0
