"""Probe jobs on the server: when each place is probed, what a report changes, and what is left alone because of it."""

from __future__ import annotations

from typing import Any, Optional

import msgspec
import pytest
from falcon.testing import Result

from common.clock import FrozenClock
from common.errors import ErrorCode
from common.states import JobState, ResourceState
from common.wire import (
    Assignment,
    CredentialReply,
    CredentialRequest,
    DemandReply,
    Endpoint,
    EventPage,
    FinishRequest,
    Gpu,
    KnownFile,
    Offer,
    ProbeFinding,
    ProbeLevel,
    ProbeOutcome,
    ProbePlace,
    ProbeReport,
    ProbeRequest,
    ProbeResult,
    ProbeState,
    ProbeTable,
    ProbeUse,
    StorageProbe,
    StorageSpec,
    UnitOutcome,
    UnitResult,
    WhyReply,
    WorkflowPage,
    WorkflowRequest,
)
from server.agents.demand import split_work
from server.agents.measure import measure_system
from server.agents.probes import probe_sites
from server.engine.probes import OWNER
from server.store.measure import system
from tests.integration.server.harness import Pilot, Refused, Site, files, stage

HOUR = 3600.0
GOOD = ProbeOutcome(True, seconds=0.5, mb_s=2.0)
BAD = ProbeOutcome(False, int(ErrorCode.STAGE_OUT_AUTHENTICATION), "the storage says no")
SOUND = ProbeFinding("scratch", ProbeLevel.OK, "can be written")
BROKEN = ProbeFinding("cvmfs dune.opensciencegrid.org", ProbeLevel.ERROR, "is empty", "cvmfs_config probe")


def table(site: Site) -> ProbeTable:
    return site.user("GET", "/v1/probes", reply=ProbeTable)


def place(site: Site, gpu: bool = False) -> ProbePlace:
    return next(each for each in table(site).places if each.gpu is gpu)


def seen(site: Site) -> dict[tuple[str, str], bool]:
    """The table: storage and operation, and whether it works."""
    return {(each.storage, each.operation.value): each.ok for each in table(site).results}


def result(site: Site, storage: str, operation: str) -> ProbeResult:
    return next(each for each in table(site).results if (each.storage, each.operation.value) == (storage, operation))


def told(site: Site) -> list[tuple[str, Any, Any]]:
    """Events of probes, oldest first: kind, storage, operation."""
    page = site.user_page("/v1/events?limit=1000", EventPage)
    return [
        (each.kind, each.detail.get("storage"), each.detail.get("operation"))
        for each in page.items
        if each.kind.startswith("PROBE_")
    ]


def later(site: Site, seconds: float) -> None:
    """Much time goes by at once."""
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(seconds)
    site.say_up()


def ask(site: Site) -> None:
    """Have the site probed now, and let the agents make the job."""
    site.admin("POST", "/v1/probes", ProbeRequest("s"), ProbeTable)
    work(site)


def work(site: Site) -> int:
    handled = probe_sites(site.dispatcher)
    site.agents()
    return handled


def report(
    pilot: Pilot, job: Assignment, *storages: StorageProbe, findings: Optional[list[ProbeFinding]] = None
) -> FinishRequest:
    units = [UnitResult(each.unit_id, UnitOutcome.PROCESSED) for each in job.units]
    found = ProbeReport(list(storages), findings or [SOUND])
    return FinishRequest(JobState.FINISHED, units, exit_code=0, probe=found)


def probe(site: Site, pilot: Pilot, *storages: StorageProbe, findings: Optional[list[ProbeFinding]] = None) -> int:
    """A whole probe; the job's number."""
    ask(site)
    job = pilot.acquire()
    assert job.probe is not None
    pilot.finish(job, report(pilot, job, *storages, findings=findings))
    site.agents()
    return job.job_id


def of(storage: str, read: Optional[ProbeOutcome] = GOOD, write: Optional[ProbeOutcome] = GOOD) -> StorageProbe:
    return StorageProbe(storage=storage, read=read, write=write)


