"""Records and confirmations of several pilots carried out together: what is plain is written as if it came alone, and
whatever is not plain harms nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import BigInteger, Text, bindparam, cast, func, select, text

from common.states import JobState, UnitState
from common.wire import (
    AcquireRequest,
    Assignment,
    FinishReply,
    FinishRequest,
    Metrics,
    OutputPattern,
    OutputRecord,
    RecordReply,
    RecordRequest,
    Registration,
    UnitOutcome,
    UnitResult,
    UploadedOutput,
)
from server.dispatch import commit, together
from server.dispatch.acquire import acquire
from server.dispatch.commit_together import MOST_EACH, Asked, may_share
from server.dispatch.errors import Conflict, NotFound, Unprocessable
from server.store.commit_postgres import MOST
from server.store.prepared import Prepared, in_one_go
from server.store.schema import event, job, job_delta, lease, output, unit, unit_delta
from server.store.schema_measurements import measurement
from server.store.schema_outputs import job_ended
from tests.integration.server.harness import CHECKSUM, Pilot, Site, stage

pytestmark = pytest.mark.parametrize("kind", ["real_postgres"])
NUL = "all is well\0 so far"


@pytest.fixture
def world(site: Site) -> Site:
    return site.world()


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each goes the long way."""
    monkeypatch.setattr(together, "_done", lambda *_: None)


def never_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the long way is closed."""

    def closed(*_: object) -> None:
        raise AssertionError("this went the long way")

    monkeypatch.setattr(commit, "_in_transaction", closed)


class Queued:
    """Requests that wait for a batch that is held up, and so make the next one together."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._held = threading.Event()
        self._at_work = threading.Event()
        self._threads = ThreadPoolExecutor(16)
        self.sizes: list[int] = []

    def _hold(self, batch: list[Any]) -> list[object]:
        self._at_work.set()
        self._held.wait(240)
        return [True] * len(batch)

    @property
    def waits(self) -> bool:
        """Whether a batch has been held up."""
        return self._at_work.is_set()

    def ask(self, call: Callable[..., Any], *given: object) -> Future[Any]:
        """Have a request wait: from the first one on, so that a test can do other things before."""
        if not self.waits:
            self._threads.submit(self._site.dispatcher.writes.do, object(), self._hold)
            assert self._at_work.wait(240)
        waiting = self._site.dispatcher.writes._waiting
        before = len(waiting)
        future = self._threads.submit(call, self._site.dispatcher, *given)
        while len(self._site.dispatcher.writes._waiting) == before and not future.done():
            future_wait(future)
        return future

    def go(self) -> None:
        """Carry them out."""
        self._held.set()
        self._threads.shutdown()


def future_wait(future: Future[Any]) -> None:
    """A short look, so that the other thread can go on."""
    try:
        future.exception(timeout=0.005)
    except TimeoutError:
        return


@pytest.fixture
def queued(world: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queued]:
    found = Queued(world)
    work = together.carry_out

    def counted(dispatcher: Any, batch: list[Any]) -> list[object]:
        if found.waits:
            found.sizes.append(len(batch))
        return work(dispatcher, batch)

    monkeypatch.setattr(together, "carry_out", counted)
    yield found
    found.go()


def jobs_of(site: Site, count: int, **more: Any) -> list[tuple[Pilot, Assignment]]:
    """As many jobs of a task, each of a pilot of its own."""
    site.counter(count, **more)
    pilots = [site.pilot() for _ in range(count)]
    return [(pilot, pilot.acquire()) for pilot in pilots]


def well(given: Assignment, *dids: str, **more: Any) -> FinishRequest:
    results = [UnitResult(each.unit_id, UnitOutcome.PROCESSED) for each in given.units]
    return FinishRequest(JobState.FINISHED, results, [UploadedOutput(did, "file:///x") for did in dids], **more)


# ---------------------------------------------------------------- what is written


