"""Where outputs go: LAN and WAN, logs, and another storage when one does not take them."""

from __future__ import annotations

from typing import Any

import pytest

from common.wire import Activity, Endpoint, OutputPattern, OutputRecord, RecordReply, RecordRequest, StorageSpec
from server.store import outputs
from server.store.codes import OutputState
from tests.integration.server.harness import CHECKSUM, LOG, Pilot, Refused, Site, files, stage


def put(site: Site, name: str, of_site: str, *activities: Activity) -> None:
    """A storage with one endpoint."""
    way = Endpoint(f"root://{name}//d", [*activities]) if activities else Endpoint(f"root://{name}//d")
    site.admin("PUT", f"/v1/storages/{name}", StorageSpec(name=name, site=of_site, endpoints=[way]))


def record(pilot: Pilot, job_id: int, name: str, **more: Any) -> RecordReply:
    body = RecordRequest([OutputRecord(name, 1, CHECKSUM, **{"pattern": "*", **more})])
    return pilot.post(f"/v1/jobs/{job_id}/outputs", body, RecordReply)


@pytest.fixture
def world(site: Site) -> Site:
    """A site with a storage, and two farther away."""
    site.world()
    site.put_site("t")
    put(site, "disk", "s")
    put(site, "far", "t")
    site.put_site("s", distances={"far": 20, "farther": 40})
    put(site, "farther", "t")
    return site


def test_a_pilot_is_told_what_is_near(world: Site) -> None:
    world.submit(stage(given=files("a", storages=["disk", "far"])))
    pilot = world.pilot()
    unit = pilot.acquire().units[0]
    assert unit.file is not None
    assert [(each.storage, each.activity) for each in unit.file.replicas] == [
        ("disk", Activity.READ_LAN),
        ("far", Activity.READ_WAN),
    ]


def test_logs_go_where_logs_go(world: Site) -> None:
    world.counter(1)
    pilot = world.pilot()
    job = pilot.acquire().job_id
    plain = record(pilot, job, "early.tgz", role=LOG).destinations[0]
    assert (plain.storage, plain.activity) == ("disk", Activity.LOGS)
    put(world, "logs", "t", Activity.LOGS)
    for_logs = record(pilot, job, "log.tgz", role=LOG).destinations[0]
    assert (for_logs.storage, for_logs.activity, len(for_logs.urls)) == ("logs", Activity.LOGS, 1)
    output = record(pilot, job, "x").destinations[0]
    assert (output.storage, output.activity) == ("disk", Activity.WRITE_LAN)


def test_an_output_that_a_storage_does_not_take_goes_to_the_next(world: Site) -> None:
    world.put_queue("q", alternative_stage_out=True)
    world.counter(1)
    pilot = world.pilot()
    job = pilot.acquire()
    first = record(pilot, job.job_id, "x").destinations[0]
    second = record(pilot, job.job_id, "x", avoid=["disk"]).destinations[0]
    third = record(pilot, job.job_id, "x", avoid=["disk", "far"]).destinations[0]
    assert [(each.storage, each.activity) for each in (first, second, third)] == [
        ("disk", Activity.WRITE_LAN),
        ("far", Activity.WRITE_WAN),
        ("farther", Activity.WRITE_WAN),
    ]
    assert first.did == third.did and third.urls[0].startswith("root://farther//d/")
    again = record(pilot, job.job_id, "x", avoid=["disk", "far"]).destinations[0]
    assert again == third, "a repeat after a lost answer"
    with pytest.raises(Refused, match="1133|no storage takes"):
        record(pilot, job.job_id, "x", avoid=["disk", "far", "farther"])
    pilot.succeed(job, "y")
    with world.database.read() as connection:
        rows = {row.name: row for row in outputs.of_jobs(connection, [job.job_id])}
    assert (rows["x"].storage, rows["x"].state) == ("farther", OutputState.ABANDONED)
    assert (rows["y"].storage, rows["y"].state) == ("disk", OutputState.CONFIRMED)


def test_alternatives_are_the_admins_to_allow_and_not_against_the_task(world: Site) -> None:
    world.counter(1)
    pilot = world.pilot()
    job = pilot.acquire().job_id
    record(pilot, job, "x")
    with pytest.raises(Refused, match="no alternative stage-out") as error:
        record(pilot, job, "x", avoid=["disk"])
    assert error.value.paths == ["$.outputs[0].avoid"]
    world.put_queue("q", alternative_stage_out=True)
    task = world.counter(1, outputs=[OutputPattern("*", storage="disk")])
    named = pilot.acquire()
    assert named.task_id == task
    record(pilot, named.job_id, "x")
    with pytest.raises(Refused, match="storage disk takes|no new files|takes no"):
        record(pilot, named.job_id, "x", avoid=["disk"])
