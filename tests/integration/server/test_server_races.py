"""Many who claim at the same moment: no unit twice; and once a pause is answered, nothing more is given."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import select

from common.states import TaskState
from common.wire import StageInput, UnitsAcquireReply, UnitsAcquireRequest
from server.engine.sizing import Bounds
from server.store.claims import Asked, Claimant, ClaimTerms, Floors, claim_job
from server.store.database import Database
from server.store.schema import bucket, unit
from server.store.schema import job as job_table
from tests.integration.server.harness import Pilot, Site, stage

PROCESSES = 16
UNITS = 20_000


# ---------------------------------------------------------------- sixteen processes


def _claim_all(url: str, pilot_id: int, terms: list[ClaimTerms], first: int, barrier: Any, results: Any) -> None:
    """Claim from all buckets in turn, beginning somewhere else than the others, until each was empty three times."""
    database, floors = Database(url), Floors()
    claimant = Claimant(pilot_id, "q", "s", "node", "}")
    found: list[tuple[int, int, list[int]]] = []
    empty = dict.fromkeys(range(len(terms)), 0)
    barrier.wait(240)
    turn = first
    while empty:
        turn += 1
        index = turn % len(terms)
        if index not in empty:
            continue
        with database.at_once() as connection:
            asked = Asked(terms[index], claimant, uuid.uuid4().hex, 0, 1, 1000.0)
            job = claim_job(connection, asked, floors)
        if job is None:
            empty[index] += 1  # others may hold all that is left for this moment
            if empty[index] == 3:
                del empty[index]
        else:
            found.append((job.job_id, terms[index].task_id, [each.id for each in job.units]))
    database.close()
    results.put(found)


def test_real_postgres_sixteen_processes_claim_twenty_thousand_units_each_once(
    make_url_of: Callable[[str], str],
) -> None:
    url = make_url_of("real_postgres")
    site = Site(url).world()
    sizes = [1, 2, 3, 7]
    tasks = site.submit(*[stage(f"s{n}", count=UNITS // 4, files_per_job=size) for n, size in enumerate(sizes)])
    with site.database.read() as connection:
        rows = connection.execute(select(bucket.c.id, bucket.c.task_id)).all()
    terms = [ClaimTerms(row.id, row.task_id, "q", Bounds(sizes[tasks.index(row.task_id)])) for row in rows]
    pilot_id = site.pilot().id
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=_claim_all, args=(url, pilot_id, terms, n, barrier, results)) for n in range(PROCESSES)
    ]
    for each in processes:
        each.start()
    found = [each for _ in processes for each in results.get(timeout=240)]
    for each in processes:
        each.join(240)
        assert each.exitcode == 0
    taken = Counter(unit_id for _, _, ids in found for unit_id in ids)
    assert len(taken) == UNITS
    assert set(taken.values()) == {1}, "a unit was given twice"
    assert len({job_id for job_id, _, _ in found}) == len(found)
    with site.database.read() as connection:
        kept = {row.id: row.job_id for row in connection.execute(select(unit.c.id, unit.c.job_id))}
        jobs = {row.id: row.n_units for row in connection.execute(select(job_table.c.id, job_table.c.n_units))}
    assert kept == {unit_id: job_id for job_id, _, ids in found for unit_id in ids}
    assert jobs == {job_id: len(ids) for job_id, _, ids in found}
    site.check_counts()
    site.database.close()


# ---------------------------------------------------------------- a pause in the middle of claims


def _reached(claimed: list[tuple[bool, int]], wanted: int, failures: list[BaseException]) -> bool:
    return len(claimed) >= wanted or bool(failures)


def test_nothing_is_claimed_once_a_pause_is_answered(site: Site, url: str) -> None:
    """Claims by way of another server process, which has not been told and whose look is old."""
    site.world()
    other = Site(url, site.clock)
    other.issuer = site.issuer
    tasks = site.submit(stage("a", count=2000), stage("b", count=2000, files_per_job=2))
    pilots = [site.pilot(cores=2) for _ in range(4)]
    stop, moving = threading.Event(), threading.Condition()
    claimed: list[tuple[bool, int]] = []
    pauses = 0
    failures: list[BaseException] = []

    def work(pilot: Pilot, through: Site) -> None:
        mine = Pilot(through, pilot.grant, pilot.offer, pilot.worker)
        try:
            while not stop.is_set():
                seen = pauses
                jobs = mine.ask(2, uuid.uuid4().hex).jobs
                paused = seen % 2 == 1 and pauses == seen  # all the while
                with moving:
                    claimed.extend((paused, job.job_id) for job in jobs)
                    moving.notify_all()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(each, (site, other)[n % 2])) for n, each in enumerate(pilots)]
    for each in threads:
        each.start()
    try:
        for _ in range(5):
            with moving:
                wanted = len(claimed) + 10
                assert moving.wait_for(partial(_reached, claimed, wanted, failures), 240)
            for task in tasks:
                assert site.command(task, "pause").state == TaskState.PAUSED
            pauses += 1  # odd: whoever asks from now on gets nothing
            for pilot in pilots:
                assert pilot.ask(2, uuid.uuid4().hex).jobs == []
            pauses += 1
            for task in tasks:
                site.command(task, "resume")
    finally:
        stop.set()
        for each in threads:
            each.join(240)
    assert not failures
    assert len(claimed) > 50
    assert [job_id for paused, job_id in claimed if paused] == [], "a paused task gave a job"
    site.check_counts()
    other.database.close()


def test_a_job_gets_no_more_units_than_the_setting_allows(site: Site) -> None:
    site.world()
    site.submit(stage("a", count=9))
    site.turn("get_file_units", 3)
    pilot = site.pilot()
    job = pilot.acquire()
    path = f"/v1/jobs/{job.job_id}/units:acquire"
    taken = [len(pilot.post(path, UnitsAcquireRequest(f"request-{n}", 2), UnitsAcquireReply).units) for n in range(3)]
    assert taken == [2, 0, 0]
    assert len(pilot.post(path, UnitsAcquireRequest("request-0", 2), UnitsAcquireReply).units) == 2, "a repeat"


def test_a_get_file_call_gets_nothing_of_a_paused_task(site: Site) -> None:
    site.world()
    first, _ = site.submit(stage("a", count=9), stage("next", given=StageInput("a")))
    pilot = site.pilot()
    job = pilot.acquire()
    site.command(first, "pause")
    path = f"/v1/jobs/{job.job_id}/units:acquire"
    assert pilot.post(path, UnitsAcquireRequest("request-1", 3), UnitsAcquireReply).units == []
    site.command(first, "resume")
    assert len(pilot.post(path, UnitsAcquireRequest("request-2", 3), UnitsAcquireReply).units) == 3
