"""Why a slot gets nothing, and how many pilots a queue should have: asked over HTTP, of real rows."""

from __future__ import annotations

from typing import Any

import pytest

from common.states import ResourceState
from common.wire import DemandReply, GpuRequest, MergeRule, Requirements, StageInput, WhyList, WhyReply
from tests.integration.server.harness import Site, files, stage

OFFER = "cores=2&memory_mb=2000&disk_mb=1000&wall_s=3600&tags=apptainer"


def why(site: Site, queue: str = "q", query: str = OFFER) -> WhyReply:
    return site.user_page(f"/v1/queues/{queue}/why?{query}", WhyReply)


def needs(**more: Any) -> dict[str, Any]:
    return {"requirements": Requirements(**{"memory_mb": 0, "disk_mb": 0, **more})}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "tags": (needs(tags=["avx512"]), "the slot lacks avx512"),
    "cores": (needs(cores=3), "the job needs 3 cores, the slot has 2"),
    "memory": (needs(memory_mb=2001), "the job needs 2001 MB of memory, the slot has 2000"),
    "disk": (needs(disk_mb=1001), "the job needs 1001 MB of disk, input included, the slot has 1000"),
    "wall_time": (needs(wall_s=3601), "the job needs 3601 s of wall time, the slot has 3600"),
    "gpus": (needs(gpus=GpuRequest(1, "nvidia")), "the job needs 1 GPUs (nvidia), the slot has 0 such"),
}


@pytest.mark.parametrize("name", CASES)
def test_why_names_what_the_slot_lacks(site: Site, name: str) -> None:
    site.world()
    more, words = CASES[name]
    task = site.counter(1, **more)
    reply = why(site)
    assert [(each.task_id, each.filter, each.detail) for each in reply.refusals] == [(task, name, words)]
    assert reply.matched == []


def test_why_names_the_missing_apptainer(site: Site) -> None:
    site.world()
    site.counter(1, image="/images/a.sif")
    assert [each.filter for each in why(site, query="cores=1").refusals] == ["container"]
    assert len(why(site).matched) == 1


def test_why_names_task_queue_and_site(site: Site) -> None:
    site.world()
    task = site.counter(1, **needs())
    assert len(why(site).matched) == 1
    site.command(task, "pause")
    assert [(each.filter, each.detail) for each in why(site).refusals] == [("task", f"task {task} is paused")]
    site.put_site("s", status=ResourceState.OFFLINE)
    assert [(each.filter, each.detail) for each in why(site).refusals] == [("site", "site s is offline")]
    site.put_queue("q", "s", status=ResourceState.DRAINING)
    assert [(each.filter, each.detail) for each in why(site).refusals] == [("queue", "queue q is draining")]


def test_why_names_storage_distance_and_the_wait(site: Site) -> None:
    site.put_site("s", distances={"far": 60, "never": 101})
    site.put_site("t")
    site.put_queue("q", "s")
    site.put_storage("far", "t")
    site.put_storage("never", "t")
    late = stage(given=files("a", storages=("far",)), far_after_s=600, **needs())
    tasks = [
        site.submit(stage(given=files("a", storages=("never",)), **needs()))[0],
        site.submit(stage(given=files("a", storages=("far",)), max_distance=50, **needs()))[0],
        site.submit(late)[0],
    ]
    found = {each.task_id: each.filter for each in why(site).refusals}
    assert found == dict(zip(tasks, ("storage", "distance", "far_wait"), strict=True))
    site.tick(601)
    assert [each.task_id for each in why(site).matched] == [tasks[2]]
    site.put_storage("far", "t", status=ResourceState.OFFLINE)
    assert {each.filter for each in why(site).refusals} == {"storage"}


def test_why_names_the_merge(site: Site) -> None:
    site.world()
    make, merge = site.submit(
        stage("make", count=2, **needs()), stage("merge", given=StageInput("make"), merge=MergeRule(5, 9), **needs())
    )
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    site.agents()
    reply = why(site)
    assert [(each.task_id, each.filter, each.detail) for each in reply.refusals] == [
        (merge, "merge", "the merge waits for 5 files, 1 are ready")
    ]
    assert [each.task_id for each in reply.matched] == [make]


def test_a_task_whose_units_are_all_held_was_once_told_to_wait_for_a_merge(site: Site) -> None:
    site.world()
    site.counter(1, **needs())
    pilot = site.pilot()
    pilot.acquire()
    site.tick()
    reply = why(site)
    assert (reply.refusals, reply.matched, reply.note) == ([], [], "the offer that was given; no task has ready units")
    assert pilot.ask().refusals == []


def test_why_takes_the_last_offer_else_the_queues_limits(site: Site) -> None:
    site.world()
    site.put_queue("q", "s", cores=8, memory_mb=1500)
    site.counter(1, **needs(memory_mb=1501))
    reply = why(site, query="")
    assert (reply.note, reply.offer.cores) == ("no pilot has asked yet: a slot as large as the queue's limits", 8)
    assert [each.filter for each in reply.refusals] == ["memory"]
    site.pilot(cores=2).ask()
    reply = why(site, query="")
    assert (reply.note, reply.offer.cores) == ("the last offer of a pilot of this queue", 2)


def test_why_a_task_gets_nothing_is_told_for_each_queue(site: Site) -> None:
    site.world(queues=("big", "small"))
    site.put_queue("small", "s", cores=1, memory_mb=1000)
    site.put_queue("big", "s", cores=8, memory_mb=64_000)
    task = site.counter(3, **needs(cores=4))
    other = site.counter(3, **needs())
    reply = site.user_page(f"/v1/tasks/{task}/why", WhyList)
    assert [(each.queue, [r.filter for r in each.refusals], len(each.matched)) for each in reply.items] == [
        ("big", [], 1),
        ("small", ["cores"], 0),
    ]
    assert all(r.task_id == task for each in reply.items for r in [*each.refusals, *each.matched])
    assert other != task


def demand(site: Site, queue: str) -> DemandReply:
    path = f"/v1/queues/{queue}/demand"
    return site.call("GET", path, None, DemandReply, site.token("harvester", "h"))


def pilots(site: Site, *queues: str) -> list[int]:
    site.tick()
    return [sum(each.pilots for each in demand(site, queue).shapes) for queue in queues]


def test_the_demand_is_split_between_the_queues_that_can_run_the_work(site: Site) -> None:
    site.world(queues=("a", "b", "c"))
    site.put_queue("c", "s", cores=1)
    site.counter(10, **needs())
    found = pilots(site, "a", "b", "c")
    assert sum(found) == 10
    assert max(found) - min(found) <= 1
    site.counter(6, **needs(cores=2))
    found = pilots(site, "a", "b", "c")
    assert sum(found) == 16
    assert found[2] in (3, 4)
    site.put_queue("b", "s", status=ResourceState.PAUSED)
    assert pilots(site, "a", "b", "c") in ([11, 0, 5], [10, 0, 6])


def test_the_demand_follows_the_work(site: Site) -> None:
    site.world()
    task = site.counter(6, files_per_job=2, **needs())
    assert pilots(site, "q") == [3]
    pilot = site.pilot()
    job = pilot.acquire()
    assert pilots(site, "q") == [3]  # one that runs, two to come
    site.command(task, "pause")
    assert pilots(site, "q") == [1]
    site.command(task, "resume")
    pilot.succeed(job)
    assert pilots(site, "q") == [2]
    pilot.run_all()
    assert pilots(site, "q") == [0]
    assert demand(site, "q").idle_pilots == 1
