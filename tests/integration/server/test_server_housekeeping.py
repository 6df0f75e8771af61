"""Old things are put away in slices; nothing that lives or is not settled ever is, whatever an admin sets."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, func, insert, select

from common.states import JobState, WorkerState
from common.wire import JobPage, WorkerReport
from server.agents import housekeeping
from server.agents.housekeeping import keep_house
from server.store.database import Connection
from server.store.schema import job, pilot, replay, worker
from server.store.schema_archive import job_archive
from server.store.schema_outputs import job_ended
from tests.integration.server.harness import Pilot, Site

DAY_S = 86400.0


def ids(site: Site, table: object = job) -> list[int]:
    with site.database.read() as connection:
        return list(connection.execute(select(table.c.id).order_by(table.c.id)).scalars())  # type: ignore[attr-defined]


def count(connection: Connection, table: object) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]


def booked(site: Site) -> None:
    """What the agent of the books does with jobs that have ended."""
    with site.database.write() as connection:
        connection.execute(delete(job_ended))


def later(site: Site, seconds: float) -> None:
    site.clock.advance(seconds)  # type: ignore[attr-defined]
    site.say_up()


def work(site: Site, n: int) -> tuple[Pilot, list[int]]:
    """A pilot that has done ``n`` jobs; their ids."""
    done = []
    pilot = site.pilot()
    for _ in range(n):
        taken = pilot.acquire()
        pilot.succeed(taken)
        done.append(taken.job_id)
    booked(site)
    return pilot, done


def test_finished_jobs_go_to_the_archive_and_are_still_found(site: Site) -> None:
    site.world()
    task = site.counter(10)
    pilot, done = work(site, 3)
    before = [site.job(each) for each in done]
    counted = site.task(task).jobs
    later(site, 31 * DAY_S)
    alive = site.pilot().acquire()
    keep_house(site.dispatcher)
    assert (ids(site), ids(site, job_archive)) == ([alive.job_id], done)
    assert [site.job(each) for each in done] == before
    assert site.task(task).jobs == {**counted, "sent": 1}
    page = site.user_page(f"/v1/jobs?task={task}&limit=3", JobPage)
    assert [each.id for each in page.items] == done
    page = site.user_page(f"/v1/jobs?task={task}&limit=3&after={page.next}", JobPage)
    assert [each.id for each in page.items] == [alive.job_id]
    page = site.user_page(f"/v1/jobs?task={task}&state=finished", JobPage)
    assert [each.id for each in page.items] == done


def test_slices_of_any_size_archive_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "SLICE", 2)
    site.world()
    site.counter(20)
    keeper = site.pilot(cores=8)
    old = keeper.ask(3).jobs
    _, done = work(site, 7)
    keeper.succeed(old[1])
    booked(site)
    later(site, 31 * DAY_S)
    keep_house(site.dispatcher)
    assert ids(site, job_archive) == sorted([*done, old[1].job_id])
    assert ids(site) == [old[0].job_id, old[2].job_id]


def test_no_setting_makes_a_live_job_vanish_nor_one_of_the_last_day(site: Site) -> None:
    site.world()
    site.counter(5)
    for key in ("jobs_keep_s", "job_archive_keep_s", "events_keep_s", "pilots_keep_s"):
        site.turn(key, 1)
    _, done = work(site, 2)
    alive = site.pilot().acquire()
    later(site, DAY_S / 2)
    keep_house(site.dispatcher)
    assert ids(site) == [*done, alive.job_id]
    later(site, DAY_S)
    keep_house(site.dispatcher)
    assert ids(site) == [alive.job_id]
    assert site.job(alive.job_id).state == JobState.SENT


def test_a_job_that_is_not_in_the_books_or_whose_outputs_are_not_settled_stays(site: Site) -> None:
    site.world()
    site.counter(5)
    pilot = site.pilot()
    unbooked, unswept = pilot.acquire(), None
    pilot.succeed(unbooked)
    booked(site)
    unswept = pilot.acquire()
    pilot.record(unswept, "a")
    pilot.fail(unswept, 1305)
    booked(site)
    with site.database.write() as connection:
        connection.execute(insert(job_ended).values(job_id=unbooked.job_id))
    later(site, 31 * DAY_S)
    keep_house(site.dispatcher)
    assert ids(site) == [unbooked.job_id, unswept.job_id]


def test_the_archive_has_an_end_too(site: Site) -> None:
    site.world()
    site.counter(5)
    _, done = work(site, 2)
    later(site, 31 * DAY_S)
    keep_house(site.dispatcher)
    assert ids(site, job_archive) == done
    later(site, 5 * 365 * DAY_S)
    keep_house(site.dispatcher)
    assert ids(site, job_archive) == []


def test_ended_pilots_their_workers_and_old_replays_are_forgotten(site: Site) -> None:
    site.world()
    site.counter(5)
    gone, _ = work(site, 1)
    gone.end(reason="idle")
    site.report(WorkerReport(gone.worker, "q", WorkerState.FINISHED))
    active = site.pilot()
    taken = active.acquire()
    site.report(WorkerReport(active.worker, "q", WorkerState.FAILED))
    with site.database.write() as connection:
        connection.execute(insert(replay).values(holder="job:1", request_id="r", ids="[]", time=site.clock.now()))
    later(site, 91 * DAY_S)
    keep_house(site.dispatcher)
    with site.database.read() as connection:
        assert list(connection.execute(select(pilot.c.id)).scalars()) == [active.id]
        assert list(connection.execute(select(worker.c.mark)).scalars()) == [active.worker]
        assert count(connection, replay) == 0
    assert site.job(taken.job_id).state == JobState.SENT
