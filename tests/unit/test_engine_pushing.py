"""What a worker in push mode is taken for, and what it must ask for."""

from __future__ import annotations

import pytest

from common.wire import Gpu, GpuRequest, Needs, Offer, QueueSpec, Requirements, Shape
from server.engine.pushing import BEGIN_S, Demanded, expected_offer, for_jobs, misfit, rest_of, shape_for

QUEUE = QueueSpec(name="q", site="s", cores=8, memory_mb=16_000, wall_s=86_400, tags=["fast"])
A100 = Gpu("nvidia", "A100", 40_000)


def test_a_worker_is_taken_for_its_shape_within_its_queue() -> None:
    offer = expected_offer(Shape(cores=16, memory_mb=4000, disk_mb=100, wall_s=7200, gpus=2), QUEUE, None)
    assert (offer.cores, offer.memory_mb, offer.disk_mb, offer.wall_s) == (8, 4000, 100, 7200 - BEGIN_S)
    assert offer.gpus == [Gpu("", "", 0)] * 2
    assert offer.tags == ["aarch64", "apptainer", "fast", "linux", "x86_64"]


def test_what_a_pilot_of_the_queue_had_counts_for_the_next() -> None:
    last = Offer(gpus=[A100], tags=["x86_64", "x86-64-v3"])
    offer = expected_offer(Shape(cores=1, gpus=2), QUEUE, last)
    assert offer.gpus == [A100, A100]
    assert offer.tags == ["fast", "x86-64-v3", "x86_64"]


def test_a_queue_that_names_its_architecture_has_no_other() -> None:
    queue = QueueSpec(name="q", site="s", tags=["aarch64"])
    assert expected_offer(Shape(), queue, None).tags == ["aarch64", "apptainer", "linux"]


@pytest.mark.parametrize("wall_s, left", [(0, 0), (1, 1), (100, 50), (600, 300), (7200, 6900)])
def test_a_pilot_needs_some_of_the_wall_time_itself(wall_s: int, left: int) -> None:
    assert for_jobs(wall_s) == left


def test_the_shape_holds_the_jobs_of_the_fullest_node_and_is_never_larger_than_planned() -> None:
    planned = Shape(cores=8, memory_mb=8000, disk_mb=5000, wall_s=7200, gpus=4)
    small = Needs(cores=1, memory_mb=500, disk_mb=100, wall_s=1000)
    large = Needs(cores=4, memory_mb=9000, disk_mb=100, wall_s=3000, gpus=GpuRequest(count=2))
    assert shape_for(planned, [[(small, 10), (small, 20)], [(large, 0)]]) == Shape(4, 8000, 230, 3300, 2)
    assert shape_for(planned, [[(Needs(wall_s=0), 0), (small, 0)]]).wall_s == 7200, "one may run for ever"
    assert shape_for(planned, []) == planned


@pytest.mark.parametrize(
    "demanded, words",
    [
        (Demanded(Requirements(cores=3)), "cores"),
        (Demanded(Requirements(memory_mb=3000)), "memory"),
        (Demanded(Requirements(disk_mb=100), input_mb=950), "disk, input included"),
        (Demanded(Requirements(wall_s=101)), "wall time"),
        (Demanded(Requirements(tags=["ib"])), "lacks ib"),
        (Demanded(Requirements(), container=True), "lacks apptainer"),
        (Demanded(Requirements(gpus=GpuRequest(count=2))), "2 GPUs"),
        (Demanded(Requirements(cores=2, memory_mb=2000, disk_mb=1000, wall_s=100, gpus=GpuRequest(count=1))), ""),
    ],
)
def test_a_job_that_does_not_fit_is_told_apart(demanded: Demanded, words: str) -> None:
    said = misfit(demanded, Offer(cores=2, memory_mb=2000, disk_mb=1000, wall_s=100, gpus=[A100]))
    assert words in said and bool(said) == bool(words)


def test_what_the_slot_does_not_know_refuses_nothing() -> None:
    assert misfit(Demanded(Requirements(memory_mb=10**6, disk_mb=10**6, wall_s=10**6)), Offer(cores=1)) == ""


def test_beside_a_job_less_is_left() -> None:
    offer = Offer(cores=2, memory_mb=2000, disk_mb=1000, wall_s=100, gpus=[A100, A100])
    one = Demanded(Requirements(cores=1, memory_mb=1500, disk_mb=900, gpus=GpuRequest(count=1)), input_mb=100)
    rest = rest_of(offer, one)
    assert rest is not None
    assert (rest.cores, rest.memory_mb, rest.disk_mb, rest.gpus) == (1, 500, 1, [A100])
    assert rest_of(rest, one) is None
