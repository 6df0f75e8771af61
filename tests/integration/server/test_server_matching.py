"""Downtimes, tests, direct reading, reservations, tagging, shares and demand: over HTTP, on real rows."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, update

from common.states import ResourceState
from common.wire import (
    DemandReply,
    Downtime,
    Offer,
    RemoteIo,
    Requirements,
    Shape,
    ShareSpec,
    ShareTree,
    TaggingCondition,
    TaggingRule,
    TaggingRuleList,
    Tags,
    TaskChange,
    TaskView,
    WhyReply,
    WorkflowRequest,
    WorkflowView,
)
from server.agents.demand import split_work
from server.agents.duties import recount, sum_up
from server.store import demand as store
from server.store import job_counts
from server.store.schema import cores_in_use
from tests.integration.server.harness import Pilot, Refused, Site, files, stage


def needs(**more: Any) -> dict[str, Any]:
    return {"requirements": Requirements(**{"memory_mb": 0, "disk_mb": 0, **more})}


def filters(pilot: Pilot, offer: Offer | None = None) -> list[str]:
    pilot.site.tick()
    return sorted({each.filter for each in pilot.ask(offer=offer).refusals})


# ---------------------------------------------------------------- downtimes and statuses


def test_no_job_is_given_that_would_end_in_a_downtime(site: Site) -> None:
    site.world()
    now = site.clock.now()
    site.put_queue("q", "s", downtimes=[Downtime(now + 1000, now + 2000, "kernel")])
    site.counter(9, **needs(wall_s=900))
    pilot = site.pilot()
    site.tick()
    assert len(pilot.ask().jobs) == 1
    site.tick(100)
    assert filters(pilot) == ["downtime"]
    site.tick(900)
    assert filters(pilot) == ["downtime"]
    site.tick(1000)
    assert len(pilot.ask().jobs) == 1


def test_a_storage_in_a_downtime_is_not_read_and_not_written(site: Site) -> None:
    site.world()
    now = site.clock.now()
    site.put_storage("disk", "s", downtimes=[Downtime(now + 100, now + 200)])
    site.submit(stage(given=files("a", "b"), files_per_job=1, outputs=[], **needs()))
    site.counter(1, **needs())
    pilot = site.pilot()
    site.tick(110)
    assert filters(pilot) == ["output_storage", "storage"]
    site.tick(100)
    assert len(pilot.ask().jobs) == 1


def test_a_queue_in_test_gets_probes_only(site: Site) -> None:
    site.world()
    site.put_queue("q", "s", status=ResourceState.TEST)
    task = site.counter(1, **needs())
    pilot = site.pilot()
    assert filters(pilot) == ["queue"]
    probe = WorkflowRequest(name="p", stages=[stage(count=1, probe=True, **needs())])
    with pytest.raises(Refused) as error:
        site.user("POST", "/v1/workflows", probe, WorkflowView)
    assert (error.value.status, error.value.paths) == (403, ["$.stages[0].probe"])
    made = site.admin("POST", "/v1/workflows", probe, WorkflowView)
    site.agents()
    site.tick()
    assert [job.task_id for job in pilot.ask().jobs] == [made.tasks[0].id] != [task]


def test_idle_pilots_leave_a_site_that_drains(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    assert not pilot.ask().drain
    site.put_site("s", status=ResourceState.DRAINING)
    site.tick()
    assert pilot.ask().drain and pilot.beat().drain


# ---------------------------------------------------------------- direct reading


@pytest.mark.parametrize("allowed", [True, False])
def test_a_pilot_is_told_to_read_directly_where_queue_and_storage_allow_it(site: Site, allowed: bool) -> None:
    site.world()
    site.put_queue("q", "s", remote_io=allowed)
    big = files("a", size=10**9)
    site.submit(stage(given=big, remote_io=RemoteIo.ALLOWED, **needs()))
    pilot = site.pilot(offer=Offer(cores=1, disk_mb=100))
    site.tick()
    reply = pilot.ask(request_id="request-one")
    if not allowed:
        assert [each.filter for each in reply.refusals] == ["disk"]
        return
    (job,) = reply.jobs
    assert job.remote_io and job.units[0].file is not None
    assert [each.url for each in job.units[0].file.replicas] == ["file:///disk/d/a"]
    assert pilot.ask(request_id="request-one").jobs == [job]


# ---------------------------------------------------------------- reservations


def test_a_larger_job_gets_the_cores_that_get_free(site: Site) -> None:
    site.world()
    site.counter(20, **needs(wall_s=5000))
    mark, secret = site.worker(shape=Shape(cores=4))
    pilot = Pilot(site, site.register(mark, secret, host="node"), Offer(cores=4, tags=["apptainer"]), mark)
    site.tick()
    small = [pilot.ask(offer=Offer(cores=4 - n)).jobs[0] for n in range(4)]
    large = site.counter(1, priority=500, **needs(cores=4))
    quick = site.counter(1, **needs(wall_s=60))
    site.tick()
    pilot.succeed(small[0])
    (job,) = pilot.ask(offer=Offer(cores=1)).jobs
    assert job.task_id == quick  # it ends before
    pilot.succeed(job)
    pilot.succeed(small[1])
    assert "reserved" in filters(pilot, Offer(cores=2))  # though many small ones wait
    pilot.succeed(small[2])
    assert "reserved" in filters(pilot, Offer(cores=3))
    pilot.succeed(small[3])
    site.tick()
    assert [each.task_id for each in pilot.ask(offer=Offer(cores=4)).jobs] == [large]


def test_cores_are_not_kept_for_ever(site: Site) -> None:
    site.world()
    site.counter(20, **needs())
    mark, secret = site.worker(shape=Shape(cores=2))
    pilot = Pilot(site, site.register(mark, secret, host="node"), Offer(cores=2, tags=["apptainer"]), mark)
    site.tick()
    assert len(pilot.ask(offer=Offer(cores=2)).jobs) == 1
    site.counter(1, priority=500, **needs(cores=2))
    assert "reserved" in filters(pilot, Offer(cores=1))
    site.tick(600)
    assert len(pilot.ask(offer=Offer(cores=1)).jobs) == 1


# ---------------------------------------------------------------- tagging and shares


def test_new_tasks_are_tagged_by_rules(site: Site) -> None:
    site.world()
    site.admin("PUT", "/v1/shares/mc", ShareSpec("mc"))
    rule = TaggingRule(
        name="gen", set=Tags(share="mc", priority=7, labels={"kind": "mc"}), when=TaggingCondition(stage="^gen")
    )
    assert site.admin("PUT", "/v1/tagging-rules/gen", rule, TaggingRule) == rule
    assert site.user("GET", "/v1/tagging-rules", reply=TaggingRuleList).items == [rule]
    made = site.user(
        "POST",
        "/v1/workflows",
        WorkflowRequest("w", [stage("gen1"), stage("other")], labels={"own": "1"}),
        WorkflowView,
    )
    assert [(task.share, task.priority) for task in made.tasks] == [("mc", 7), ("default", 0)]
    assert made.labels == {"own": "1", "kind": "mc"}
    site.admin("DELETE", "/v1/tagging-rules/gen")
    assert site.task(site.counter(1)).share == "default"
    for path in ("/v1/tagging-rules/gen", "/v1/tagging-rules/none"):
        assert site.raw("GET", path, token=site.token("user")).status_code == 404


def test_a_wrong_tagging_rule_is_refused_by_its_fields(site: Site) -> None:
    rule = TaggingRule(name="r", set=Tags(share="gone"), when=TaggingCondition(owner="("))
    with pytest.raises(Refused) as error:
        site.admin("PUT", "/v1/tagging-rules/r", rule, TaggingRule)
    assert error.value.status == 400 and error.value.paths == ["$.when.owner", "$.set.share"]


def test_shares_tell_what_they_should_have_and_have(site: Site) -> None:
    site.world()
    site.admin("PUT", "/v1/shares/a", ShareSpec("a", weight=3.0))
    site.admin("PUT", "/v1/shares/a1", ShareSpec("a1", "a"))
    site.counter(4, share="a1", **needs(cores=2))
    pilot = site.pilot(cores=2)
    site.tick()
    pilot.acquire()
    site.agents()
    sum_up(site.dispatcher)
    site.tick()
    tree = site.user("GET", "/v1/share-tree", reply=ShareTree).items
    assert [(each.name, each.depth, each.cores, each.target) for each in tree] == [
        ("default", 0, 0.0, 0.25),
        ("a", 0, 2.0, 0.75),
        ("a1", 1, 2.0, 0.75),
    ]
    assert [each.name for each in site.user("GET", "/v1/shares/a", reply=ShareTree).items] == ["a", "a1"]
    assert site.raw("GET", "/v1/shares/gone", token=site.token("user")).status_code == 404


def test_use_follows_jobs_and_tasks_from_share_to_share_and_is_right_again_if_it_was_wrong(site: Site) -> None:
    site.world()
    for name in ("a", "b"):
        site.admin("PUT", f"/v1/shares/{name}", ShareSpec(name))
    one = site.counter(2, share="a", **needs(cores=2))
    site.counter(1, share="b")
    pilots = [site.pilot(cores=2), site.pilot(cores=2), site.pilot()]

    def used() -> tuple[dict[str, float], dict[str, float]]:
        recount(site.dispatcher)
        with site.database.read() as connection:
            found = tuple(dict(job_counts.in_use(connection, kind)) for kind in ("share", "owner"))
        sum_up(site.dispatcher)
        with site.database.read() as connection:
            assert found == tuple(dict(job_counts.in_use(connection, kind)) for kind in ("share", "owner"))
        return found[0], found[1]

    assert used() == ({}, {})
    site.tick()
    jobs = [pilot.acquire() for pilot in pilots]
    assert used() == ({"a": 4.0, "b": 1.0}, {"u": 5.0})
    site.user("PATCH", f"/v1/tasks/{one}", TaskChange(share="b"), TaskView)
    assert used() == ({"b": 5.0}, {"u": 5.0})
    pilots[0].succeed(jobs[0], "out")
    assert used() == ({"b": 3.0}, {"u": 3.0})
    with site.database.write() as connection:
        connection.execute(update(cores_in_use).values(cores=99))
        connection.execute(insert(cores_in_use).values(kind="share", name="gone", cores=7))
    sum_up(site.dispatcher)
    assert used() == ({"b": 3.0}, {"u": 3.0})
    for pilot, job in zip(pilots[1:], jobs[1:], strict=True):
        pilot.succeed(job, "out")
    assert used() == ({}, {})


# ---------------------------------------------------------------- why


def test_why_a_pilot_got_nothing(site: Site) -> None:
    site.world()
    site.counter(1, **needs(cores=3))
    site.counter(1, **needs(cores=3))
    pilot = site.pilot(cores=2)
    site.tick()
    pilot.ask()
    reply = site.user("GET", f"/v1/pilots/{pilot.id}/why", reply=WhyReply)
    assert [(each.filter, each.buckets, each.tasks) for each in reply.refusals] == [("cores", 2, 2)]
    assert reply.note == f"what pilot {pilot.id} on node offered last" and reply.offer.cores == 2
    pilot.end()
    assert "gets nothing any more" in site.user("GET", f"/v1/pilots/{pilot.id}/why", reply=WhyReply).note
    assert site.raw("GET", "/v1/pilots/999/why", token=site.token("user")).status_code == 404


# ---------------------------------------------------------------- demand


def demand(site: Site, queue: str, query: str = "") -> DemandReply:
    import msgspec

    result = site.raw("GET", f"/v1/queues/{queue}/demand", token=site.token("harvester", "h"), query_string=query)
    assert result.status_code == 200, result.text
    return msgspec.json.decode(result.content, type=DemandReply)


def test_the_agent_computes_the_demand_of_all_queues(site: Site) -> None:
    site.world(queues=("a", "b"))
    site.counter(10, **needs())
    site.tick()
    split_work(site.dispatcher)
    with site.database.read() as connection:
        rows = [store.get(connection, name) for name in ("a", "b")]
    assert [sum(line.pilots for line in row.numbers.shapes) for row in rows if row is not None] == [5, 5]
    site.put_queue("c")
    site.admin("DELETE", "/v1/queues/b")
    site.tick(60)
    split_work(site.dispatcher)
    with site.database.read() as connection:
        assert store.get(connection, "b") is None and store.get(connection, "c") is not None


def test_a_demand_that_is_dear_to_compute_is_left_to_the_agent(site: Site) -> None:
    site.world()
    site.counter(10, **needs())
    site.tick()
    assert sum(line.pilots for line in demand(site, "q").shapes) == 10
    with site.database.write() as connection:
        found = store.get(connection, "q")
        assert found is not None
        store.put(connection, [store.Stored("q", found.computed, 1.0, found.numbers)])
    site.counter(10, **needs())
    site.tick(40)
    assert sum(line.pilots for line in demand(site, "q").shapes) == 10  # 50 times 1 s are not over
    split_work(site.dispatcher)
    assert sum(line.pilots for line in demand(site, "q").shapes) == 10
    site.tick(20)
    split_work(site.dispatcher)
    assert sum(line.pilots for line in demand(site, "q").shapes) == 20


def test_the_demand_is_explained(site: Site) -> None:
    site.world(queues=("a", "b"))
    site.put_queue("b", "s", memory_mb=1000)
    site.counter(10, **needs())
    task = site.counter(3, **needs(memory_mb=2000))
    site.tick()
    reply = demand(site, "b", "explain=true")
    assert [(part.jobs, part.ready_jobs, part.queues) for part in reply.parts] == [(5, 10, 2)]
    assert [(each.filter, each.task_id, each.units) for each in reply.refused] == [("memory", task, 3)]
    assert demand(site, "b").parts == []
    result = site.raw("GET", "/v1/queues/b/demand", token=site.token("admin"), query_string="explain=perhaps")
    assert result.status_code in (400, 422)
