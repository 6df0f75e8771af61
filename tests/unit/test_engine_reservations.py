"""Free cores are kept for a larger job, for a bounded time, and back-filled with what ends before."""

from __future__ import annotations

from common.states import TaskState
from common.wire import Offer, QueueSpec, Requirements, Shape
from server.engine.matching import Candidate, Slot, Traits, size_refusal
from server.engine.reservations import Reservations, whole_slot

QUEUE = QueueSpec(name="Q", site="S")
KEEP_S = 600.0


def bucket(cores: int, wall_s: int = 0) -> Candidate:
    needs = Requirements(cores=cores, wall_s=wall_s)
    return Candidate(1, Traits(7, TaskState.RUNNING, needs, "default", 0.0, 0.0), ())


def slot(cores: int, wall_s: int = 0) -> Slot:
    return Slot(QUEUE, Offer(cores=cores, memory_mb=2000 * cores, wall_s=wall_s))


def filter_of(candidate: Candidate, cut: Slot) -> str:
    refusal = size_refusal(candidate, cut)
    return refusal[0] if refusal else ""


def test_only_what_ends_in_time_is_let_in() -> None:
    kept = Reservations()
    cut = kept.cut(1, slot(2), bucket(8), KEEP_S, 1000.0)
    assert filter_of(bucket(1, 600), cut) == ""
    assert filter_of(bucket(1, 601), cut) == "reserved"
    assert filter_of(bucket(1), cut) == "reserved"  # nobody knows how long it runs
    later = kept.cut(1, slot(3), bucket(8), KEEP_S, 1400.0)
    assert (filter_of(bucket(1, 200), later), filter_of(bucket(1, 201), later)) == ("", "reserved")


def test_the_time_is_bounded_and_then_others_have_their_turn_as_long() -> None:
    kept = Reservations()
    reserved = [kept.cut(1, slot(2), bucket(8), KEEP_S, 1000.0 + at) != slot(2) for at in range(0, 2400, 100)]
    assert reserved == ([True] * 6 + [False] * 6) * 2


def test_a_job_that_fits_reserves_nothing() -> None:
    kept = Reservations()
    assert kept.cut(1, slot(2), bucket(2), KEEP_S, 0.0) == slot(2)
    assert kept.cut(1, slot(2), None, KEEP_S, 0.0) == slot(2)


def test_a_pilot_whose_cores_are_all_free_starts_anew() -> None:
    kept = Reservations()
    assert kept.cut(1, slot(2), bucket(8), KEEP_S, 0.0) != slot(2)
    kept.drop(1)
    assert kept.cut(1, slot(2), bucket(8), KEEP_S, 700.0) != slot(2)
    assert kept.cut(2, slot(2), bucket(8), KEEP_S, 0.0) != slot(2)


def test_the_whole_slot_is_what_worker_and_queue_allow() -> None:
    whole = whole_slot(slot(2, 3600), Shape(cores=16, memory_mb=32_000)).offer
    assert (whole.cores, whole.memory_mb, whole.wall_s) == (16, 32_000, 3600)
    small = Slot(QueueSpec(name="Q", site="S", cores=4), Offer(cores=2))
    assert whole_slot(small, Shape(cores=16)).offer.cores == 4
