"""What a reservation asks for, whatever the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import literal_column

from server.engine.projects import OPEN_STATES
from server.store.codes import UNIT_READY, UNIT_RESERVED
from server.store.schema import task, unit_detail


@dataclass(frozen=True, slots=True)
class Terms:
    """Who reserves, how many files of which bucket, by which request; ``first`` is the first of them in its answer."""

    task_id: int
    bucket_id: int
    worker: str
    request_id: str
    first: int
    rows: int
    now: float
    expires: float | None


READY: Any = literal_column(str(UNIT_READY))
RESERVED: Any = literal_column(str(UNIT_RESERVED))
DETAIL_COLUMNS = (
    unit_detail.c.did,
    unit_detail.c.size,
    unit_detail.c.events,
    unit_detail.c.checksum,
    unit_detail.c.attributes,
    unit_detail.c.replicas,
)
MAY_RESERVE = task.c.state.in_([literal_column(f"'{state.value}'") for state in OPEN_STATES])
"""Rechecked in the reservation itself, so that what is cancelled is cancelled."""
