"""Counts of units: what follows from those that were not rolled up yet, and what the roll-up says of buckets."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select

from common.states import TaskState, UnitState
from server.agents.duties import recount
from server.agents.tasks import advance_tasks
from server.store import units
from server.store.schema import bucket, unit_count
from server.store.schema_commands import task_touched
from tests.integration.server.harness import Site


def hints(site: Site, task_id: int) -> list[bool]:
    with site.database.read() as connection:
        found = select(bucket.c.maybe_ready).where(bucket.c.task_id == task_id)
        return [bool(row.maybe_ready) for row in connection.execute(found)]


def test_a_task_ends_by_changes_that_were_not_rolled_up_while_another_goes_on(site: Site) -> None:
    over, other = site.world().counter(3), site.counter(5)
    pilot = site.pilot()
    pilot.succeed(pilot.acquire())
    site.agents()
    with site.database.read() as connection:
        rolled_up = select(unit_count.c.n).where(unit_count.c.task_id == over, unit_count.c.state == units.UNIT_READY)
        assert connection.execute(rolled_up).scalar_one() == 2, "the counts alone say that it goes on"
    for _ in range(3):
        pilot.succeed(pilot.acquire())
    advance_tasks(site.dispatcher)
    assert (site.task(over).state, site.task(other).state) == (TaskState.DONE, TaskState.RUNNING)


def test_claims_of_a_running_task_do_not_have_it_looked_at_again(site: Site) -> None:
    task_id = site.world().counter(5)
    pilot = site.pilot()
    first = pilot.acquire()
    site.agents()
    advance_tasks(site.dispatcher)

    def marks() -> list[int]:
        with site.database.read() as connection:
            return list(connection.execute(select(task_touched.c.task_id)).scalars())

    assert marks() == []
    pilot.acquire()
    recount(site.dispatcher)
    assert marks() == []
    pilot.succeed(first)
    recount(site.dispatcher)
    assert marks() == [task_id]


def test_a_bucket_filled_and_emptied_between_two_roll_ups_is_asleep_again(site: Site) -> None:
    task_id = site.world().counter(1)
    site.pilot().acquire()
    recount(site.dispatcher)
    assert hints(site, task_id) == [False]
    with site.database.write() as connection:
        bucket_id = connection.execute(select(bucket.c.id).where(bucket.c.task_id == task_id)).scalar_one()
        ready, reserved = ((task_id, bucket_id, state) for state in (UnitState.READY, UnitState.RESERVED))
        units.add_deltas(connection, Counter({ready: 1, reserved: -1}))
        units.wake(connection, [bucket_id], site.clock.now())
        units.add_deltas(connection, Counter({ready: -1, reserved: 1}))
    assert hints(site, task_id) == [True]
    recount(site.dispatcher)
    assert hints(site, task_id) == [False]
    site.check_counts()
