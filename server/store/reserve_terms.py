"""What a reservation asks for, whatever the database."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What a worker says of files that it holds: digest, outcome, and the state to go to, of each."""

    task_id: int
    worker: str
    files: Sequence[tuple[bytes, int, int]]
    now: float


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
