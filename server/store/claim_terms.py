"""What a claim asks for and gives, whatever the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import String, bindparam, literal_column, or_

from common.states import CLAIMABLE_TASK_STATES
from common.wire import ReplicaSpec
from server.engine.sizing import Bounds
from server.engine.statuses import ALLOWED, takes
from server.store.codes import PilotState
from server.store.schema import pilot, queue, task, unit_detail


def _statuses(probe: bool) -> dict[str, str]:
    allowed = [status.value for status in ALLOWED if takes(status, probe)]
    return {"status": allowed[0], "other_status": allowed[-1]}


_JOBS, _PROBES = _statuses(False), _statuses(True)


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """What may be taken: from which bucket, for which queue, how much; of a task that is a ``probe`` or not."""

    bucket_id: int
    task_id: int
    queue: str
    bounds: Bounds
    probe: bool = False

    @property
    def statuses(self) -> dict[str, str]:
        """The statuses of the queue in which this may be claimed, as :data:`MAY_CLAIM` asks for them."""
        return _PROBES if self.probe else _JOBS


@dataclass(frozen=True, slots=True)
class Claimant:
    """The pilot that claims, and where it sits; ``told`` ends the JSON of the event's detail."""

    pilot_id: int
    queue: str
    site: str
    host: str
    told: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One claim: of what, by whom, for ``cores``; the job will be the one of ``ordinal`` in the answer to a request."""

    terms: ClaimTerms
    claimant: Claimant
    request_id: str
    ordinal: int
    cores: int
    now: float


@dataclass(frozen=True, slots=True)
class TakenUnit:
    """A unit that a job has reserved, with what the pilot needs to know of it."""

    id: int
    seq: int
    did: str | None
    size: int | None
    events: int | None
    checksum: str | None
    counter: int | None
    attributes: dict[str, Any]
    replicas: list[ReplicaSpec]
    first_event: int | None = None


DETAIL_COLUMNS = (
    unit_detail.c.did,
    unit_detail.c.size,
    unit_detail.c.events,
    unit_detail.c.checksum,
    unit_detail.c.counter,
    unit_detail.c.attributes,
    unit_detail.c.replicas,
    unit_detail.c.bad_storages,
    unit_detail.c.first_event,
)


def taken_unit(row: Any) -> TakenUnit:
    """From a row of job id, first seq looked at, unit id, seq and :data:`DETAIL_COLUMNS`."""
    _, _, unit_id, seq, did, size, events, checksum, counter, attributes, replicas, bad_storages, first_event = row
    return TakenUnit(
        unit_id,
        seq,
        did,
        size,
        events,
        checksum,
        counter,
        msgspec.json.decode(attributes) if attributes else {},
        usable_replicas(replicas, bad_storages),
        first_event,
    )


def usable_replicas(replicas: str | None, bad_storages: str | None) -> list[ReplicaSpec]:
    """The replicas of a unit's file, less those that turned out missing or damaged."""
    if not replicas:
        return []
    bad = set(bad_storages.split(",")) if bad_storages else set()
    return [each for each in _REPLICAS.decode(replicas) if each.storage not in bad]


_REPLICAS = msgspec.json.Decoder(list[ReplicaSpec])


MAY_RUN = task.c.state.in_([literal_column(f"'{state.value}'") for state in sorted(CLAIMABLE_TASK_STATES)])
"""Rechecked in the claim itself, so that a pause is a pause."""
CLAIMING = frozenset({PilotState.ACTIVE, PilotState.EXPECTED})
"""States of pilots that may claim; harvester claims for one that is expected."""
PILOT_MAY = pilot.c.state.in_([literal_column(str(int(each))) for each in sorted(CLAIMING)])
"""Likewise of the pilot."""
MAY_CLAIM = or_(
    queue.c.status == bindparam("status", type_=String), queue.c.status == bindparam("other_status", type_=String)
)
"""Likewise of the queue: see :attr:`ClaimTerms.statuses`."""
