"""What tasks read, until units are made of it: submitted file lists, answers of catalogues, secondary inputs.

A file list lies here in parts, so that a task's own row stays small however many files it has.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.states import TaskState
from common.wire import DatasetInput, FilesInput, FileSpec, ReplicaSpec, StageSpec
from common.wire.projects import ProjectFile
from server.engine.inputs import matches, units_of
from server.store.schema import task, unit, unit_detail
from server.store.schema_inputs import secondary_file, task_file, task_input, task_source

CHUNK = 1000
"""Units that the files in one row of a list make, about."""
ROWS = 20
"""Rows of a list that are written by one statement."""
WORKABLE = tuple(
    state.value
    for state in (
        TaskState.DEFINED,
        TaskState.PENDING,
        TaskState.READY,
        TaskState.SCOUTING,
        TaskState.RUNNING,
        TaskState.THROTTLED,
        TaskState.EXHAUSTED,
    )
)
"""States of tasks whose input is worked on."""
OVER = (TaskState.BROKEN.value, TaskState.ABORTED.value)
"""States from which a task never comes back: its input is put aside."""


@dataclass(frozen=True)
class Source:
    """How far a task's input is: see :data:`server.store.schema_inputs.task_source`."""

    task_id: int
    files: int = 0
    chunks: int = 0
    after: str = ""
    closing: bool = False
    failures: int = 0
    next_at: float | None = None


def lighter(stage: StageSpec) -> StageSpec:
    """The stage without its file lists, for the task's row: those are kept here by :func:`begin`."""
    given = stage.input
    return msgspec.structs.replace(
        stage,
        input=msgspec.structs.replace(given, files=[]) if isinstance(given, FilesInput) else given,
        secondary_inputs=[msgspec.structs.replace(each, files=[]) for each in stage.secondary_inputs],
    )


def begin(connection: Connection, task_id: int, stage: StageSpec, now: float) -> None:
    """Keep the file lists of a new task, and have its units made."""
    given = stage.input
    if isinstance(given, (FilesInput, DatasetInput)):
        files = given.files if isinstance(given, FilesInput) else []
        chunks = _write_chunks(connection, task_id, 0, files, given.events_per_unit)
        connection.execute(
            insert(task_source).values(task_id=task_id, chunks=chunks, closing=not given.open, next_at=now)
        )
    for secondary in stage.secondary_inputs:
        chosen = [file for file in secondary.files if matches(file.did, secondary.pattern)]
        add_secondary(connection, task_id, secondary.name, 0, chosen)


def _write_chunks(
    connection: Connection, task_id: int, first: int, files: Sequence[FileSpec], events_per_unit: int | None
) -> int:
    """Write a list in parts; the number that the next part has."""
    number = first
    rows = []
    for number, part in enumerate(_parts(files, events_per_unit), first + 1):
        rows.append({"task_id": task_id, "n": number - 1, "body": msgspec.json.encode(part)})
        if len(rows) == ROWS:
            connection.execute(insert(task_input), rows)
            rows = []
    if rows:
        connection.execute(insert(task_input), rows)
    return number


def _parts(files: Sequence[FileSpec], events_per_unit: int | None) -> Iterator[list[FileSpec]]:
    """Parts of a list that make about as many units each."""
    part: list[FileSpec] = []
    made = 0
    for file in files:
        part.append(file)
        made += units_of(file, events_per_unit)
        if made >= CHUNK:
            yield part
            part, made = [], 0
    if part:
        yield part


def due(connection: Connection, now: float, limit: int = 100) -> list[int]:
    """Tasks whose input can be worked on now, the longest due first."""
    query = (
        select(task_source.c.task_id)
        .join(task, task.c.id == task_source.c.task_id)
        .where(task_source.c.next_at <= now, task.c.state.in_(WORKABLE), ~task.c.input_closed)
        .order_by(task_source.c.next_at, task_source.c.task_id)
        .limit(limit)
    )
    return [row.task_id for row in connection.execute(query)]


