"""Claiming ahead: when a pilot asks for its next job, what it offers then, and who gets what becomes free."""

from __future__ import annotations

from typing import Optional

import pytest

from common.clock import FrozenClock
from common.wire import AssignedUnit, Assignment, Gpu, GpuNeeds, Offer, Requirements
from pilot.ahead import KEPT, MARGIN, MARGIN_S, Pace
from pilot.slot import Part, Slot

GPUS = [Gpu("nvidia", "A100", 40_000, "GPU-1"), Gpu("nvidia", "T4", 16_000, "GPU-2")]


def assignment(job_id: int, cores: int = 1, memory_mb: int = 1000, disk_mb: int = 100, gpus: int = 0) -> Assignment:
    needs = Requirements(cores=cores, memory_mb=memory_mb, disk_mb=disk_mb, gpus=GpuNeeds(count=gpus) if gpus else None)
    units = [AssignedUnit(job_id, 0, counter=0)]
    return Assignment(job_id=job_id, task_id=1, workflow_id=1, stage="one", scope="s", units=units, requirements=needs)


# ---------------------------------------------------------------- when


def test_nothing_is_known_of_a_task_that_never_ran_here() -> None:
    pace = Pace()
    pace.ran(1, 60.0)
    assert pace.run_s(2) is None


def test_a_payload_is_expected_to_run_as_the_quicker_ones_did() -> None:
    pace = Pace()
    for seconds in (100.0, 90.0, 110.0, 60.0):
        pace.ran(1, seconds)
    assert pace.run_s(1) == 90.0


def test_only_the_last_jobs_count() -> None:
    pace = Pace()
    pace.ran(1, 5.0)
    for _ in range(KEPT):
        pace.ran(1, 100.0)
    assert pace.run_s(1) == 100.0


def test_a_job_is_asked_for_as_long_ahead_as_its_input_took_and_the_answer() -> None:
    pace = Pace()
    assert pace.lead_s(1) == MARGIN_S
    pace.fetched(1, 20.0)
    pace.fetched(1, 8.0)
    pace.fetched(2, 500.0)
    pace.answered(4.0)
    assert pace.lead_s(1) == MARGIN * 24.0 + MARGIN_S


# ---------------------------------------------------------------- what


def test_what_is_offered_ahead_is_the_part_of_the_running_job() -> None:
    clock = FrozenClock()
    slot = Slot(Offer(cores=8, memory_mb=8000, disk_mb=1000, gpus=GPUS, tags=["linux"]), clock, 3600.0)
    slot.take(assignment(1, cores=3, memory_mb=2000, gpus=1))
    clock.advance(600.0)
    offer = slot.offer_behind(1, left_s=100.0)
    assert offer == Offer(cores=3, memory_mb=2000, disk_mb=900, wall_s=2900, gpus=GPUS[:1], tags=["linux"])


@pytest.mark.parametrize("left_s", [3599.5, 4000.0])
def test_nothing_is_offered_ahead_when_the_slot_ends_before(left_s: float) -> None:
    slot = Slot(Offer(cores=1), FrozenClock(), 3600.0)
    slot.take(assignment(1))
    assert slot.offer_behind(1, left_s) is None
    assert slot.offer_behind(2, 0.0) is None


def test_a_job_claimed_ahead_takes_room_on_disk_only() -> None:
    slot = Slot(Offer(cores=2, memory_mb=4000, disk_mb=1000), FrozenClock(), None)
    slot.take(assignment(1))
    slot.expect(assignment(2, disk_mb=300))
    free = slot.free()
    assert free is not None and (free.cores, free.memory_mb, free.disk_mb) == (1, 3000, 600)
    slot.job_over(2)
    free = slot.free()
    assert free is not None and free.disk_mb == 900


# ---------------------------------------------------------------- who


def test_it_gets_its_part_when_the_job_before_is_over() -> None:
    slot = Slot(Offer(cores=1, memory_mb=1000, gpus=GPUS[:1]), FrozenClock(), None)
    slot.take(assignment(1, gpus=1))
    slot.expect(assignment(2, gpus=1))
    assert slot.fit(assignment(2, gpus=1)) is None
    slot.payload_over(1)
    assert slot.fit(assignment(2, gpus=1)) == Part(1, 1000, 100, (GPUS[0],))
    assert slot.free() is None


@pytest.mark.parametrize(
    "wanted",
    [assignment(3, cores=2), assignment(3, memory_mb=1500), assignment(3, gpus=1)],
    ids=["cores", "memory", "gpu"],
)
def test_nobody_gets_what_the_server_may_be_giving_away(wanted: Assignment) -> None:
    slot = Slot(Offer(cores=3, memory_mb=3000, gpus=GPUS), FrozenClock(), None)
    slot.take(assignment(1, cores=1, gpus=1))
    slot.take(assignment(2, cores=1, memory_mb=1000))
    offered: Optional[Offer] = slot.offer()
    assert offered is not None and (offered.cores, offered.memory_mb, offered.gpus) == (1, 1000, [GPUS[1]])
    slot.payload_over(2)
    assert slot.fit(wanted) is None
    slot.answered()
    assert slot.fit(wanted) is not None
