"""The pilot's smaller parts: what answers mean, the account of the slot, the loop."""

from __future__ import annotations

import random
import threading
from typing import Callable, Optional

import pytest

from common.clock import FrozenClock, SystemClock
from common.errors import ErrorCode, PilotageError
from common.http import BadReply, ProblemError, Unreachable
from common.problem import Problem
from common.wire import AssignedFile, AssignedUnit, Gpu, GpuRequest, Offer, QueueSpec, Requirements, Shape
from pilot.client import CallRefused, JobGone, NotAccepted, ServerAway, translated
from pilot.config import PilotConfig, required
from pilot.jobs import backoff_s
from pilot.loop import Loop
from pilot.slot import Slot, clipped
from tests.unit.pilot_fakes import make_assignment


def problem(status: int, kind: str = "pilotage:x", **extensions: object) -> ProblemError:
    return ProblemError(status, Problem("title", status, kind, extensions=dict(extensions)))


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (Unreachable("no route"), ServerAway),
        (BadReply("html"), ServerAway),
        (problem(500), ServerAway),
        (problem(503), ServerAway),
        (problem(429), ServerAway),
        (problem(410), JobGone),
        (problem(401), NotAccepted),
        (problem(403), NotAccepted),
        (problem(404), CallRefused),
        (problem(409), CallRefused),
        (problem(422), CallRefused),
        (PilotageError(ErrorCode.BAD_CONFIGURATION, "token"), CallRefused),
    ],
)
def test_what_an_answer_means(error: Exception, meaning: type) -> None:
    def call() -> None:
        raise error

    with pytest.raises(meaning):
        translated(call)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 410])
def test_a_proxy_on_the_way_cannot_end_a_job(status: int) -> None:
    """A captive portal's 403 or a proxy's 410 says nothing about pilots and jobs."""

    def call() -> None:
        raise problem(status, "about:blank")

    with pytest.raises(ServerAway):
        translated(call)


def test_the_number_of_a_refusal_is_handed_on() -> None:
    def call() -> None:
        raise problem(422, error_code=1133)

    with pytest.raises(CallRefused) as refused:
        translated(call)
    assert refused.value.code is ErrorCode.NO_STORAGE


GPUS = [Gpu("nvidia", "H200", 141_000, "GPU-1"), Gpu("nvidia", "A100", 40_000, "GPU-2")]


def test_the_offer_is_what_jobs_leave() -> None:
    clock = FrozenClock()
    slot = Slot(Offer(cores=4, memory_mb=8000, disk_mb=10_000, gpus=GPUS, tags=["linux"]), clock, 3600.0)
    needs = Requirements(cores=3, memory_mb=2000, disk_mb=1000, gpus=GpuRequest(count=1, memory_mb=100_000))
    unit = AssignedUnit(1, 0, AssignedFile("s:f", size=5 * 1024 * 1024))
    part = slot.take(make_assignment(1, "true", requirements=needs, units=[unit]))
    assert [gpu.uuid for gpu in part.gpus] == ["GPU-1"]
    clock.advance(600)
    assert slot.free() == Offer(1, 6000, 8995, 3000, [GPUS[1]], ["linux"])
    slot.take(make_assignment(2, "true", requirements=Requirements(cores=1)))
    assert slot.free() is None
    slot.payload_over(1)
    left = slot.free()
    assert left is not None
    assert (left.cores, left.disk_mb, len(left.gpus)) == (3, 8495, 2)
    slot.job_over(1)
    left = slot.free()
    assert left is not None
    assert left.disk_mb == 9500


def test_what_is_not_known_stays_unknown() -> None:
    slot = Slot(Offer(cores=2), FrozenClock(), None)
    slot.take(make_assignment(1, "true"))
    assert slot.free() == Offer(cores=1)


