"""A site or storage in trouble does not use up a task's attempts (a task once died in 2 s when its storage went offline)."""

from __future__ import annotations

from common.errors import ErrorCode
from common.states import ResourceState
from common.wire import BadReplica, OutputPattern
from tests.integration.server.harness import Site, files, stage


def test_a_site_fault_keeps_the_bucket_from_the_site_for_a_growing_time(site: Site) -> None:
    task = site.world().counter(2)
    pilot = site.pilot()
    for wait in (2.0, 4.0, 8.0):
        pilot.fail(pilot.acquire(), ErrorCode.STAGE_IN_FAILED)
        reply = pilot.ask()
        assert not reply.jobs and [each.filter for each in reply.refusals] == ["site_faults"]
        site.tick(wait - 1.0)
        assert not pilot.ask().jobs
        site.tick(1.1)
    assert {unit.other_failures for unit in site.units(task)} == {3, 0}


def test_another_site_takes_what_one_site_fails_at(site: Site) -> None:
    site.world().put_site("far")
    site.put_queue("elsewhere", "far")
    site.counter(1)
    here, elsewhere = site.pilot(), site.pilot("elsewhere")
    here.fail(here.acquire(), ErrorCode.STAGE_IN_FAILED)
    assert not here.ask().jobs
    assert elsewhere.ask().jobs


def test_a_success_ends_the_wait(site: Site) -> None:
    site.world().counter(3)
    first, second = site.pilot(), site.pilot()
    bad, good = first.acquire(), second.acquire()
    first.fail(bad, ErrorCode.STAGE_IN_FAILED)
    second.succeed(good)
    site.tick(1.1)  # within a second everybody knows; the wait is longer
    assert first.ask().jobs


def test_a_payload_that_fails_is_no_fault_of_the_site(site: Site) -> None:
    site.world().counter(1)
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), ErrorCode.PAYLOAD_FAILED)
    assert pilot.ask().jobs


def test_a_task_waits_for_its_output_storage_and_loses_no_attempt(site: Site) -> None:
    site.world()
    site.put_storage("disk", "s", status=ResourceState.OFFLINE)
    task = site.counter(1, outputs=[OutputPattern(pattern="out.root", storage="disk")])
    pilot = site.pilot()
    reply = pilot.ask()
    assert not reply.jobs and [each.filter for each in reply.refusals] == ["output_storage"]
    site.put_storage("disk", "s")
    pilot.succeed(pilot.acquire(), "out.root")
    site.agents()
    assert site.task(task).units == {"done": 1}


def test_a_bad_replica_is_no_fault_of_the_site(site: Site) -> None:
    site.world(storages=("disk", "tape"))
    site.submit(stage(given=files("a", storages=("disk", "tape"))))
    pilot = site.pilot()
    bad = BadReplica("data:a", "disk", ErrorCode.GET_ADLER32_MISMATCH)
    pilot.fail(pilot.acquire(), ErrorCode.GET_ADLER32_MISMATCH, bad)
    assert pilot.ask().jobs