# ---------------------------------------------------------------- when


def test_a_new_site_is_probed_within_an_interval_and_then_in_each(site: Site) -> None:
    site.world()
    assert work(site) == 0
    assert place(site).state is ProbeState.NEVER
    first = place(site).due - site.clock.now()
    assert 600 <= first <= 6 * HOUR
    later(site, first)
    assert work(site) == 1
    assert place(site).state is ProbeState.ASKED
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.finish(job, report(pilot, job, of("disk")))
    site.agents()
    assert place(site).state is ProbeState.DONE
    assert place(site).due == pytest.approx(site.clock.now() + 6 * HOUR, abs=1)
    assert work(site) == 0
    later(site, 6 * HOUR)
    assert work(site) == 1
    assert site.pilot().acquire().probe is not None


def test_probes_that_do_not_run_never_pile_up_and_are_counted(site: Site) -> None:
    site.world()
    ask(site)
    for number in range(1, 4):
        later(site, 6 * HOUR)
        work(site)
        assert place(site).missed == number
        assert place(site).state is ProbeState.ASKED  # the next one
    pages = site.user("GET", "/v1/workflows", reply=WorkflowPage).items
    assert len(pages) <= 2
    assert [kind for kind, _, _ in told(site)] == ["PROBE_MISSED"]  # of those in a row, the first
    pilot = site.pilot()
    job = pilot.acquire()
    assert not pilot.ask().jobs
    pilot.finish(job, report(pilot, job, of("disk")))
    assert (place(site).missed, place(site).state) == (0, ProbeState.DONE)


def test_a_site_without_a_queue_that_takes_probes_gets_none(site: Site) -> None:
    site.put_site("s")
    site.put_queue("q", status=ResourceState.PAUSED)
    work(site)
    assert table(site).places == []
    with pytest.raises(Refused) as error:
        ask(site)
    assert error.value.status == 404
    assert "no queue of site s takes probes now" in error.value.problem.detail
    site.put_queue("q", status=ResourceState.TEST)
    ask(site)
    assert site.pilot().acquire().probe is not None


def test_no_interval_no_probes(site: Site) -> None:
    site.world()
    site.turn("probe_interval_s", 0)
    later(site, 24 * HOUR)
    assert work(site) == 0
    assert table(site).places == []


def test_slots_with_gpus_have_a_probe_of_their_own(site: Site) -> None:
    site.world()
    site.put_queue("gpu", gpus=2)
    ask(site)
    assert [each.gpu for each in table(site).places] == [False, True]
    plain = site.pilot("q")
    assert plain.acquire().probe.gpus == 0  # type: ignore[union-attr]
    assert not plain.ask().jobs
    card = Gpu("NVIDIA", "H200", 140_000)
    carded = site.pilot("gpu", offer=Offer(cores=1, memory_mb=4000, disk_mb=20_000, gpus=[card]))
    job = carded.acquire()
    assert job.probe is not None and job.probe.gpus == 1
    carded.finish(job, report(carded, job, of("disk", write=BAD)))
    assert place(site, gpu=True).state is ProbeState.DONE
    assert place(site, gpu=False).state is ProbeState.ASKED


def test_a_probe_comes_first_and_runs_where_no_payload_is_trusted(site: Site) -> None:
    site.world()
    site.put_queue("q", trusted=False)
    site.counter(5, image="/image.sif", priority=900)
    ask(site)
    pilot = site.pilot()
    assert pilot.acquire().probe is not None
    assert pilot.acquire().image == "/image.sif"


def test_nobody_can_submit_what_has_no_payload(site: Site) -> None:
    """It would run as the pilot's own user, who shows credentials."""
    site.world()
    with pytest.raises(Refused) as error:
        body = WorkflowRequest(name="w", stages=[stage(command=None, probe=True)])
        site.admin("POST", "/v1/workflows", body, None)
    assert error.value.paths == ["$.stages[0]"]