def test_memory_that_is_used_up_is_not_offered_as_unknown() -> None:
    slot = Slot(Offer(cores=2, memory_mb=1000), FrozenClock(), None)
    slot.take(make_assignment(1, "true", requirements=Requirements(memory_mb=1000)))
    assert slot.free() is None


def test_the_queue_clips_the_slot() -> None:
    queue = QueueSpec(name="q", site="s", cores=2, memory_mb=0, wall_s=60, gpus=1)
    offer = clipped(Offer(cores=8, memory_mb=5, wall_s=0, gpus=GPUS), queue, Shape(cores=0))
    assert (offer.cores, offer.memory_mb, offer.wall_s, len(offer.gpus)) == (2, 5, 60, 1)


def test_a_pilot_takes_no_more_than_its_worker_asked_its_batch_system_for() -> None:
    """The server clips each question by it, but several jobs side by side took more together."""
    queue = QueueSpec(name="q", site="s", cores=8, memory_mb=16_000)
    offer = clipped(Offer(cores=64, memory_mb=256_000, gpus=GPUS), queue, Shape(4, 8000, 500, 3600, 1))
    assert offer == Offer(cores=4, memory_mb=8000, disk_mb=500, wall_s=3600, gpus=GPUS[:1])


def test_backoff_doubles_up_to_its_limit() -> None:
    rng = random.Random(1)
    waits = [backoff_s(attempt, rng) for attempt in range(1, 12)]
    for attempt, wait in enumerate(waits):
        assert min(60.0, 2.0**attempt) / 2 <= wait <= min(60.0, 2.0**attempt)


def in_time(loop: Loop) -> None:
    """Run the loop; the test fails when it does not end."""
    watch = threading.Timer(10.0, loop.post, [loop.end])
    watch.start()
    loop.run()
    assert watch.is_alive(), "the loop did not end by itself"
    watch.cancel()


def test_timers_run_in_the_order_of_their_time() -> None:
    loop = Loop(SystemClock())
    seen: list[str] = []
    loop.after("b", 0.04, lambda: seen.append("b"))
    loop.after("a", 0.02, lambda: seen.append("a"))
    loop.after("never", 0.01, lambda: seen.append("never"))
    loop.after("moved", 0.01, lambda: seen.append("early"))
    loop.after("moved", 0.06, lambda: seen.append("moved"))
    loop.cancel("never")
    loop.after("end", 0.08, loop.end)
    in_time(loop)
    assert seen == ["a", "b", "moved"]


def test_a_timer_may_set_itself_again() -> None:
    loop = Loop(SystemClock())
    seen: list[int] = []

    def again() -> None:
        seen.append(1)
        if len(seen) < 3:
            loop.after("again", 0.01, again)
        else:
            loop.end()

    loop.after("again", 0.01, again)
    in_time(loop)
    assert len(seen) == 3


def test_posted_calls_cannot_starve_timers() -> None:
    loop = Loop(SystemClock())
    ended: list[Callable[[], None]] = []

    def busy() -> None:
        if not ended:
            loop.post(busy)

    def over() -> None:
        ended.append(over)
        loop.end()

    loop.post(busy)
    loop.after("end", 0.02, over)
    in_time(loop)
    assert ended


def test_what_a_call_raises_ends_the_loop() -> None:
    loop = Loop(SystemClock())

    def fail() -> None:
        raise ValueError("mistake")

    loop.post(fail)
    with pytest.raises(ValueError, match="mistake"):
        loop.run()


@pytest.mark.parametrize(("value", "fine"), [("x", True), ("", False), (None, False)])
def test_a_missing_setting_says_how_to_set_it(value: Optional[str], fine: bool) -> None:
    if fine:
        assert required(value, "worker", "--worker MARK") == value
        return
    with pytest.raises(PilotageError, match="--worker MARK, or set PILOTAGE_PILOT_WORKER"):
        required(value, "worker", "--worker MARK")


def test_negative_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="max_jobs: -1"):
        PilotConfig(max_jobs=-1)
