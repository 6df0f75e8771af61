"""The days of the event table are made ahead and dropped when they are old; no insert ever fails for want of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from sqlalchemy import func, select, text

from server.agents.housekeeping import keep_house
from server.store import event_days, events
from server.store.database import Database
from server.store.events import BEGINNING, Event, Wanted
from server.store.migrate import configuration, upgrade
from server.store.schema_events import event
from tests.integration.server.harness import Site

if TYPE_CHECKING:
    from tests.services.postgres import PostgresServer

DAY_S = 86400.0


@pytest.fixture
def postgres_site(make_url_of: Any) -> Iterator[Site]:
    made = Site(make_url_of("real_postgres"))
    yield made
    made.database.close()


def add(site: Site, time: float) -> None:
    with site.database.write() as connection:
        events.add(connection, Event(time, "SITE_FAULT", "site", "s"))


def places(site: Site) -> dict[str, int]:
    """Events in each partition that has any."""
    with site.database.read() as connection:
        rows = connection.execute(text("SELECT tableoid::regclass::text AS place, count(*) AS n FROM event GROUP BY 1"))
        return {row.place: row.n for row in rows}


def count(site: Site) -> int:
    with site.database.read() as connection:
        query = select(func.count()).where(event.c.kind == "SITE_FAULT")
        return int(connection.execute(query).scalar_one())


def test_each_day_has_its_place_and_what_has_none_is_kept_all_the_same(postgres_site: Site) -> None:
    site = postgres_site
    now = site.clock.now()  # 2023-11-14
    add(site, now)
    keep_house(site.dispatcher)
    for time in (now + DAY_S, now + 2 * DAY_S, now + 400 * DAY_S, 0.0):
        add(site, time)
    assert places(site) == {"event_default": 3, "event_day_20231115": 1, "event_day_20231116": 1}
    keep_house(site.dispatcher)
    assert count(site) == 4, "the one of 1970 is old"
    with site.database.read() as connection:
        seen, _ = events.follow(connection, Wanted(), after=BEGINNING, limit=10)
    assert len(seen) == 4


def test_old_days_go_and_younger_ones_stay(site: Site) -> None:
    site.turn("events_keep_s", 3 * DAY_S)
    now = site.clock.now()
    keep_house(site.dispatcher)
    for day in range(6):
        add(site, now + day * DAY_S)
    site.clock._now += 6 * DAY_S  # type: ignore[attr-defined]
    keep_house(site.dispatcher)
    assert 2 <= count(site) <= 4
    with site.database.read() as connection:
        oldest = connection.execute(select(func.min(event.c.time)).where(event.c.kind == "SITE_FAULT")).scalar_one()
    assert oldest >= now + 2 * DAY_S, "on PostgreSQL a day goes as a whole"


def test_no_setting_takes_the_events_of_the_last_day(site: Site) -> None:
    site.turn("events_keep_s", 1)
    add(site, site.clock.now())
    site.tick(60)
    keep_house(site.dispatcher)
    assert count(site) == 1


def test_a_reader_that_takes_long_keeps_a_day_from_being_dropped_and_holds_up_nobody(postgres_site: Site) -> None:
    site = postgres_site
    keep_house(site.dispatcher)
    now = site.clock.now()
    add(site, now + 1)
    site.clock._now += 200 * DAY_S  # type: ignore[attr-defined]
    with site.database.engine.connect() as reader:
        reader.execute(select(event))
        with site.database.write() as connection:
            assert event_days.drop_old(connection, now + 100 * DAY_S) == 0
            events.add(
                connection, Event(now + 300 * DAY_S, "SITE_FAULT", "site", "s")
            )  # the transaction is as good as before
    with site.database.write() as connection:
        assert event_days.drop_old(connection, now + 100 * DAY_S) == 8
    assert count(site) == 1


def test_events_of_an_older_database_are_taken_along(postgres: PostgresServer) -> None:
    database = Database(postgres.create_database())
    with database.write() as connection:
        command.upgrade(configuration(connection), "0003")
        for number in range(3):
            words = "INSERT INTO event (time, kind, subject, subject_id) VALUES (:time, 'SITE_FAULT', 'site', 's')"
            connection.execute(text(words), {"time": 1.7e9 + number})
    assert upgrade(database)
    with database.write() as connection:
        events.add(connection, Event(1.7e9 + 3, "SITE_FAULT", "site", "s"))
    with database.read() as connection:
        seen, _ = events.follow(connection, Wanted(), after=BEGINNING, limit=10)
    assert [(each.id, each.time) for each in seen] == [(n + 1, 1.7e9 + n) for n in range(4)]
    database.close()
