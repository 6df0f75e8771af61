"""The one primitive: claims, raced, bounded, refused; the same on both databases."""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select, text, update

from common.states import ResourceState, TaskState, UnitState
from common.wire import FilesInput, MergeRule, StageInput, UnitsAcquireReply, UnitsAcquireRequest
from server.dispatch.claim import MAX_UNITS
from server.engine.sizing import TIER_BITS, Bounds, ReadyUnit, prefix, rows_to_look_at
from server.store import claim_postgres
from server.store.claims import (
    Asked,
    Claimant,
    ClaimedJob,
    ClaimTerms,
    Floors,
    Missed,
    claim_job,
    claim_together,
    is_single,
)
from server.store.codes import UNIT_CODES, UNIT_READY
from server.store.database import Database
from server.store.prepared import Prepared
from server.store.schema import task as task_table
from server.store.schema import unit, unit_detail
from tests.integration.server.harness import Site, file, files, stage, states
from tests.integration.server.test_server_why import why


def claim(database: Database, terms: ClaimTerms, pilot_id: int, floors: Floors) -> ClaimedJob | None:
    """A job for a pilot, as a request of its own: on PostgreSQL by the statement that serves many, if it can."""
    asked = Asked(terms, Claimant(pilot_id, "q", "s", "node", "}"), uuid.uuid4().hex, 0, 1, 1000.0)
    missed: ClaimedJob | Missed = Missed.TOO_LARGE
    with database.at_once() as connection:
        if not database.is_sqlite and is_single(asked):
            missed = claim_together([asked], floors).run(connection)[0]
            if missed is Missed.BELOW:
                missed = claim_together([asked], floors).run(connection)[0]
        if isinstance(missed, ClaimedJob):
            return missed
        return claim_job(connection, asked, floors) if missed is Missed.TOO_LARGE else None


def only_bucket(site: Site, task_id: int) -> int:
    with site.database.read() as connection:
        return int(
            connection.execute(select(unit.c.bucket_id).where(unit.c.task_id == task_id).distinct()).scalar_one()
        )


def claim_all(
    url: str, terms: ClaimTerms, pilot_id: int, barrier: Any, waits: Any = None
) -> list[tuple[int, list[int]]]:
    """Claim until nothing was found three times: the jobs and their units. ``waits`` takes the longest claim's time."""
    database, floors = Database(url), Floors()
    found: list[tuple[int, list[int]]] = []
    longest, empty = 0.0, 0
    barrier.wait(240)
    while empty < 3:
        started = time.monotonic()
        job = claim(database, terms, pilot_id, floors)
        longest = max(longest, time.monotonic() - started)
        if job is None:
            empty += 1  # others may hold all that is left for this moment
        else:
            found.append((job.job_id, [each.id for each in job.units]))
    database.close()
    if waits is not None:
        waits.append(longest)
    return found


def check_race(site: Site, task_id: int, found: list[tuple[int, list[int]]], count: int) -> None:
    """Each unit was given to one job, and the rows say to which."""
    taken = Counter(each for _, ids in found for each in ids)
    assert max(taken.values()) == 1
    assert len(taken) == count
    assert len({job for job, _ in found}) == len(found)
    with site.database.read() as connection:
        rows = connection.execute(select(unit.c.id, unit.c.job_id).where(unit.c.task_id == task_id)).all()
    assert {row.id: row.job_id for row in rows} == {each: job for job, ids in found for each in ids}
    assert site.real_counts() == {(task_id, UnitState.RESERVED): count}
    site.check_counts()


def race(site: Site, url: str, threads: int, count: int) -> list[float]:
    site.world()
    task = site.counter(count, files_per_job=3)
    terms = ClaimTerms(only_bucket(site, task), task, "q", Bounds(3))
    pilot_id = site.pilot().id
    barrier = threading.Barrier(threads)
    found: list[tuple[int, list[int]]] = []
    waits: list[float] = []

    def work() -> None:
        found.extend(claim_all(url, terms, pilot_id, barrier, waits))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(600)
    check_race(site, task, found, count)
    return waits


def test_real_postgres_eight_threads_claim_each_unit_once(postgres: object, make_url_of: Any) -> None:
    url = make_url_of("real_postgres")
    race(Site(url), url, threads=8, count=5000)


def _process(url: str, terms: ClaimTerms, pilot_id: int, barrier: Any, results: Any) -> None:
    results.put(claim_all(url, terms, pilot_id, barrier))


