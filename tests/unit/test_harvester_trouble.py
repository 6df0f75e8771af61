"""What goes wrong around harvester costs time and nothing else: batch systems, server, disk, clock, plug-ins."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.clock import FrozenClock
from common.http import ProblemError
from common.problem import Problem
from common.states import WorkerState
from common.wire import WorkerOutcome, WorkerReport
from harvester.backends.base import BackendError, StatusOutcome, SubmitOutcome, WorkerRef, WorkerSpec
from harvester.backends.fake import FakeBackend
from harvester.store import Change, Store, StoreError, Unwritable
from harvester.workers import Workers
from tests.harvester_world import QUEUE, SHAPE, World

W = WorkerState


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------- the server


def test_a_server_that_is_down_for_an_hour_is_told_everything_afterwards(world: World) -> None:
    world.run()
    world.server.down = True
    world.server.pilots = 0
    for _ in range(12):
        done = world.run(300)
        assert any("connection refused" in problem for problem in done.problems)
    assert world.states() == {"finished": 3}, "batch systems are asked all the while"
    world.server.down = False
    world.run()
    told = {report.mark: (report.state, report.exit_code) for report in world.server.reports()}
    assert set(told.values()) == {(W.FINISHED, 0)}
    assert sorted(told) == sorted(world.system.marks())


def test_a_worker_that_the_server_cannot_read_does_not_keep_the_others_from_being_told(world: World) -> None:
    world.server.pilots = 5
    bad: list[str] = []
    report = world.server.report

    def picky(workers: Sequence[WorkerReport]) -> list[WorkerOutcome]:
        if any(one.mark in bad for one in workers):
            raise ProblemError(422, Problem(status=422, title="unreadable", detail="workers[3].reason: not so"))
        return report(workers)

    world.server.report = picky  # type: ignore[method-assign]
    world.run()
    bad.append(world.system.marks()[2])
    done = world.run(10)
    assert [problem for problem in done.problems if "not so" in problem and bad[0] in problem]
    running = {one.mark for one in world.server.reports() if one.state is W.RUNNING}
    assert running == set(world.system.marks()) - set(bad)
    assert world.run(1).problems == []


def test_a_server_that_reads_nothing_is_told_again_when_it_does(world: World) -> None:
    world.run()
    report = world.server.report

    def closed(workers: Sequence[WorkerReport]) -> list[WorkerOutcome]:
        raise ProblemError(422, Problem(status=422, title="unreadable", detail="another version"))

    world.server.report = closed  # type: ignore[method-assign]
    assert any("another version" in problem for problem in world.run(10).problems)
    world.server.report = report  # type: ignore[method-assign]
    world.run(1)
    assert {one.mark for one in world.server.reports() if one.state is W.RUNNING} == set(world.system.marks())


# ---------------------------------------------------------------- the disk


def test_a_full_disk_loses_nothing(world: World) -> None:
    world.run()
    world.server.pilots = 5
    with full_disk():
        for _ in range(3):
            done = world.run(10)
            assert any(problem.startswith("state_dir: ") for problem in done.problems)
        assert len(world.system.marks()) == 3, "nothing is submitted that could not be written down"
    assert world.run(1).planned == 2
    assert world.states() == {"running": 3, "submitted": 2}
    assert sorted(world.system.marks()) == sorted(one.mark for one in world.store.live())
    assert list(world.secrets.iterdir()) == []


def test_a_disk_that_is_full_after_the_submission_has_its_workers_found(world: World) -> None:
    submit = world.backend.submit

    def last(specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        outcomes = submit(specs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return outcomes

    world.backend.submit = last  # type: ignore[method-assign]
    with full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        assert any(problem.startswith("state_dir: ") for problem in world.run().problems)
    del world.backend.submit
    assert world.states() == {"submitting": 3}
    world.run(1)
    assert world.states() == {"submitted": 3}
    assert len(world.system.marks()) == 3


def test_secrets_whose_workers_could_not_be_written_down_are_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(planned: object) -> None:
        raise Unwritable("database or disk is full")

    monkeypatch.setattr(world.store, "plan", full)
    assert any("disk is full" in problem for problem in world.run().problems)
    assert list(world.secrets.iterdir()) == []


# ---------------------------------------------------------------- the clock


def test_a_clock_that_jumps_loses_nobody(world: World) -> None:
    world.system._options.run_s = 1e9
    world.run()
    world.run(10)
    for mark in world.system.marks():
        world.system.forget(mark)
    world.server.pilots = 0
    for _ in range(4):
        world.run(1)
    assert world.states() == {"missing": 3}
    jumps = (86_400.0, -2 * 86_400.0, 40 * 86_400.0)
    for seconds in jumps:
        world.clock.set_back(-seconds)
        world.run(1)
        assert world.states() == {"missing": 3}, "it hasn't been an hour"
    world.run(100)
    assert world.states() == {"failed": 3}


def test_workers_are_not_given_up_while_the_batch_system_is_down(world: World) -> None:
    world.run()
    for mark in world.system.marks():
        world.system.forget(mark)
    world.server.pilots = 0
    for _ in range(4):
        world.run(1)
    world.system.down = True
    world.run(3600)
    assert world.states() == {"missing": 3}


# ---------------------------------------------------------------- batch systems and their plug-ins


class Settling(FakeBackend):
    """What was cut off may arrive for a minute still."""

    settle_s = 60.0


def test_a_submission_that_was_cut_off_and_arrives_late_is_not_submitted_twice(world: World) -> None:
    backend = world.backend = Settling(world.system)
    late: list[WorkerSpec] = []

    def slow(specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        late.extend(specs)
        raise BackendError("timeout")

    backend.submit = slow  # type: ignore[method-assign]
    world.start()
    world.run()
    del backend.submit
    world.start()  # killed, and started again
    world.run(30)
    assert world.states() == {"submitting": 3}, "they may be on their way"
    backend.submit(late[:2])
    world.run(20)
    assert world.states() == {"running": 2, "submitting": 1}
    world.run(20)
    assert world.states() == {"running": 2, "submitted": 1}
    assert sorted(world.system.marks()) == sorted(one.mark for one in world.store.live())


def test_a_worker_that_was_cut_off_once_waited_for_as_long_as_others_were_submitted(world: World) -> None:
    """Each submission began the wait of all anew: a busy queue never came back to the one without an answer."""
    backend = world.backend = Settling(world.system)
    submit = backend.submit

    def never_arrives(specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        raise BackendError("timeout")

    backend.submit = never_arrives  # type: ignore[method-assign]
    world.start()
    world.run()
    assert world.states() == {"submitting": 3}
    backend.submit = submit  # type: ignore[method-assign]
    world.server.pilots = 4
    world.run(35)
    assert len(world.system.marks()) == 1 and world.states()["submitting"] == 3
    world.server.pilots = 5
    world.run(35)
    assert len(world.system.marks()) == 5 and "submitting" not in world.states()


def test_a_mistake_in_a_plug_in_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.run()

    def broken(refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        raise KeyError("JobStatus")

    world.backend.status = broken  # type: ignore[method-assign]
    done = world.run(10)
    assert any("a mistake in its backend" in problem for problem in done.problems)
    assert "Traceback" in caplog.text
    assert world.states() == {"submitted": 3}


def test_what_a_batch_system_says_is_made_fit_to_be_written_and_sent(world: World) -> None:
    world.run()
    said = StatusOutcome.of(W.FAILED, "X", "held:\x00\udcff\n" + "x" * 10_000, 10**30)
    world.backend.status = lambda refs: {ref.mark: said for ref in refs}  # type: ignore[method-assign]
    world.server.pilots = 0
    world.run()
    assert world.states() == {"failed": 3}
    report = world.server.reports()[-1]
    assert report.reason.startswith("held:") and report.reason.isprintable() and len(report.reason) == 4096
    assert report.exit_code is None


def test_answers_that_nobody_asked_for_are_ignored(world: World) -> None:
    submit = world.backend.submit

    def chatty(specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        outcomes = submit(specs)
        return [*outcomes, outcomes[0], SubmitOutcome("somebody-else", outcomes[0].result, "7")]

    world.backend.submit = chatty  # type: ignore[method-assign]
    world.run()
    assert world.states() == {"submitted": 3}


# ---------------------------------------------------------------- the memory of it


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "harvester.db", FrozenClock())
    yield made
    made.close()


def change(mark: str, source: WorkerState, target: WorkerState) -> Change:
    return Change(mark=mark, source=source, target=target)


def test_a_change_of_a_worker_that_has_moved_on_is_left_out(store: Store) -> None:
    workers = Workers(store)
    workers.plan([("m1", QUEUE, SHAPE), ("m2", QUEUE, SHAPE)])
    workers.apply([change("m1", W.PLANNED, W.CANCELLED)])
    both = [change(mark, W.PLANNED, W.SUBMITTING) for mark in ("m1", "m2", "never there")]
    assert [one.mark for one in workers.apply(both)] == ["m2"]
    assert {one.mark: one.state for one in store.open()} == {"m1": W.CANCELLED, "m2": W.SUBMITTING}


def test_the_memory_is_what_is_on_the_disk(store: Store) -> None:
    workers = Workers(store)
    workers.plan([(f"m{number}", QUEUE, SHAPE) for number in range(4)])
    workers.apply([change("m1", W.PLANNED, W.SUBMITTING), change("m2", W.PLANNED, W.FAILED)])
    workers.mark_reported(workers.get(["m1", "m2", "m3"]))
    store.request_cancel([QUEUE])
    assert {one.mark for one in workers.notice_cancelled([QUEUE])} == {"m0", "m1", "m3"}
    again = Workers(store)
    for seen in (workers, again):
        assert sorted(one.mark for one in seen.unreported()) == ["m0"]
        assert seen.get(["m2"]) == [], "its end is told: nothing is to be done for it"
    assert sorted(workers.alive([QUEUE]), key=str) == sorted(again.alive([QUEUE]), key=str)


def test_after_a_failed_write_only_the_disk_knows(store: Store) -> None:
    workers = Workers(store)
    workers.plan([("m1", QUEUE, SHAPE)])
    with full_disk(), pytest.raises(Unwritable, match="make room"):
        workers.apply([change("m1", W.PLANNED, W.SUBMITTING)])
    assert [one.state for one in workers.alive([QUEUE])] == [W.PLANNED]
    store.apply([change("m1", W.PLANNED, W.SUBMITTING)])
    with pytest.raises(StoreError):
        workers.apply([change("m1", W.PLANNED, W.CANCELLED)])
    assert [one.state for one in workers.alive([QUEUE])] == [W.SUBMITTING]


def test_many_threads_change_workers_and_none_is_lost(store: Store) -> None:
    workers = Workers(store)
    lanes = [f"q{number}" for number in range(8)]
    workers.plan([(f"{queue}-{number}", queue, SHAPE) for queue in lanes for number in range(20)])
    failures: list[BaseException] = []

    def move(queue: str) -> None:
        try:
            for source, target in ((W.PLANNED, W.SUBMITTING), (W.SUBMITTING, W.SUBMITTED), (W.SUBMITTED, W.RUNNING)):
                for worker in workers.alive([queue]):
                    workers.apply([change(worker.mark, source, target)])
        except Exception as failure:  # noqa: BLE001 - the test fails on it
            failures.append(failure)

    def tell() -> None:
        while any(thread.is_alive() for thread in threads):
            workers.mark_reported(workers.unreported())

    threads = [threading.Thread(target=move, args=(queue,)) for queue in lanes]
    for thread in threads:
        thread.start()
    tell()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert {one.state for one in workers.alive(lanes)} == {W.RUNNING}
    workers.mark_reported(workers.unreported())
    assert store.unreported() == []
    assert len(store.live([W.RUNNING])) == 160