def test_harvester_sends_workers_for_probes_to_queues_that_are_tried(site: Site) -> None:
    site.world()
    site.put_queue("q", status=ResourceState.TEST, trusted=False)
    site.counter(5)
    site.put_queue("gpu", gpus=1, status=ResourceState.TEST)

    def wanted(queue: str) -> int:
        split_work(site.dispatcher)
        reply = site.call("GET", f"/v1/queues/{queue}/demand", None, DemandReply, site.token("admin"))
        return sum(each.pilots for each in reply.shapes)

    assert (wanted("q"), wanted("gpu")) == (0, 0)
    ask(site)
    later(site, 60)
    assert wanted("q") + wanted("gpu") == 2
    assert wanted("gpu") >= 1


# ---------------------------------------------------------------- what it is told


def test_a_probe_is_told_of_every_storage_it_may_use_and_how(site: Site) -> None:
    site.world(storages=("disk", "far", "gone", "tape"))
    known = KnownFile(path="known/file", size=5, checksum="adler32:00000001")
    way = Endpoint("root://far:1094//data")
    site.put_site("t")
    spec = StorageSpec(name="far", site="t", endpoints=[way], probe_file=known)
    site.admin("PUT", "/v1/storages/far", spec)
    site.put_storage("gone", status=ResourceState.OFFLINE)
    site.put_storage("tape", tape=True)
    site.put_storage("disk", status=ResourceState.TEST)
    ask(site)
    job = site.pilot().acquire()
    assert job.probe is not None
    disk, far = sorted(job.probe.storages, key=lambda each: each.storage)
    assert (disk.storage, far.storage) == ("disk", "far")
    assert disk.write == disk.read == [f"file:///disk/pilotage-probes/s/disk-{job.job_id}"]
    assert disk.test is None and disk.write_activity.value == "write_lan"
    assert far.write_activity.value == "write_wan"
    assert far.test is not None
    assert (far.test.urls, far.test.size) == (["root://far:1094//data/known/file"], 5)
    assert (job.jobscript, job.command, job.transformation) == (None, None, None)


def test_what_a_lost_probe_may_have_left_is_named_to_the_next(site: Site) -> None:
    site.world()
    ask(site)
    first = site.pilot()
    lost = first.acquire()
    first.fail(lost, int(ErrorCode.SIGTERM))
    site.agents()
    again = site.pilot().acquire()
    assert again.probe is not None
    assert again.probe.storages[0].leftovers == [f"file:///disk/pilotage-probes/s/disk-{lost.job_id}"]
    later(site, 6 * HOUR)
    work(site)
    last = site.pilot().acquire()
    assert last.probe is not None
    names = [url.rpartition("-")[2] for url in last.probe.storages[0].leftovers]
    assert names == [str(again.job_id), str(lost.job_id)]


def test_a_pilot_may_show_credentials_for_what_it_probes_only(site: Site) -> None:
    site.world()
    known = KnownFile(path="known/file")
    spec = StorageSpec(name="disk", site="s", endpoints=[Endpoint("root://disk//data")], probe_file=known)
    site.admin("PUT", "/v1/storages/disk", spec)
    ask(site)
    pilot = site.pilot()
    job = pilot.acquire()
    assert job.probe is not None

    def may(url: str, write: bool) -> bool:
        request = CredentialRequest(job_id=job.job_id, urls=[url], write=write)
        try:
            pilot.post(f"/v1/pilots/{pilot.id}/credentials", request, CredentialReply)
        except Refused as error:
            assert error.status == 422
            return False
        return True

    own = job.probe.storages[0].write[0]
    assert may(own, True) and may(own, False)
    assert may("root://disk//data/known/file", False)
    assert not may("root://disk//data/known/file", True)
    assert not may("root://disk//data/other/file", False)
    assert not may("root://disk//data/pilotage-probes/t/probe-1", True)
    pilot.finish(job, report(pilot, job, of("disk")))
    with pytest.raises(Refused) as error:
        request = CredentialRequest(job_id=job.job_id, urls=[own], write=True)
        pilot.post(f"/v1/pilots/{pilot.id}/credentials", request, CredentialReply)
    assert error.value.status in (409, 410)