def test_real_postgres_several_processes_claim_each_unit_once(postgres: object, make_url_of: Any) -> None:
    url = make_url_of("real_postgres")
    site = Site(url).world()
    task = site.counter(3000, files_per_job=2)
    terms = ClaimTerms(only_bucket(site, task), task, "q", Bounds(2))
    pilot_id = site.pilot().id
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_process, args=(url, terms, pilot_id, barrier, results)) for _ in range(4)]
    for each in processes:
        each.start()
    found = [each for _ in processes for each in results.get(timeout=600)]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    check_race(site, task, found, 3000)


def test_four_threads_on_sqlite_claim_each_unit_once_and_none_waits_long(make_url_of: Any) -> None:
    url = make_url_of("sqlite")
    site = Site(url).world()
    task = site.counter(1200, files_per_job=3)
    terms = ClaimTerms(only_bucket(site, task), task, "q", Bounds(3))
    pilot_id = site.pilot().id
    database, floors = Database(url), Floors()  # one process: one database object, as the server has it
    found: list[tuple[int, list[int]]] = []
    turns: list[tuple[float, float]] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(240)
        while True:
            started = time.monotonic()
            job = claim(database, terms, pilot_id, floors)
            turns.append((started, time.monotonic()))
            if job is None:
                return
            found.append((job.job_id, [each.id for each in job.units]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(600)
    check_race(site, task, found, 1200)
    # In turns, not in seconds, which a slow disk makes long for all of them.
    ends = sorted(ended for _, ended in turns)
    passed = [bisect_left(ends, ended) - bisect_left(ends, started) for started, ended in turns]
    assert max(passed) < 150, "one has waited while the others came again and again"


# ---------------------------------------------------------------- the claim says what the rule says


@pytest.fixture
def claimable(site: Site) -> Iterator[tuple[Site, ClaimTerms]]:
    """A task that may run, whose units a test replaces."""
    site.world()
    task = site.counter(1)
    site.pilot()
    yield site, ClaimTerms(only_bucket(site, task), task, "q", Bounds(1))


def put_units(site: Site, terms: ClaimTerms, units: list[ReadyUnit], others: int) -> None:
    """These ready units and ``others`` that are not ready, in the bucket."""
    with site.database.write() as connection:
        connection.execute(delete(unit))
        connection.execute(delete(unit_detail))
        rows = [(each.id, each.seq, each.size_mb, each.events, UNIT_READY) for each in units]
        rows += [(10_000 + n, n, 1, 0, UNIT_CODES[UnitState.DONE]) for n in range(others)]
        for number, seq, size, events, state in rows:
            values = {"id": number, "seq": seq, "size_mb": size, "state": state, "events": events}
            connection.execute(insert(unit).values(task_id=terms.task_id, bucket_id=terms.bucket_id, **values))
            connection.execute(insert(unit_detail).values(unit_id=number))


@st.composite
def ready_units(draw: st.DrawFn) -> list[ReadyUnit]:
    tiers = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 30, 31, 32, 33, 64, 99]), max_size=12))
    numbers = draw(st.lists(st.integers(0, 40), min_size=len(tiers), max_size=len(tiers), unique=True))
    sizes = draw(st.lists(st.integers(0, 50) | st.just(2**31 - 1), min_size=len(tiers), max_size=len(tiers)))
    events = draw(st.lists(st.integers(0, 40), min_size=len(tiers), max_size=len(tiers)))
    seqs = sorted((tier << TIER_BITS) | number for tier, number in zip(tiers, numbers, strict=True))
    each = enumerate(zip(seqs, sizes, events, strict=True))
    return [ReadyUnit(index + 1, seq, size, n) for index, (seq, size, n) in each]


def bounds() -> st.SearchStrategy[Bounds]:
    return st.builds(
        Bounds,
        limit=st.integers(1, 14) | st.sampled_from([64, 1000, 2**31 - 100]),
        min_units=st.integers(1, 6),
        disk_mb=st.none() | st.integers(0, 120),
        spare_mb=st.integers(0, 20),
        out_kb_per_event=st.sampled_from([0.0, 512.0, 1024.0, 3072.0]),
        max_events=st.none() | st.integers(1, 100),
        aim_events=st.none() | st.integers(1, 100),
        aim_mb=st.none() | st.integers(1, 100),
    )


