"""Projects by the million files, for ``pilotage bench``: made of tasks that were filled already."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, insert, literal, select, true, update

from common.states import UnitState
from server.store.bulk import check_columns
from server.store.codes import UNIT_CODES
from server.store.database import Database
from server.store.inputs import digest
from server.store.schema import task, unit, unit_detail
from server.store.schema_projects import project, project_file

ROWS = 20_000
WORKER_TIMEOUT_S = 43_200.0


def make_projects(database: Database, role: str, now: float) -> None:
    """Make a project of every task, on which whoever has ``role`` may work."""
    with database.write() as connection:
        values = {
            "task_id": task.c.id,
            "virtual": ~true(),
            "retry_on_timeout": true(),
            "worker_timeout_s": literal(WORKER_TIMEOUT_S),
            "users": literal("[]"),
            "roles": literal(f'["{role}"]'),
            "file_attributes": literal("{}"),
            "active": literal(now),
        }
        check_columns(project, values)
        connection.execute(insert(project).from_select(list(values), select(*values.values())))
        connection.execute(update(task).values(outside=True))
    after = 0
    while True:
        with database.write() as connection:
            last = _know(connection, after)
        if last is None:
            return
        after = last


def _know(connection: Connection, after: int) -> int | None:
    query = select(unit.c.id, unit.c.task_id, unit_detail.c.did).join(unit_detail, unit_detail.c.unit_id == unit.c.id)
    rows = connection.execute(query.where(unit.c.id > after).order_by(unit.c.id).limit(ROWS)).all()
    if not rows:
        return None
    connection.execute(
        insert(project_file),
        [{"task_id": row.task_id, "digest": digest(row.did), "unit_id": row.id} for row in rows],
    )
    return int(rows[-1].id)


def states(database: Database, unit_ids: Sequence[int]) -> dict[UnitState, int]:
    """How many of these units are in each state."""
    by_code = {code: state for state, code in UNIT_CODES.items()}
    found: dict[UnitState, int] = {}
    with database.read() as connection:
        for start in range(0, len(unit_ids), 10_000):
            part = list(unit_ids[start : start + 10_000])
            query = select(unit.c.state, func.count().label("n")).where(unit.c.id.in_(part)).group_by(unit.c.state)
            for row in connection.execute(query):
                found[by_code[row.state]] = found.get(by_code[row.state], 0) + int(row.n)
    return found
