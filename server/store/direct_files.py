"""The files of direct jobs, in pieces, as sandboxes are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import IO

from sqlalchemy import Connection, delete, func, insert, select

from common.wire.direct import DirectFile, DirectFileView
from server.store.lists import among
from server.store.schema_direct import direct_file, direct_job, direct_part

PART_BYTES = 1024 * 1024

Reader = Callable[[], AbstractContextManager[Connection]]
"""Gives a connection for reading."""


class FileKind(IntEnum):
    """Whose a file is."""

    INPUT = 0
    """Its owner uploaded it for the job."""
    RESULT = 1
    """The job left it."""


@dataclass(frozen=True)
class FileRow:
    """A file that is to be kept."""

    direct_id: int
    kind: FileKind
    path: str
    size: int
    sha256: str


def keep(connection: Connection, row: FileRow, content: IO[bytes]) -> None:
    """Keep a file; it replaces one of the same path."""
    drop(connection, row.direct_id, row.kind, row.path)
    values = {"direct_id": row.direct_id, "kind": int(row.kind), "path": row.path}
    made = connection.execute(
        insert(direct_file).values(**values, size=row.size, sha256=row.sha256).returning(direct_file.c.id)
    ).scalar_one()
    number = 0
    while piece := content.read(PART_BYTES):
        connection.execute(insert(direct_part).values(file_id=made, part=number, data=piece))
        number += 1


def drop(connection: Connection, direct_id: int, kind: FileKind | None = None, path: str | None = None) -> None:
    """Take files of a job away: all, those of a kind, or one."""
    where = [direct_file.c.direct_id == direct_id]
    if kind is not None:
        where.append(direct_file.c.kind == int(kind))
    if path is not None:
        where.append(direct_file.c.path == path)
    ids = [row.id for row in connection.execute(select(direct_file.c.id).where(*where))]
    if ids:
        connection.execute(delete(direct_part).where(among(connection, direct_part.c.file_id, ids)))
        connection.execute(delete(direct_file).where(among(connection, direct_file.c.id, ids)))


def inputs(connection: Connection, direct_ids: Sequence[int]) -> dict[int, list[DirectFile]]:
    """What was uploaded for these jobs."""
    query = select(direct_file).where(direct_file.c.direct_id.in_(direct_ids), direct_file.c.kind == FileKind.INPUT)
    found: dict[int, list[DirectFile]] = {direct_id: [] for direct_id in direct_ids}
    for row in connection.execute(query.order_by(direct_file.c.id)):
        found[row.direct_id].append(DirectFile(row.path, row.size, row.sha256))
    return found


def listing(connection: Connection, direct_id: int, kind: FileKind) -> list[DirectFileView]:
    """The files of a kind of a job, by path."""
    query = select(direct_file.c.path, direct_file.c.size).where(
        direct_file.c.direct_id == direct_id, direct_file.c.kind == int(kind)
    )
    return [DirectFileView(row.path, row.size) for row in connection.execute(query.order_by(direct_file.c.path))]


def find(connection: Connection, direct_id: int, kind: FileKind, path: str) -> tuple[int, int] | None:
    """Number and size of a file."""
    query = select(direct_file.c.id, direct_file.c.size).where(
        direct_file.c.direct_id == direct_id, direct_file.c.kind == int(kind), direct_file.c.path == path
    )
    row = connection.execute(query).first()
    return None if row is None else (row.id, row.size)


def used_by(connection: Connection, owner: str) -> tuple[int, int]:
    """Bytes and number of a person's files."""
    query = (
        select(func.coalesce(func.sum(direct_file.c.size), 0), func.count(direct_file.c.id))
        .join(direct_job, direct_job.c.id == direct_file.c.direct_id)
        .where(direct_job.c.owner == owner)
    )
    total, number = connection.execute(query).one()
    return int(total), int(number)


def pieces(read: Reader, file_id: int) -> Iterator[bytes]:
    """A file's content, piece by piece, each read on its own so that a slow reader holds no connection."""
    number = 0
    while True:
        query = select(direct_part.c.data).where(direct_part.c.file_id == file_id, direct_part.c.part == number)
        with read() as connection:
            data = connection.execute(query).scalar()
        if data is None:
            return
        yield bytes(data)
        number += 1