@given(units=ready_units(), bounds=bounds(), floor=st.integers(0, 45))
@example(units=[ReadyUnit(n, (32 << TIER_BITS) | n, 1) for n in (1, 2, 3)], bounds=Bounds(64), floor=0)
@example(units=[ReadyUnit(1, 1, 99), ReadyUnit(2, 2, 1)], bounds=Bounds(1, disk_mb=50), floor=0)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_claim_takes_what_the_rule_names(
    claimable: tuple[Site, ClaimTerms], units: list[ReadyUnit], bounds: Bounds, floor: int
) -> None:
    site, terms = claimable
    put_units(site, terms, units, others=3)
    terms = replace(terms, bounds=bounds)
    floors = Floors()
    floors.advance(terms.bucket_id, floor)

    def rule(first: int, again: bool) -> list[int]:
        seen = [each for each in units if each.seq >= first][: rows_to_look_at(bounds, again)]
        return [each.id for each in prefix(seen, bounds)]

    job = claim(site.database, terms, 1, floors)
    bounded = bounds.disk_mb is not None or bounds.max_events is not None
    expected = rule(floor, False) or (rule(0, True) if floor or bounded else [])
    assert ([each.id for each in job.units] if job else []) == expected
    with site.database.read() as connection:
        rows = connection.execute(select(unit.c.id).where(unit.c.job_id.is_not(None)).order_by(unit.c.seq))
        assert [row.id for row in rows] == expected


# ---------------------------------------------------------------- what refuses a claim


def asked_for(terms: ClaimTerms, pilot_id: int, count: int) -> list[Asked]:
    claimant = Claimant(pilot_id, "q", "s", "node", "}")
    return [Asked(terms, claimant, uuid.uuid4().hex, 0, 1, 1000.0) for _ in range(count)]


def claim_batch(site: Site, asked: list[Asked], floors: Floors) -> list[ClaimedJob | Missed]:
    with site.database.at_once() as connection:
        return claim_together(asked, floors).run(connection)


def jobs_of(made: list[ClaimedJob | Missed]) -> list[ClaimedJob]:
    return [each for each in made if isinstance(each, ClaimedJob)]


def test_claims_of_one_bucket_in_one_batch_each_get_a_unit_of_their_own(on_postgres: Site) -> None:
    task, pilot_id = on_postgres.counter(5), on_postgres.pilot().id
    terms = ClaimTerms(only_bucket(on_postgres, task), task, "q", Bounds(1))
    made = claim_batch(on_postgres, asked_for(terms, pilot_id, 6), Floors())
    assert [isinstance(job, ClaimedJob) for job in made] == [True] * 5 + [False]
    assert made[-1] is Missed.EMPTY
    assert [job.emptied for job in jobs_of(made)] == [False] * 4 + [True]
    check_race(on_postgres, task, [(job.job_id, [each.id for each in job.units]) for job in jobs_of(made)], 5)


def test_a_batch_says_how_few_units_it_left(on_postgres: Site) -> None:
    task, pilot_id = on_postgres.counter(12), on_postgres.pilot().id
    terms, floors = ClaimTerms(only_bucket(on_postgres, task), task, "q", Bounds(1)), Floors()
    claim_batch(on_postgres, asked_for(terms, pilot_id, 2), floors)
    assert floors.left(terms.bucket_id) is None  # many
    claim_batch(on_postgres, asked_for(terms, pilot_id, 7), floors)
    assert floors.left(terms.bucket_id) == 3
    claim_batch(on_postgres, asked_for(terms, pilot_id, 3), floors)
    assert floors.left(terms.bucket_id) is None  # none: whoever looks again sees for himself


def test_a_batch_says_why_a_claim_got_nothing(on_postgres: Site) -> None:
    task, pilot_id = on_postgres.counter(2), on_postgres.pilot().id
    terms, floors = ClaimTerms(only_bucket(on_postgres, task), task, "q", Bounds(1)), Floors()
    floors.advance(terms.bucket_id, 7)
    asked = asked_for(terms, pilot_id, 1)
    assert claim_batch(on_postgres, asked, floors) == [Missed.BELOW]
    assert isinstance(claim_batch(on_postgres, asked, floors)[0], ClaimedJob)
    small = replace(terms, bounds=Bounds(1, max_events=0))
    assert claim_batch(on_postgres, asked_for(small, pilot_id, 1), floors) == [Missed.TOO_LARGE]


@pytest.mark.parametrize("state", [state for state in TaskState if state.value not in ("ready", "scouting", "running")])
def test_a_task_paused_between_look_and_claim_gives_nothing(site: Site, state: TaskState) -> None:
    site.world()
    task = site.counter(3)
    pilot = site.pilot()
    site.dispatcher.looks.get()
    with site.database.write() as connection:
        connection.execute(update(task_table).where(task_table.c.id == task).values(state=state.value))
    reply = pilot.ask()
    assert reply.jobs == []
    assert site.real_counts() == {(task, UnitState.READY): 3}