def facts_of(site: Site, task_id: int, job_id: int) -> dict[str, Any]:
    """All that a life has left behind, its ids apart."""
    ids = {
        "id",
        "task_id",
        "bucket_id",
        "job_id",
        "unit_id",
        "request_id",
        "pilot_id",
        "digest",
        "reply",
        "did",
        "path",
    }
    ids |= {"subject_id", "xact"}
    found: dict[str, Any] = {}
    with site.database.read() as connection:
        for table in (job, unit, output, measurement, event):
            key = table.c.id if table is job else table.c.job_id
            rows = connection.execute(select(table).where(key == job_id).order_by(*list(table.c)[:1])).mappings()
            found[table.name] = [{name: value for name, value in row.items() if name not in ids} for row in rows]
        for table in (unit_delta, job_delta):
            sums: dict[Any, int] = {}
            for row in connection.execute(select(table).where(table.c.task_id == task_id)).mappings():
                for state, sign in ((row["state"], 1), (row["source"], -1)):
                    place = (row.get("queue"), state)
                    sums[place] = sums.get(place, 0) + sign * row["n"] * row.get("cores", 1)
            found[table.name] = {key: n for key, n in sums.items() if n}
        found["ended"] = len(connection.execute(select(job_ended).where(job_ended.c.job_id == job_id)).all())
    found["event"] = [each for each in found["event"] if "FINISHED" in each["kind"]]
    return found


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("metrics", [None, Metrics(wall_s=60.0, cpu_s=50.0, max_rss_mb=900.0, events=7)])
def test_a_life_together_leaves_the_same_behind_as_one_alone(
    world: Site, monkeypatch: pytest.MonkeyPatch, started: bool, metrics: Metrics | None
) -> None:
    found = []
    for way in (never_alone, alone):
        with monkeypatch.context() as patch:
            task_id = world.submit(stage(count=3, files_per_job=3))[0]
            pilot = world.pilot()
            given = pilot.acquire()
            way(patch)
            if started:
                pilot.beat(given)
            recorded = pilot.record(given, "a.root", "b.root", attributes={"run": 7})
            assert pilot.record(given, "a.root", "b.root", attributes={"run": 7}) == recorded
            pilot.record(given, "left.out")
            dids = [each.did for each in recorded.destinations]
            reply = pilot.finish(given, well(given, *dids, metrics=metrics, log_tail=NUL, exit_code=0))
            assert reply.units == {str(each.unit_id): UnitState.DONE for each in given.units}
        assert [each.did for each in world.outputs(task_id)] == dids
        found.append(facts_of(world, task_id, given.job_id))
    assert found[0] == found[1]
    assert len(found[0]["output"]) == 3 and found[0]["ended"] == 1 and len(found[0]["unit"]) == 3
    assert len(found[0]["measurement"]) == 1
    world.check_counts()


def test_those_who_wait_are_carried_out_in_one_transaction(world: Site, queued: Queued) -> None:
    lives = jobs_of(world, 4)
    records = [queued.ask(commit.record, *record_of(pilot, given, "x")) for pilot, given in lives[:2]]
    ends = [queued.ask(commit.finish, pilot.id, given.job_id, well(given)) for pilot, given in lives[2:]]
    queued.go()
    for (_, given), record in zip(lives[:2], records, strict=True):
        assert isinstance(record.result(), RecordReply)
        assert record.result().destinations[0].did.split(":")[1].find(str(given.job_id)) >= 0
    for (_, given), end in zip(lives[2:], ends, strict=True):
        assert end.result() == FinishReply(
            given.job_id, JobState.FINISHED, {str(given.units[0].unit_id): UnitState.DONE}
        )
    assert queued.sizes == [4]
    with world.database.read() as connection:
        told = connection.execute(select(event.c.xact).where(event.c.kind == "JOB_FINISHED")).scalars().all()
    assert len(told) == 2 and len(set(told)) == 1
    world.check_counts()


def test_a_claim_shares_the_transaction_of_records_and_confirmations(world: Site, queued: Queued) -> None:
    world.counter(3)
    one, two, third = (world.pilot() for _ in range(3))
    a, b = one.acquire(), two.acquire()
    record = queued.ask(commit.record, *record_of(one, a, "x"))
    claim = queued.ask(acquire, third.id, AcquireRequest("r", third.offer))
    end = queued.ask(commit.finish, two.id, b.job_id, well(b))
    queued.go()
    assert isinstance(record.result(), RecordReply) and end.result().state == JobState.FINISHED
    (given,) = claim.result().jobs
    assert queued.sizes == [3]
    with world.database.read() as connection:
        told = select(event.c.xact).where(event.c.job_id.in_([given.job_id, b.job_id]), event.c.kind != "JOB_STARTED")
        kinds = told.where(event.c.job_id == given.job_id), told.where(event.c.kind == "JOB_FINISHED")
        assert len({connection.execute(query).scalar_one() for query in kinds}) == 1
    world.check_counts()


