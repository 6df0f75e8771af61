"""Whom to tell when a workflow is over, and the outbox of what has to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from common.states import FINAL_TASK_STATES
from common.wire import NoticeChannel, NotifySpec
from server.store.schema import task
from server.store.schema_commands import notice, workflow_notify

_FINAL = sorted(state.value for state in FINAL_TASK_STATES)


@dataclass(frozen=True)
class Notice:
    """A notice that is to be delivered."""

    id: int
    workflow_id: int
    channel: NoticeChannel
    target: str
    body: str
    created: float
    attempts: int


def subscribe(connection: Connection, workflow_id: int, specs: Sequence[NotifySpec]) -> None:
    """Tell these when the workflow is over."""
    if specs:
        text = msgspec.json.encode(list(specs)).decode()
        connection.execute(insert(workflow_notify).values(workflow_id=workflow_id, spec=text))


def over(connection: Connection, limit: int = 100) -> list[tuple[int, list[NotifySpec]]]:
    """Workflows that are over and of which somebody is to be told."""
    going = (
        select(task.c.id)
        .where(task.c.workflow_id == workflow_notify.c.workflow_id, task.c.state.not_in(_FINAL))
        .exists()
    )
    query = select(workflow_notify).where(~going).order_by(workflow_notify.c.workflow_id).limit(limit)
    return [
        (row.workflow_id, msgspec.json.decode(row.spec, type=list[NotifySpec])) for row in connection.execute(query)
    ]


def write(connection: Connection, workflow_id: int, bodies: Sequence[tuple[NotifySpec, str]], now: float) -> bool:
    """Put the notices of a workflow into the outbox, once; False if somebody else has."""
    gone = connection.execute(delete(workflow_notify).where(workflow_notify.c.workflow_id == workflow_id)).rowcount
    if not gone:
        return False
    rows = [
        {
            "workflow_id": workflow_id,
            "channel": spec.channel.value,
            "target": spec.target,
            "body": body,
            "created": now,
            "due": now,
        }
        for spec, body in bodies
    ]
    connection.execute(insert(notice), rows)
    return True


def due(connection: Connection, now: float, limit: int = 20) -> list[Notice]:
    """Notices whose time has come, the longest waiting first."""
    query = select(notice).where(notice.c.ended.is_(None), notice.c.due <= now).order_by(notice.c.due).limit(limit)
    return [
        Notice(row.id, row.workflow_id, NoticeChannel(row.channel), row.target, row.body, row.created, row.attempts)
        for row in connection.execute(query)
    ]


def delivered(connection: Connection, notice_id: int, now: float) -> None:
    """It has arrived."""
    connection.execute(
        update(notice)
        .where(notice.c.id == notice_id, notice.c.ended.is_(None))
        .values(ended=now, attempts=notice.c.attempts + 1, error="")
    )


def failed(connection: Connection, notice_id: int, error: str, due_at: float | None, now: float) -> None:
    """It has not: again at ``due_at``, or never (None)."""
    connection.execute(
        update(notice)
        .where(notice.c.id == notice_id, notice.c.ended.is_(None))
        .values(
            attempts=notice.c.attempts + 1,
            error=error[:1000],
            due=due_at if due_at is not None else now,
            ended=None if due_at is not None else now,
        )
    )
