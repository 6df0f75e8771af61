"""Uploaded sandboxes: once by their content, whoever uploads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.wire import SandboxView
from server.store.schema import job, task
from server.store.schema_commands import sandbox, sandbox_owner, sandbox_part, sandbox_use
from server.store.schema_panda_client import panda_file

PART_BYTES = 1024 * 1024

SandboxReader = Callable[[], AbstractContextManager[Connection]]
"""Gives a connection for reading."""


@dataclass(frozen=True)
class SandboxRow:
    """A sandbox: the SHA-256 of its bytes, and how many they are."""

    sha256: str
    size: int


def keep(connection: Connection, owner: str, row: SandboxRow, content: IO[bytes], now: float) -> None:
    """Keep a sandbox for its owner; the bytes, of which ``row`` tells hash and size, only once."""
    sha256 = row.sha256
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    made = connection.execute(
        dialect_insert(sandbox)
        .values(sha256=sha256, size=row.size, created=now, used=now)
        .on_conflict_do_nothing()
        .returning(sandbox.c.sha256)
    ).first()
    if made is not None:
        number = 0
        while piece := content.read(PART_BYTES):
            connection.execute(insert(sandbox_part).values(sha256=sha256, part=number, data=piece))
            number += 1
    else:
        touch(connection, [sha256], now)
    connection.execute(
        dialect_insert(sandbox_owner)
        .values(owner=owner, sha256=sha256, uploaded=now)
        .on_conflict_do_update(index_elements=[sandbox_owner.c.owner, sandbox_owner.c.sha256], set_={"uploaded": now})
    )


def touch(connection: Connection, hashes: Sequence[str], now: float) -> None:
    """They are wanted: they are kept for a while from now on."""
    connection.execute(update(sandbox).where(sandbox.c.sha256.in_(hashes)).values(used=now))


def get(connection: Connection, sha256: str) -> SandboxRow | None:
    """A sandbox that is there."""
    row = connection.execute(select(sandbox.c.size).where(sandbox.c.sha256 == sha256)).first()
    return None if row is None else SandboxRow(sha256, row.size)


def part(connection: Connection, sha256: str, number: int) -> bytes | None:
    """One piece of its content; None behind the last."""
    query = select(sandbox_part.c.data).where(sandbox_part.c.sha256 == sha256, sandbox_part.c.part == number)
    data = connection.execute(query).scalar()
    return None if data is None else bytes(data)


def used_by(connection: Connection, owner: str, without: str = "") -> int:
    """Bytes of a person's sandboxes, all but one."""
    query = (
        select(func.coalesce(func.sum(sandbox.c.size), 0))
        .join(sandbox_owner, sandbox_owner.c.sha256 == sandbox.c.sha256)
        .where(sandbox_owner.c.owner == owner, sandbox.c.sha256 != without)
    )
    return int(connection.execute(query).scalar_one())


def of_owner(connection: Connection, owner: str, limit: int = 1000) -> list[SandboxView]:
    """A person's sandboxes, the newest first."""
    query = (
        select(sandbox, sandbox_owner.c.uploaded)
        .join(sandbox_owner, sandbox_owner.c.sha256 == sandbox.c.sha256)
        .where(sandbox_owner.c.owner == owner)
        .order_by(sandbox_owner.c.uploaded.desc(), sandbox.c.sha256)
        .limit(limit)
    )
    return [SandboxView(row.sha256, row.size, row.uploaded, row.used) for row in connection.execute(query)]


def missing(connection: Connection, hashes: Sequence[str]) -> set[str]:
    """Those that are not there."""
    query = select(sandbox.c.sha256).where(sandbox.c.sha256.in_(hashes))
    return set(hashes) - {row.sha256 for row in connection.execute(query)}


def use(connection: Connection, uses: Sequence[tuple[int, str]], now: float) -> None:
    """These tasks unpack these sandboxes, which are kept as long as the tasks are."""
    if uses:
        connection.execute(insert(sandbox_use), [{"task_id": task_id, "sha256": sha256} for task_id, sha256 in uses])
        touch(connection, sorted({sha256 for _, sha256 in uses}), now)


def wanted_by_pilot(connection: Connection, sha256: str, pilot_id: int) -> bool:
    """Whether a live job of the pilot unpacks this sandbox."""
    query = (
        select(job.c.id)
        .join(sandbox_use, sandbox_use.c.task_id == job.c.task_id)
        .where(job.c.pilot_id == pilot_id, job.c.ended.is_(None), sandbox_use.c.sha256 == sha256)
    )
    return connection.execute(query.limit(1)).first() is not None


def drop_unused(connection: Connection, before: float, limit: int = 100) -> int:
    """Take sandboxes away that no task names and nobody wanted since ``before``; how many."""
    named = select(sandbox_use.c.sha256).join(task, task.c.id == sandbox_use.c.task_id)
    query = (
        select(sandbox.c.sha256)
        .where(sandbox.c.used < before, sandbox.c.sha256.not_in(named))
        .order_by(sandbox.c.used)
        .limit(limit)
        .with_for_update()
    )
    old = [row.sha256 for row in connection.execute(query)]
    if old:
        for table in (panda_file, sandbox_use, sandbox_owner, sandbox_part, sandbox):
            connection.execute(delete(table).where(table.c.sha256.in_(old)))
    return len(old)


def of_task(connection: Connection, task_id: int) -> SandboxRow | None:
    """The sandbox that a task unpacks."""
    query = (
        select(sandbox.c.sha256, sandbox.c.size)
        .join(sandbox_use, sandbox_use.c.sha256 == sandbox.c.sha256)
        .where(sandbox_use.c.task_id == task_id)
    )
    row = connection.execute(query).first()
    return None if row is None else SandboxRow(row.sha256, row.size)


def pieces(read: SandboxReader, sha256: str) -> Iterator[bytes]:
    """Its content, piece by piece, each read on its own so that a slow reader holds no connection."""
    number = 0
    while True:
        with read() as connection:
            data = part(connection, sha256, number)
        if data is None:
            return
        yield data
        number += 1