def test_a_claim_that_is_repeated_harms_no_confirmation(world: Site, queued: Queued) -> None:
    """Its batch goes again, one by one: what the others asked is done, and done once."""
    ((one, a),) = jobs_of(world, 1)
    world.counter(2)
    two = world.pilot()
    request = AcquireRequest("the same", two.offer)
    (first,) = acquire(world.dispatcher, two.id, request).jobs
    end = queued.ask(commit.finish, one.id, a.job_id, well(a))
    again = queued.ask(acquire, two.id, request)
    queued.go()
    assert [each.job_id for each in again.result().jobs] == [first.job_id]
    assert end.result().state == JobState.FINISHED
    with world.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(job_ended)).scalar_one() == 1
    world.check_counts()


def test_a_request_with_very_many_units_or_outputs_keeps_nobody_waiting(world: Site) -> None:
    units = [UnitResult(number, UnitOutcome.PROCESSED) for number in range(1, MOST_EACH + 2)]
    outputs = [OutputRecord(f"x{number}", 1, CHECKSUM, pattern="*") for number in range(MOST_EACH + 1)]
    assert may_share(FinishRequest(JobState.FINISHED, units[1:])) and may_share(RecordRequest(outputs[1:]))
    assert not may_share(FinishRequest(JobState.FINISHED, units)) and not may_share(RecordRequest(outputs))
    uploaded = [UploadedOutput(f"s:x{number}", "file:///x") for number in range(MOST_EACH + 1)]
    assert not may_share(FinishRequest(JobState.FINISHED, units[1:], uploaded))


def record_of(pilot: Pilot, given: Assignment, name: str, **more: Any) -> tuple[int, int, Any]:
    return pilot.id, given.job_id, RecordRequest([OutputRecord(name, 1, CHECKSUM, pattern="*", **more)])


# ---------------------------------------------------------------- what is not plain


def test_what_is_refused_harms_nobody_else(world: Site, queued: Queued) -> None:
    lives = jobs_of(world, 9)
    (one, a), (two, b), (three, c), (four, d), (five, e), (six, f), (seven, g), (eight, h), (nine, i) = lives
    two.finish(b, well(b))
    ends = {
        "well": queued.ask(commit.finish, one.id, a.job_id, well(a)),
        "repeated": queued.ask(commit.finish, two.id, b.job_id, well(b)),
        "other content": queued.ask(commit.finish, two.id, b.job_id, well(b, exit_code=1)),
        "another's": queued.ask(commit.finish, one.id, c.job_id, well(c)),
        "unknown output": queued.ask(commit.finish, four.id, d.job_id, well(d, "u:nothing")),
        "another's unit": queued.ask(commit.finish, five.id, e.job_id, well(f)),
        "number too large": queued.ask(commit.finish, six.id, f.job_id, well(f, exit_code=2**40)),
        "no units": queued.ask(commit.finish, seven.id, g.job_id, FinishRequest(JobState.FINISHED)),
        "bad name": queued.ask(commit.record, *record_of(eight, h, "a/b")),
        "well too": queued.ask(commit.finish, nine.id, i.job_id, well(i)),
    }
    queued.go()
    errors = {name: type(future.exception()) for name, future in ends.items() if future.exception()}
    assert errors.pop("number too large").__name__ == "UnstorableValue"
    assert errors == {
        "other content": Conflict,
        "another's": NotFound,
        "unknown output": Unprocessable,
        "another's unit": Unprocessable,
        "bad name": Unprocessable,
    }
    assert ends["repeated"].result().state == JobState.FINISHED
    assert list(ends["no units"].result().units.values()) == [UnitState.READY]
    finished = {given.job_id for given in (a, b, g, i)}
    for pilot, given in lives:
        assert (world.job(given.job_id).state == JobState.FINISHED) == (given.job_id in finished), given
        if given.job_id not in finished:  # and nothing of it was written: it can still end well
            assert pilot.finish(given, well(given)).state == JobState.FINISHED
    world.check_counts()


