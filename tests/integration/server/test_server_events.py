"""Events are listed, filtered and followed; whoever follows misses none and gets none twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from common.states import JobState
from common.wire import EventPage, EventView
from server.store import cursors, events
from server.store.database import Connection, Database
from server.store.events import BEGINNING, Cursor, Event, Wanted
from tests.integration.server.harness import Site, stage


def add(connection: Connection, number: int, **more: Any) -> None:
    """An event that can be told by its subject's id."""
    events.add(connection, Event(1.7e9 + number, "SITE_FAULT", "site", number, **more))


def numbers(found: list[EventView]) -> list[int]:
    return [int(each.subject_id) for each in found]


def ask(site: Site, query: str = "", token: str = "") -> EventPage:
    """A page of events, which must be given."""
    result = site.raw("GET", "/v1/events", token=token or site.token("admin"), query_string=query)
    assert result.status_code == 200, result.text
    return msgspec.json.decode(result.content, type=EventPage)


# ------------------------------------------------------------ following


@pytest.fixture
def postgres_site(make_url_of: Any) -> Iterator[Site]:
    made = Site(make_url_of("real_postgres"))
    yield made
    made.database.close()


def test_an_event_that_commits_late_is_neither_lost_nor_repeated(postgres_site: Site) -> None:
    """The first of two has the smaller number and commits last; the server is started anew in between."""
    site, url = postgres_site, postgres_site.database.url.render_as_string(hide_password=False)
    start = ask(site, "follow=true").next
    with site.database.engine.connect() as slow:
        slow_transaction = slow.begin()
        add(slow, 1)
        with site.database.write() as quick:
            add(quick, 2)
        listed = ask(site, f"after={BEGINNING}").items
        assert numbers(listed) == [2], "a plain list shows what is visible"
        first = ask(site, f"follow=true&after={start}")
        assert first.items == [], "2 has to wait for 1, or 1 would come behind the cursor"
        slow_transaction.commit()
    other = Site(url)  # another process, or the same after a restart
    second = ask(other, f"follow=true&after={first.next}")
    assert numbers(second.items) == [1, 2]
    assert ask(site, f"follow=true&after={second.next}").items == []
    other.database.close()