def without_source(connection: Connection, limit: int = 100) -> list[int]:
    """New tasks whose units are made of no file list: counters, outputs of stages, single ones."""
    query = (
        select(task.c.id)
        .outerjoin(task_source, task.c.id == task_source.c.task_id)
        .where(task.c.state == TaskState.DEFINED.value, task_source.c.task_id.is_(None))
        .order_by(task.c.id)
        .limit(limit)
    )
    return [row.id for row in connection.execute(query)]


def source_of(connection: Connection, task_id: int) -> Source | None:
    """How far a task's input is, if it has a list or a catalogue. The task's row should be held."""
    row = connection.execute(select(task_source).where(task_source.c.task_id == task_id)).mappings().first()
    return None if row is None else Source(**row)


def save(connection: Connection, source: Source) -> None:
    """Write down how far it is."""
    values = {
        "files": source.files,
        "chunks": source.chunks,
        "after": source.after,
        "closing": source.closing,
        "failures": source.failures,
        "next_at": source.next_at,
    }
    connection.execute(update(task_source).where(task_source.c.task_id == source.task_id).values(**values))


def add_files(
    connection: Connection, source: Source, files: Sequence[FileSpec], events_per_unit: int | None, now: float
) -> Source:
    """Put more files behind a list; how far it is then."""
    chunks = _write_chunks(connection, source.task_id, source.chunks, files, events_per_unit)
    more = replace(source, chunks=chunks, closing=False, failures=0, next_at=now)
    save(connection, more)
    return more


def close(connection: Connection, source: Source, now: float) -> None:
    """No more will come: what is there is looked at once more, and then the input is closed."""
    save(connection, replace(source, closing=True, next_at=now))


def first_chunk(connection: Connection, task_id: int) -> tuple[int, list[FileSpec]] | None:
    """The number and the files of the first part of a list that is left; None when there is none."""
    query = select(task_input.c.n, task_input.c.body).where(task_input.c.task_id == task_id)
    row = connection.execute(query.order_by(task_input.c.n).limit(1)).first()
    return None if row is None else (row.n, _FILES.decode(row.body))


_FILES: msgspec.json.Decoder[list[FileSpec]] = msgspec.json.Decoder(list[ProjectFile])
"""Those of a virtual project have no replicas."""


def drop_chunk(connection: Connection, task_id: int, n: int) -> bool:
    """A part is made into units; whether parts are left."""
    connection.execute(delete(task_input).where(task_input.c.task_id == task_id, task_input.c.n == n))
    return (
        connection.execute(select(task_input.c.n).where(task_input.c.task_id == task_id).limit(1)).first() is not None
    )


def take_new(connection: Connection, task_id: int, files: Iterable[FileSpec]) -> list[FileSpec]:
    """Those of the files that the task has not had yet, each once; it has them now."""
    by_digest = {digest(file.did): file for file in reversed(list(files))}
    if not by_digest:
        return []
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(task_file).on_conflict_do_nothing().returning(task_file.c.digest)
    new: set[bytes] = set()
    digests = sorted(by_digest)
    for start in range(0, len(digests), CHUNK):
        rows = [{"task_id": task_id, "digest": digest} for digest in digests[start : start + CHUNK]]
        new |= {bytes(row.digest) for row in connection.execute(statement, rows)}
    return [file for digest, file in reversed(list(by_digest.items())) if digest in new]


def digest(did: str) -> bytes:
    """What stands for a DID in tables with a row for each file."""
    return hashlib.blake2b(did.encode(), digest_size=16).digest()


def restored(connection: Connection, task_id: int, stage: dict[str, Any]) -> dict[str, Any]:
    """A stage as it was submitted, its file lists included, of the description in the task's row."""
    given = stage.get("input", {})
    if given.get("kind") == "files":
        stage = {**stage, "input": {**given, "files": _all_files(connection, task_id)}}
    if stage.get("secondary_inputs"):
        counts = secondary_counts(connection, task_id)
        listed = [each for each in stage["secondary_inputs"] if each.get("stage") is None]
        wanted = {each["name"]: range(counts.get(each["name"], 0)) for each in listed}
        files = secondary_files(connection, task_id, wanted)
        streams = [{**each, "files": files.get(each["name"], [])} for each in stage["secondary_inputs"]]
        stage = {**stage, "secondary_inputs": streams}
    return stage