@pytest.mark.parametrize("status", [each for each in ResourceState if each != ResourceState.ONLINE])
def test_a_queue_paused_between_look_and_claim_gives_nothing(site: Site, status: ResourceState) -> None:
    site.world()
    task = site.counter(3)
    pilot = site.pilot()
    site.dispatcher.looks.get()
    with site.database.write() as connection:  # by another process: this one's look is not told
        connection.execute(text("UPDATE queue SET status = :status"), {"status": status.value})
    assert pilot.ask().jobs == []
    assert site.real_counts() == {(task, UnitState.READY): 3}


# ---------------------------------------------------------------- floors


def test_a_floor_never_hides_a_returned_unit_for_good(site: Site) -> None:
    site.world()
    task = site.counter(6)
    one, two = site.pilot(), site.pilot()
    jobs = [one.acquire() for _ in range(3)]
    assert [job.units[0].seq for job in jobs] == [0, 1, 2]
    other = Site(site.database.url.render_as_string(hide_password=False), site.clock)  # another server process
    two.site = other
    assert two.acquire().units[0].seq == 3  # now its floor is here
    one.fail(jobs[0], 1099)  # comes back in the first process
    assert [two.acquire().units[0].seq for _ in range(2)] == [4, 5]
    other.tick()
    assert two.acquire().units[0].seq == 0
    assert two.ask().jobs == []
    assert states(site.units(task)) == {"reserved": 6}


def test_a_floor_does_not_keep_a_merge_from_its_least_number(site: Site) -> None:
    site.world()
    task = site.counter(8)
    terms = ClaimTerms(only_bucket(site, task), task, "q", Bounds(8, min_units=5))
    floors = Floors()
    floors.advance(terms.bucket_id, 5)
    job = claim(site.database, terms, site.pilot().id, floors)
    assert job is not None and len(job.units) == 8


def test_a_retried_task_was_once_hidden_behind_the_floor_while_others_came_first(site: Site) -> None:
    site.world()
    task = site.counter(3, max_attempts=1)
    pilot = site.pilot()
    for _ in range(3):
        pilot.fail(pilot.acquire(), 1305)
    site.agents()
    site.command(task, "retry")
    assert [pilot.acquire().units[0].seq for _ in range(3)] == [0, 1, 2]


# ---------------------------------------------------------------- which bucket, which plan


def test_the_nearest_bucket_comes_first(site: Site) -> None:
    site.put_site("s", distances={"near": 10, "far": 60})
    site.put_site("t")
    site.put_storage("here", "s")
    site.put_storage("near", "t")
    site.put_storage("far", "t")
    site.put_queue("q", "s")
    listed = FilesInput([file("a", "far"), file("b", "near", "far"), file("c", "here"), file("d", "near")])
    site.submit(stage(given=listed))
    pilot = site.pilot()
    jobs = [pilot.acquire() for _ in range(4)]
    assert [job.units[0].file.did for job in jobs if job.units[0].file] == ["data:c", "data:b", "data:d", "data:a"]
    both = jobs[1].units[0].file
    assert both is not None
    assert [(each.storage, each.distance) for each in both.replicas] == [("near", 10), ("far", 60)]


def test_a_claim_fits_the_slots_disk(site: Site) -> None:
    site.world()
    gib = 1024**3
    site.submit(stage(given=files("a", "b", "c", "d", size=4 * gib), files_per_job=10))
    pilot = site.pilot()
    assert len(pilot.ask(offer=replace_offer(pilot.offer, disk_mb=500 + 2 * 4096)).jobs[0].units) == 2
    assert len(pilot.ask(offer=replace_offer(pilot.offer, disk_mb=0)).jobs[0].units) == 2  # not known: no bound