# ---------------------------------------------------------------- what it finds


def test_each_change_is_an_event_and_the_table_shows_it(site: Site) -> None:
    site.world(storages=("disk", "other"))
    pilot = site.pilot()
    probe(site, pilot, of("disk"), of("other", write=BAD))
    assert seen(site) == {
        ("disk", "read"): True,
        ("disk", "write"): True,
        ("other", "read"): True,
        ("other", "write"): False,
    }
    assert told(site) == [("PROBE_FAILED", "other", "write")]
    failed = result(site, "other", "write")
    assert (failed.error_code, failed.error_detail) == (BAD.error_code, BAD.error_detail)
    since = failed.since
    site.tick(100)
    probe(site, pilot, of("disk"), of("other", write=BAD))
    assert told(site) == [("PROBE_FAILED", "other", "write")]  # not said again
    assert result(site, "other", "write").since == since
    site.tick(100)
    probe(site, pilot, of("disk", read=BAD), of("other"))
    assert told(site)[1:] == [("PROBE_FAILED", "disk", "read"), ("PROBE_MENDED", "other", "write")]
    page = site.user_page("/v1/events?kind=PROBE_MENDED", EventPage)
    assert page.items[0].detail["failed_s"] == 200
    assert page.items[0].subject_id == "s"
    assert result(site, "other", "write").ok