def test_one_that_took_its_transaction_first_and_wrote_last(postgres_site: Site) -> None:
    """Then neither ids nor transactions are in the order of the commits."""
    site = postgres_site
    cursor = str(BEGINNING)
    with site.database.engine.connect() as slow, site.database.engine.connect() as other:
        slow_transaction, other_transaction = slow.begin(), other.begin()
        slow.execute(text("SELECT pg_current_xact_id()"))
        add(other, 1)
        other_transaction.commit()
        add(slow, 2)
        page = ask(site, f"follow=true&after={cursor}&limit=1")
        assert page.items == []
        slow_transaction.rollback()
    assert numbers(ask(site, f"follow=true&after={page.next}").items) == [1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_any_order_of_writes_and_commits_is_followed_without_loss(postgres_site: Site, seed: int, limit: int) -> None:
    """Six writers begin, write, commit and roll back in a random order; a reader looks after each step."""
    dice, database = random.Random(seed), postgres_site.database
    written: list[list[int]] = [[] for _ in range(6)]
    committed: list[int] = []
    seen: list[int] = []
    place, number = BEGINNING, 0
    with ExitStack() as stack:
        writers = [stack.enter_context(database.engine.connect()) for _ in range(6)]
        open_ones = [writer.begin() for writer in writers]
        for _ in range(120):
            who = dice.randrange(6)
            step = dice.choice(["write", "write", "write", "commit", "roll back"])
            if step == "write":
                number += 1
                add(writers[who], number)
                written[who].append(number)
            elif step == "commit":
                open_ones[who].commit()
                committed += written[who]
            else:
                open_ones[who].rollback()
            if step != "write":
                written[who] = []
                open_ones[who] = writers[who].begin()
            place = Cursor.parse(str(look(database, place, limit, seen)))
        for who, one in enumerate(open_ones):
            one.commit()
            committed += written[who]
    before = None
    while before != place:
        before, place = place, look(database, place, limit, seen)
    assert sorted(seen) == sorted(committed)
    assert len(set(seen)) == len(seen) > 20


def look(database: Database, place: Cursor, limit: int, seen: list[int]) -> Cursor:
    """One look of the reader."""
    with database.read() as connection:
        found, following = events.follow(connection, Wanted(), after=place, limit=limit)
    seen += numbers(found)
    return following


def test_a_filter_that_matches_nothing_moves_the_cursor_on(site: Site) -> None:
    for number in range(5):
        with site.database.write() as connection:
            add(connection, number)
    page = ask(site, "follow=true&after=0&kind=JOB_LOST")
    assert page.items == []
    assert page.next not in (None, "0.0")
    assert ask(site, f"follow=true&after={page.next}").items == []


def test_pages_of_a_stream_join_without_a_seam(site: Site) -> None:
    with site.database.write() as connection:
        for number in range(25):
            add(connection, number)
    seen: list[int] = []
    cursor: str | None = "0"
    for _ in range(4):
        page = ask(site, f"follow=true&after={cursor}&limit=10")
        seen += numbers(page.items)
        cursor = page.next
    assert seen == list(range(25))


def test_a_waiting_request_gets_what_happens_meanwhile(site: Site) -> None:
    start = ask(site, "follow=true").next
    got: list[EventPage] = []
    waiter = threading.Thread(target=lambda: got.append(ask(site, f"follow=true&after={start}&wait=30")))
    waiter.start()
    while site.dispatcher.watch.sample(0, 0).followers == 0:
        assert waiter.is_alive()
    with site.database.write() as connection:
        add(connection, 7)
    waiter.join(120)
    assert [numbers(page.items) for page in got] == [[7]]


def test_only_a_few_requests_may_wait_and_the_others_are_told_when_to_come_again(site: Site) -> None:
    start = ask(site, "follow=true").next
    with ExitStack() as stack:
        places = [stack.enter_context(site.dispatcher.watch.follower()) for _ in range(5)]
        assert places == [True] * 4 + [False]
        page = ask(site, f"follow=true&after={start}&wait=60")
    assert (page.items, page.retry_after_s > 0, page.next is not None) == ([], True, True)


def test_after_a_restore_into_a_new_cluster_events_go_on(postgres_site: Site) -> None:
    """Transactions are numbered from the beginning there: events with numbers to come would wait for years."""
    site = postgres_site
    with site.database.write() as connection:
        for number in (1, 2):
            add(connection, number)
        connection.execute(text("UPDATE event SET xact = 4000000000000000000"))
        cursors.place(connection, "reader", Cursor(4 * 10**18, 1))
    assert ask(site, "follow=true&after=0").items == []
    with site.database.write() as connection:
        assert cursors.heal(connection) == 2
        assert cursors.place(connection, "reader") == Cursor(0, 1)
        add(connection, 3)
    with site.database.write() as connection:
        assert cursors.heal(connection) == 0, "what is of now is left alone"
    assert numbers(ask(site, "follow=true&after=0").items) == [1, 2, 3]
    assert numbers(ask(site, f"follow=true&after={4 * 10**18}.1").items) == [2, 3]  # a cursor of that past


# ------------------------------------------------------------ looking


def test_events_are_found_by_what_they_are_about(site: Site) -> None:
    site.world()
    one, two = site.submit(stage("a", count=2), stage("b", count=1))
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.beat(job, state=JobState.RUNNING)
    pilot.succeed(job)
    workflow = site.task(one).workflow_id

    def kinds(query: str) -> list[str]:
        return [each.kind for each in ask(site, query).items]

    of_job = kinds(f"job={job.job_id}")
    assert of_job[0] == "JOB_CLAIMED"
    assert of_job[-1] == "JOB_FINISHED"
    assert kinds(f"job={job.job_id}&kind=JOB_FINISHED,JOB_CLAIMED") == ["JOB_CLAIMED", "JOB_FINISHED"]
    assert set(kinds(f"task={one}")) >= {"TASK_DEFINED", "TASK_READY"}
    assert {each.task_id for each in ask(site, f"workflow={workflow}").items} == {one, two}
    assert kinds("subject=pilot") == ["PILOT_REGISTERED"]
    assert kinds(f"subject=worker:{pilot.worker}") == ["WORKER_PLANNED"]
    assert kinds("subject=worker:other") == []
    now = site.clock.now()
    assert kinds(f"since={now + 1}") == []
    assert kinds(f"until={now}") == []
    assert len(kinds(f"since={now}&until={now + 1}")) == len(kinds(""))


def test_the_newest_come_in_their_order_and_can_be_followed_from(site: Site) -> None:
    with site.database.write() as connection:
        for number in range(10):
            add(connection, number)
    page = ask(site, "newest=true&limit=3")
    assert numbers(page.items) == [7, 8, 9]
    with site.database.write() as connection:
        add(connection, 10)
    assert numbers(ask(site, f"follow=true&after={page.next}").items) == [10]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("kind=JOB_LOSED", "kind"),
        ("after=x", "after"),
        ("after=1.2.3", "after"),
        ("after=-1", "after"),
        ("since=yesterday", "since"),
        ("until=-5", "until"),
        ("since=nan", "since"),
        ("follow=perhaps", "follow"),
        ("wait=61", "wait"),
        ("limit=1001", "limit"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_its_field(site: Site, query: str, path: str) -> None:
    result = site.raw("GET", "/v1/events", token=site.token("user"), query_string=query)
    assert result.status_code == 422 or result.status_code == 400, result.text
    assert result.json["errors"][0]["path"] == path


def test_where_people_are_kept_apart_they_see_their_own_events_only(site: Site) -> None:
    site.world()
    mine = site.submit(stage(count=1), name="alice")[0]
    site.submit(stage(count=1), name="bob")
    site.pilot()
    site.turn("isolation", "group")
    seen = ask(site, "limit=1000", site.token("user", "alice")).items
    assert {each.task_id for each in seen} == {mine, None}
    assert {each.subject for each in seen if each.task_id is None} <= {"pilot", "worker"}
    assert len(ask(site, "limit=1000").items) > len(seen), "an admin sees all"