def test_a_confirmation_twice_in_a_batch_is_answered_twice_and_written_once(world: Site, queued: Queued) -> None:
    ((pilot, given),) = jobs_of(world, 1)
    both = [queued.ask(commit.finish, pilot.id, given.job_id, well(given)) for _ in range(2)]
    queued.go()
    assert both[0].result() == both[1].result()
    with world.database.read() as connection:
        assert len(connection.execute(select(job_ended)).all()) == 1
    world.check_counts()


def test_a_row_that_somebody_holds_is_waited_for_alone(world: Site, queued: Queued) -> None:
    (one, a), (two, b) = jobs_of(world, 2)
    held, other = (queued.ask(commit.finish, p.id, j.job_id, well(j)) for p, j in ((one, a), (two, b)))
    with world.database.write() as connection:
        connection.execute(select(job).where(job.c.id == a.job_id).with_for_update())
        queued._held.set()
        assert other.result(240).state == JobState.FINISHED
        assert not held.done()
    assert held.result(240).state == JobState.FINISHED
    world.check_counts()


def test_what_the_server_registers_goes_the_long_way(world: Site) -> None:
    task_id = world.submit(stage(count=1, outputs=[OutputPattern("*")], registration=Registration.SERVER))[0]
    pilot = world.pilot()
    given = pilot.acquire()
    did = pilot.record(given, "x").destinations[0].did
    asked = Asked(pilot.id, given.job_id, well(given, did), "digest")
    assert not isinstance(together.carry_out(world.dispatcher, [asked])[0], FinishReply)
    reply = pilot.finish(given, well(given, did))
    assert list(reply.units.values()) == [UnitState.OUTPUTTING] and not world.outputs(task_id)
    assert world.job(given.job_id).state == JobState.HOLDING


def test_units_given_up_or_let_go_before_go_the_long_way(world: Site) -> None:
    world.submit(stage(count=2, files_per_job=2))
    pilot = world.pilot()
    given = pilot.acquire()
    assert len(given.units) == 2
    one = FinishRequest(JobState.FINISHED, [UnitResult(given.units[0].unit_id, UnitOutcome.PROCESSED)], [])
    asked = Asked(pilot.id, given.job_id, one, "digest")
    assert not isinstance(together.carry_out(world.dispatcher, [asked])[0], FinishReply)
    reply = pilot.finish(given, one)
    assert sorted(reply.units.values()) == [UnitState.DONE, UnitState.READY]
    world.check_counts()


def test_more_than_fit_one_statement(world: Site) -> None:
    count = MOST + 3
    task_id = world.counter(count)
    pilot = world.pilot(cores=count)
    given = pilot.ask(count).jobs
    assert len(given) == count
    batch: list[Asked[Any]] = [Asked(pilot.id, each.job_id, well(each), "digest") for each in given]
    replies = together.carry_out(world.dispatcher, batch)
    assert all(isinstance(each, FinishReply) for each in replies)
    assert {view.state for view in world.units(task_id)} == {UnitState.DONE}
    world.check_counts()


def test_a_statement_behind_a_lock_sees_what_its_holder_committed(world: Site) -> None:
    """Or else a unit that was given to a job a moment before its confirmation would be forgotten."""
    locked = func.pg_advisory_xact_lock(bindparam("key", type_=BigInteger))
    lock = Prepared(select(cast(locked, Text)))
    count = Prepared(select(func.count().label("n")).select_from(lease))
    started = threading.Event()

    def both() -> int:
        with world.database.at_once() as connection:
            started.set()
            return int(in_one_go(connection, [(lock, {"key": 7}), (count, {})])[1][0].n)

    with ThreadPoolExecutor(1) as threads, world.database.write() as connection:
        before = int(connection.execute(text("SELECT count(*) FROM lease")).scalar_one())
        connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
        seen = threads.submit(both)
        assert started.wait(240)
        while not connection.execute(text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")).all():
            future_wait(seen)
        connection.execute(text("INSERT INTO lease (name, holder, expires) VALUES ('new', 'x', 0)"))
        connection.commit()
        assert seen.result(240) == before + 1
