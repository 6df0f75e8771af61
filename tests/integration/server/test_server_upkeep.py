"""What a web process keeps up beside its requests: its look at the world, and signs of life."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from common.wire import Offer
from server.app import keep_up
from server.dispatch.looks import AT_ONCE
from server.store.schema import pilot_report
from server.store.schema import task as task_table
from tests.integration.server.harness import Site
from tests.services.base import wait_until


def test_a_look_that_is_used_is_renewed_ahead_of_requests(site: Site) -> None:
    looks = site.world().dispatcher.looks
    first = looks.get()
    looks.keep_up()
    second = looks.get()
    assert second is not first
    looks.keep_up()
    assert looks.get() is not second


def test_a_look_that_nobody_uses_is_left_alone(site: Site) -> None:
    looks = site.world().dispatcher.looks
    looks.get()
    looks.keep_up()
    kept = looks._look
    looks.keep_up()
    assert looks._look is kept


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
def test_however_many_tasks_change_at_once_a_look_has_them_all(site: Site, count: int) -> None:
    site.world()
    changed = [site.counter(1) for _ in range(count)]
    other = site.counter(1)
    assert len(site.dispatcher.looks.buckets()) == count + 1
    with site.database.write() as connection:  # by another process: this one's look is not told
        connection.execute(update(task_table).where(task_table.c.id.in_(changed)).values(state="paused"))
    site.dispatcher.looks.keep_up()
    pilot = site.pilot()
    assert pilot.acquire().task_id == other
    assert pilot.ask().jobs == []
    with site.database.write() as connection:
        connection.execute(update(task_table).where(task_table.c.id.in_(changed)).values(state="running"))
    site.dispatcher.looks.keep_up()
    assert sorted(pilot.acquire().task_id for _ in changed) == changed


def test_a_web_process_keeps_up_by_itself(site: Site) -> None:
    dispatcher = site.world().dispatcher
    site.pilot().ask()
    pilot = site.pilot()
    before = offer_of(site, pilot.id)
    pilot.ask(offer=Offer(cores=7))
    first = dispatcher.looks.get()
    assert offer_of(site, pilot.id) == before, "it waits for the next time, and the clock stands still"
    thread = threading.Thread(target=keep_up, args=(dispatcher,))
    thread.start()
    try:
        wait_until(lambda: dispatcher.looks._look is not first, "a look is taken")
        wait_until(lambda: offer_of(site, pilot.id) != before, "the sign of life is written")
    finally:
        dispatcher.stopping.set()
        thread.join()


def offer_of(site: Site, pilot_id: int) -> str | None:
    """What the pilot offered when it was last written that it was heard of."""
    with site.database.read() as connection:
        return connection.execute(select(pilot_report.c.offer).where(pilot_report.c.pilot_id == pilot_id)).scalar()