def replace_offer(offer: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(offer, **changes)


def test_several_jobs_of_one_request_share_the_offer(site: Site) -> None:
    site.world()
    site.counter(10)
    pilot = site.pilot(cores=3)
    assert len(pilot.ask(max_jobs=8).jobs) == 3


def test_a_merge_waits_for_its_least_number_until_its_parent_is_closed(site: Site) -> None:
    site.world()
    make, merge = site.submit(stage("make", count=7), stage("merge", given=StageInput("make"), merge=MergeRule(3, 4)))
    pilot = site.pilot()
    jobs = [pilot.acquire() for _ in range(7)]

    def step(count: int) -> list[int]:
        for _ in range(count):
            pilot.succeed(jobs.pop(), "x")
        site.agents()
        site.tick()
        return [len(job.units) for job in pilot.ask(max_jobs=1).jobs]

    assert step(2) == []
    assert step(1) == [3]
    assert step(2) == []
    assert step(2) == [4]
    assert site.task(merge).input_closed
    site.check_counts()


def test_leftovers_of_a_merge_are_taken_when_its_parent_closes(site: Site) -> None:
    site.world()
    make, merge = site.submit(
        stage("make", count=2), stage("merge", given=StageInput("make"), merge=MergeRule(50, 100))
    )
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    site.agents()
    last = pilot.acquire()
    assert last.task_id == make
    site.tick()
    assert pilot.ask().jobs == []
    refused = [each for each in why(site).refusals if each.task_id == merge]
    assert [each.filter for each in refused] == ["merge"]
    pilot.fail(last, 1106)  # hopeless: the parent ends with one output
    site.agents()
    site.tick()
    assert len(pilot.acquire().units) == 1


def test_real_postgres_walks_the_partial_index_over_200_000_units(
    postgres: object, make_url_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(make_url_of("real_postgres")).world()
    task = site.counter(1)
    bucket = only_bucket(site, task)
    pilot_id = site.pilot().id
    with site.database.write() as connection:
        connection.execute(
            text(
                "INSERT INTO unit (task_id, bucket_id, seq, size_mb, state) SELECT :task, :bucket + n % 3, n,"
                " 1, CASE WHEN n < 20000 THEN 4 ELSE 1 END FROM generate_series(1, 200000) AS n"
            ),
            {"task": task, "bucket": bucket},
        )
        connection.execute(text("INSERT INTO unit_detail (unit_id) SELECT id FROM unit WHERE id > 1"))
    with site.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE unit"))
        connection.execute(text("ANALYZE unit_detail"))
    plans: list[str] = []

    def explain(statement: Prepared, connection: Connection, given: Mapping[str, Any]) -> Any:
        words, bound = statement.rendered(connection, given)
        assert isinstance(words, bytes)
        cursor = connection.dialect.loaded_dbapi.RawCursor(connection.connection.dbapi_connection)
        plans.append("\n".join(row[0] for row in cursor.execute(b"EXPLAIN " + words, bound)))
        return ()

    monkeypatch.setattr(Prepared, "run", explain)
    with site.database.write() as connection:
        for bounds in (Bounds(1), Bounds(10), Bounds(10, disk_mb=100)):
            for floor in (0, 30_000):
                terms = ClaimTerms(bucket, task, "q", bounds)
                values = {
                    "pilot_id": pilot_id, "site": "s", "host": "node", "request_id": "r", "ordinal": 0, "cores": 1,
                    "now": 1000.0,
                }  # fmt: skip
                claim_postgres.claim(connection, terms, values, "}", floor, bounds.limit)
    assert len(plans) == 6
    for plan in plans:
        locked = plan.partition("CTE locked")[2].partition("CTE chosen")[0]
        assert "unit_ready" in locked, plan
        assert "Seq Scan on unit" not in plan, plan
        assert "Sort" not in locked, plan
        assert "unit_pkey" not in locked, plan


def test_a_job_of_very_many_units_once_had_more_than_a_statement_can_name(site: Site) -> None:
    site.world()
    task = site.counter(70_000, files_per_job=2**31 - 1)
    pilot = site.pilot()
    job = pilot.acquire()
    assert len(job.units) == MAX_UNITS
    path = f"/v1/jobs/{job.job_id}/units:acquire"
    for number in range(6):
        body = UnitsAcquireRequest(f"request-{number}-", 2**31 - 1)
        assert len(pilot.post(path, body, UnitsAcquireReply).units) == MAX_UNITS
    ids = [each.id for each in site.units(task)]
    pilot.succeed(job, "a", units=ids)
    assert site.task(task).units == {"done": 70_000}
    site.check_counts()


def test_a_pilot_that_has_left_takes_no_bucket_from_others(site: Site) -> None:
    """It tried all of them, one after another, and each was left alone by its process for a second."""
    site.world()
    tasks = [site.counter(2) for _ in range(6)]
    gone, here = site.pilot(), site.pilot()
    gone.end()
    reply = gone.ask()
    assert reply.drain and not reply.jobs
    assert [here.acquire().task_id for _ in range(12)] == sorted(2 * tasks)