def test_what_was_not_tried_keeps_what_was_known(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    probe(site, pilot, of("disk"))
    before = result(site, "disk", "read")
    site.tick(100)
    probe(site, pilot, of("disk", read=None, write=BAD))
    assert seen(site) == {("disk", "read"): True, ("disk", "write"): False}
    assert result(site, "disk", "read").time == before.time < result(site, "disk", "write").time


def test_the_software_of_a_site_has_its_own_verdict(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    probe(site, pilot, findings=[SOUND, BROKEN])
    assert place(site).environment_ok is False
    assert place(site).environment == [SOUND, BROKEN]
    assert (place(site).host, place(site).queue) == ("node", "q")
    probe(site, pilot, findings=[SOUND])
    assert place(site).environment_ok
    assert told(site) == [("PROBE_FAILED", None, "environment"), ("PROBE_MENDED", None, "environment")]


def test_a_report_that_is_repeated_is_kept_once(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    ask(site)
    job = pilot.acquire()
    request = report(pilot, job, of("disk", write=BAD))
    assert pilot.finish(job, request) == pilot.finish(job, request)
    assert told(site) == [("PROBE_FAILED", "disk", "write")]


def test_a_job_that_is_no_probe_can_not_say_what_works(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    with pytest.raises(Refused) as error:
        pilot.finish(job, report(pilot, job, of("disk", write=BAD)))
    assert (error.value.status, error.value.paths) == (422, ["$.probe"])
    assert table(site).results == []
    pilot.succeed(job)


def test_storages_that_nobody_knows_are_left_out_of_a_report(site: Site) -> None:
    site.world()
    probe(site, site.pilot(), of("disk"), of("elsewhere", write=BAD))
    assert {storage for storage, _ in seen(site)} == {"disk"}
    assert told(site) == []


def test_what_is_known_goes_with_the_storage_and_the_site(site: Site) -> None:
    site.world(storages=("disk", "other"))
    probe(site, site.pilot(), of("disk"), of("other"))
    site.admin("DELETE", "/v1/storages/other")
    work(site)
    assert {storage for storage, _ in seen(site)} == {"disk"}


def test_a_probe_whose_task_ends_without_a_report_did_not_run(site: Site) -> None:
    site.world()
    ask(site)
    for _ in range(60):
        pilot = site.pilot()
        reply = pilot.ask()
        if not reply.jobs:
            break
        pilot.fail(reply.jobs[0], int(ErrorCode.PAYLOAD_FAILED))
        site.agents()
        site.tick(10)
    work(site)
    assert place(site).state is ProbeState.MISSED
    assert "no report came" in place(site).reason


def test_books_of_earlier_probes_are_taken_away(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    for _ in range(3):
        probe(site, pilot, of("disk"))
        site.tick(10)
    work(site)
    left = site.user("GET", "/v1/workflows", reply=WorkflowPage).items
    assert [(each.owner, each.name) for each in left] == [(OWNER, "probe-s")]
    assert len(table(site).results) == 2
    site.check_counts()


def test_the_metrics_tell_it(site: Site) -> None:
    site.world()
    probe(site, site.pilot(), of("disk", write=BAD))
    measure_system(site.dispatcher)
    with site.database.read() as connection:
        sample = system(connection)
    assert sample is not None
    assert {(each.storage, each.operation, each.ok) for each in sample.probes} == {
        ("disk", "read", True),
        ("disk", "write", False),
    }
    text = site.raw("GET", "/metrics").text
    assert 'pilotage_probe_ok{gpu="false",operation="write",site="s",storage="disk"} 0.0' in text
    assert 'pilotage_probes_missed{site="s"} 0.0' in text


# ---------------------------------------------------------------- what follows


def why(site: Site) -> list[str]:
    reply = site.call("GET", "/v1/queues/q/why", None, WhyReply, site.token("admin"))
    return [each.filter for each in reply.refusals]


def test_by_default_what_fails_is_used_all_the_same(site: Site) -> None:
    site.world()
    site.submit(stage(given=files("a")))
    pilot = site.pilot()
    probe(site, pilot, of("disk", read=BAD, write=BAD))
    job = pilot.acquire()
    assert job.units[0].file is not None and job.units[0].file.replicas
    pilot.record(job, "out")


def test_what_can_not_be_read_is_never_near_while_it_is_avoided(site: Site) -> None:
    site.world(storages=("disk", "other"))
    site.turn("probe_use", ProbeUse.AVOID.value)
    pilot = site.pilot()
    probe(site, pilot, of("disk", read=BAD), of("other"))
    site.submit(stage(given=files("a")))
    site.submit(stage(given=files("b", storages=("disk", "other"))))
    job = pilot.acquire()
    assert job.units[0].file is not None
    assert [each.storage for each in job.units[0].file.replicas] == ["other"]
    assert not pilot.ask().jobs
    assert "storage" in why(site)
    probe(site, pilot, of("disk"), of("other"))  # it is tried all the same, and may be used again
    assert pilot.acquire().units[0].file.did == "data:a"  # type: ignore[union-attr]


def test_what_can_not_be_written_gets_no_outputs_while_it_is_avoided(site: Site) -> None:
    site.world(storages=("a-near", "b-other"))
    site.turn("probe_use", ProbeUse.AVOID.value)
    pilot = site.pilot()
    task = site.counter(3)
    probe(site, pilot, of("a-near", write=BAD), of("b-other"))
    job = pilot.acquire()
    assert job.task_id == task
    assert pilot.record(job, "out").destinations[0].storage == "b-other"
    probe(site, pilot, of("a-near", write=BAD), of("b-other", write=BAD))
    assert "output_storage" in why(site)
    site.turn("probe_use", ProbeUse.WARN.value)
    assert pilot.acquire().task_id == task


# ---------------------------------------------------------------- who


def test_only_admins_have_a_site_probed(site: Site) -> None:
    site.world()
    for role, expected in (("user", 403), ("harvester", 403), ("production", 403), ("admin", 202)):
        answer: Result = site.raw("POST", "/v1/probes", ProbeRequest("s"), site.token(role))
        assert answer.status_code == expected, role
    assert site.raw("GET", "/v1/probes").status_code == 401
    assert site.raw("GET", "/v1/probes", token=site.token("harvester")).status_code == 403
    answer = site.raw("POST", "/v1/probes", ProbeRequest("nowhere"), site.token("admin"))
    assert answer.status_code == 404 and "known: s" in answer.text
    assert msgspec.json.decode(site.raw("GET", "/v1/probes", token=site.token("user")).content)["use"] == "warn"