def _all_files(connection: Connection, task_id: int) -> list[FileSpec]:
    """Those that are units by now, each once, and those of the parts that are left."""
    query = (
        select(unit_detail)
        .join(unit, unit.c.id == unit_detail.c.unit_id)
        .where(unit.c.task_id == task_id, unit_detail.c.did.is_not(None))
        .order_by(unit.c.id)
    )
    found: dict[str, FileSpec] = {}
    events: Counter[str] = Counter()
    for row in connection.execute(query):
        events[row.did] += row.events or 0
        found[row.did] = FileSpec(
            did=row.did,
            size=row.size,
            events=events[row.did] if row.events is not None else None,
            checksum=row.checksum,
            replicas=msgspec.json.decode(row.replicas, type=list[ReplicaSpec]),
            attributes=msgspec.json.decode(row.attributes) if row.attributes else {},
        )
    parts = select(task_input.c.body).where(task_input.c.task_id == task_id).order_by(task_input.c.n)
    for part in connection.execute(parts):
        found.update((file.did, FileSpec(**msgspec.structs.asdict(file))) for file in _FILES.decode(part.body))
    return list(found.values())


def drop(connection: Connection, task_ids: Collection[int]) -> None:
    """Forget what is left of the inputs of these tasks; the units that were made stay."""
    ids = sorted(task_ids)
    for table in (task_input, task_file, task_source):
        connection.execute(delete(table).where(table.c.task_id.in_(ids)))


def put_aside(connection: Connection, task_ids: Collection[int]) -> None:
    """Look at the inputs of these tasks no more. Files that never became units stay, for clones of the task."""
    ids = sorted(task_ids)
    for table in (task_file, task_source):
        connection.execute(delete(table).where(table.c.task_id.in_(ids)))


def untaken(connection: Connection, task_id: int) -> bool:
    """Whether a task's list has files that never became units."""
    query = select(task_input.c.n).where(task_input.c.task_id == task_id).limit(1)
    return connection.execute(query).first() is not None


def ended(connection: Connection, limit: int = 100) -> list[int]:
    """Tasks that take no more, with something left of their input that nobody will look at again."""
    query = select(task_source.c.task_id).outerjoin(task, task.c.id == task_source.c.task_id)
    told_to_finish = and_(task.c.input_closed, task_source.c.next_at.is_not(None))
    query = query.where(or_(task.c.id.is_(None), task.c.state.in_(OVER), told_to_finish)).limit(limit)
    return [row.task_id for row in connection.execute(query)]


def add_secondary(connection: Connection, task_id: int, stream: str, first: int, files: Sequence[FileSpec]) -> None:
    """Put files behind a secondary input that has ``first`` files."""
    rows = [
        {"task_id": task_id, "stream": stream, "n": first + index, "body": msgspec.json.encode(file)}
        for index, file in enumerate(files)
    ]
    if rows:
        connection.execute(insert(secondary_file), rows)


def secondary_counts(connection: Connection, task_id: int) -> dict[str, int]:
    """How many files each secondary input of a task has; those that have none are not told."""
    query = select(secondary_file.c.stream, func.max(secondary_file.c.n).label("last"))
    query = query.where(secondary_file.c.task_id == task_id).group_by(secondary_file.c.stream)
    return {row.stream: row.last + 1 for row in connection.execute(query)}


def secondary_files(
    connection: Connection, task_id: int, wanted: Mapping[str, Sequence[int]]
) -> dict[str, list[FileSpec]]:
    """Files of secondary inputs by their numbers, in the order that is asked for."""
    found: dict[str, list[FileSpec]] = {}
    for stream, numbers in wanted.items():
        query = select(secondary_file.c.n, secondary_file.c.body).where(
            secondary_file.c.task_id == task_id, secondary_file.c.stream == stream, secondary_file.c.n.in_(numbers)
        )
        bodies = {row.n: row.body for row in connection.execute(query)}
        found[stream] = [_FILE.decode(bodies[n]) for n in numbers if n in bodies]
    return found


_FILE = msgspec.json.Decoder(FileSpec)
