"""What harvester writes down, and how a status is judged."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clock import FrozenClock
from common.config import ConfigError
from common.states import TransitionError, WorkerState
from harvester.backends.base import StatusOutcome
from harvester.judge import judge
from harvester.secret_files import SecretFiles
from harvester.store import Change, Store, StoreError, Worker
from tests.harvester_world import QUEUE, SHAPE

W = WorkerState


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def store(tmp_path: Path, clock: FrozenClock) -> Iterator[Store]:
    made = Store(tmp_path / "harvester.db", clock)
    yield made
    made.close()


def move(store: Store, mark: str, *states: WorkerState, **values: object) -> None:
    (source,) = [one.state for one in [*store.live(), *store.ended(100)] if one.mark == mark]
    for target in states:
        store.apply([Change(mark=mark, source=source, target=target, **values)])  # type: ignore[arg-type]
        source = target


def test_a_plan_survives_a_restart(store: Store, tmp_path: Path, clock: FrozenClock) -> None:
    store.plan([("m1", QUEUE, SHAPE)])
    store.close()
    (worker,) = Store(tmp_path / "harvester.db", clock).live()
    assert (worker.mark, worker.queue, worker.state, worker.shape) == ("m1", QUEUE, W.PLANNED, SHAPE)
    assert (worker.created, worker.reported, worker.cancel) == (clock.now(), False, False)


def test_writes_are_durable(store: Store) -> None:
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


def test_a_move_outside_the_table_is_refused_and_nothing_is_changed(store: Store) -> None:
    store.plan([("m1", QUEUE, SHAPE), ("m2", QUEUE, SHAPE)])
    changes = [
        Change(mark="m1", source=W.PLANNED, target=W.SUBMITTING),
        Change(mark="m2", source=W.PLANNED, target=W.RUNNING),
    ]
    with pytest.raises(TransitionError, match="planned to running"):
        store.apply(changes)
    assert {worker.state for worker in store.live()} == {W.PLANNED}


def test_a_move_from_a_state_that_is_past_changes_nothing(store: Store) -> None:
    store.plan([("m1", QUEUE, SHAPE), ("m2", QUEUE, SHAPE)])
    move(store, "m1", W.SUBMITTING)
    with pytest.raises(StoreError):
        store.apply([Change(mark=mark, source=W.PLANNED, target=W.SUBMITTING) for mark in ("m1", "m2")])
    assert {worker.mark: worker.state for worker in store.live()} == {"m1": W.SUBMITTING, "m2": W.PLANNED}


def test_each_change_of_state_must_be_reported_again(store: Store) -> None:
    store.plan([("m1", QUEUE, SHAPE)])
    seen = store.unreported()
    move(store, "m1", W.SUBMITTING)
    store.mark_reported(seen)
    assert [worker.state for worker in store.unreported()] == [W.SUBMITTING], "it moved on while it was reported"
    store.mark_reported(store.unreported())
    assert store.unreported() == []


def test_batch_id_and_reason_are_kept(store: Store, clock: FrozenClock) -> None:
    store.plan([("m1", QUEUE, SHAPE)])
    move(store, "m1", W.SUBMITTING)
    move(store, "m1", W.SUBMITTED, batch_id="7.0")
    clock.advance(5)
    move(store, "m1", W.FAILED, exit_code=3, reason="exit code 3")
    (worker,) = store.ended(10)
    assert (worker.batch_id, worker.exit_code, worker.reason) == ("7.0", 3, "exit code 3")
    assert worker.updated == worker.created + 5
    assert store.live() == []


def test_counts_by_queue_and_state(store: Store) -> None:
    store.plan([("m1", QUEUE, SHAPE), ("m2", QUEUE, SHAPE), ("m3", "other", SHAPE)])
    move(store, "m2", W.SUBMITTING)
    assert store.counts() == {(QUEUE, W.PLANNED): 1, (QUEUE, W.SUBMITTING): 1, ("other", W.PLANNED): 1}
    assert [worker.mark for worker in store.live(queue="other")] == ["m3"]
    assert [worker.mark for worker in store.live([W.SUBMITTING])] == ["m2"]


def test_cancel_is_asked_for_living_workers_of_the_queue_only(store: Store) -> None:
    store.plan([("m1", QUEUE, SHAPE), ("m2", QUEUE, SHAPE), ("m3", "other", SHAPE)])
    move(store, "m1", W.FAILED)
    assert store.request_cancel([QUEUE]) == 1
    assert {worker.mark: worker.cancel for worker in store.live()} == {"m2": True, "m3": False}


def test_drained_queues_are_remembered(store: Store) -> None:
    store.set_drained(["q1", "q2"], True)
    store.set_drained(["q2"], False)
    assert store.drained() == {"q1"}


def test_only_ended_and_reported_workers_are_forgotten(store: Store, clock: FrozenClock) -> None:
    store.plan([("old", QUEUE, SHAPE), ("untold", QUEUE, SHAPE), ("alive", QUEUE, SHAPE)])
    move(store, "old", W.FAILED)
    store.mark_reported(store.ended(10))
    move(store, "untold", W.FAILED)
    clock.advance(100)
    found = store.forgettable(clock.now() - 50)
    assert [worker.mark for worker in found] == ["old"]
    store.forget(["old", "alive"])
    assert [worker.mark for worker in store.live()] == ["alive"]
    assert [worker.mark for worker in store.ended(10)] == ["untold"]
    assert store.forgettable(clock.now() - 200) == []


def test_a_database_of_another_version_is_refused(store: Store, tmp_path: Path, clock: FrozenClock) -> None:
    store.close()
    with sqlite3.connect(tmp_path / "harvester.db") as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="schema 99.*choose another state_dir"):
        Store(tmp_path / "harvester.db", clock)


def test_secrets_are_files_of_mode_0600(tmp_path: Path) -> None:
    secrets = SecretFiles(tmp_path / "secrets")
    secrets.write({"m1": "pls_s3cret", "m3": "pls_0ther"})
    (path,) = (tmp_path / "secrets").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert secrets.read("m1") == "pls_s3cret"
    assert secrets.read("m2") is None
    again = SecretFiles(tmp_path / "secrets")
    assert (again.read("m1"), again.read("m3")) == ("pls_s3cret", "pls_0ther")


def test_secrets_that_others_may_read_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SecretFiles(tmp_path).write({"m1": "pls_s3cret"})
    (path,) = tmp_path.iterdir()
    path.chmod(0o644)
    assert SecretFiles(tmp_path).read("m1") is None
    assert "its secrets are lost" in caplog.text


def test_a_file_of_secrets_goes_with_the_last_of_them(tmp_path: Path) -> None:
    secrets = SecretFiles(tmp_path)
    secrets.write({"m1": "pls_s3cret", "m2": "pls_s3cret"})
    secrets.remove(["m1", "never there"])
    assert (secrets.read("m1"), len(list(tmp_path.iterdir()))) == (None, 1)
    secrets.remove(["m2"])
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_swept(tmp_path: Path) -> None:
    secrets = SecretFiles(tmp_path)
    for mark in ("m1", "m2"):
        secrets.write({mark: "pls_s3cret"})
    (tmp_path / ".half-written").write_text("pls_")
    secrets.sweep({"m2"})
    assert (secrets.read("m1"), secrets.read("m2")) == (None, "pls_s3cret")
    assert len(list(tmp_path.iterdir())) == 1


def worker(state: WorkerState, missing_count: int = 0, cancel: bool = False) -> Worker:
    return Worker(
        mark="m1",
        queue=QUEUE,
        state=state,
        shape=SHAPE,
        created=0,
        updated=0,
        missing_count=missing_count,
        cancel=cancel,
    )


@pytest.mark.parametrize("state", [W.SUBMITTED, W.RUNNING, W.HELD, W.MISSING])
def test_a_failed_query_never_changes_a_state(state: WorkerState) -> None:
    assert judge(worker(state, missing_count=2), StatusOutcome.unknown("timeout"), denials=3) is None


def test_denied_counts_and_then_the_worker_is_missing() -> None:
    first = judge(worker(W.RUNNING), StatusOutcome.denied("gone"), denials=3)
    assert first is not None
    assert (first.target, first.missing_count) == (W.RUNNING, 1)
    third = judge(worker(W.RUNNING, missing_count=2), StatusOutcome.denied("gone"), denials=3)
    assert third is not None
    assert (third.target, third.reason) == (W.MISSING, "denied 3 times: gone")
    assert judge(worker(W.MISSING, missing_count=3), StatusOutcome.denied("gone"), denials=3) is None


@pytest.mark.parametrize("state", [W.SUBMITTED, W.RUNNING, W.HELD])
def test_a_missing_worker_that_reappears_is_back(state: WorkerState) -> None:
    change = judge(worker(W.MISSING, missing_count=3), StatusOutcome.of(state, "native"), denials=3)
    assert change is not None
    assert (change.target, change.missing_count) == (state, 0)


def test_an_answer_ends_the_row_of_denials() -> None:
    change = judge(worker(W.RUNNING, missing_count=2), StatusOutcome.of(W.RUNNING, "R"), denials=3)
    assert change is not None
    assert (change.target, change.missing_count) == (W.RUNNING, 0)
    assert judge(worker(W.RUNNING), StatusOutcome.of(W.RUNNING, "R"), denials=3) is None


def test_the_end_of_a_worker_that_was_told_to_end_is_a_cancellation() -> None:
    change = judge(worker(W.RUNNING, cancel=True), StatusOutcome.of(W.FAILED, "killed", exit_code=-15), denials=3)
    assert change is not None
    assert (change.target, change.exit_code) == (W.CANCELLED, -15)
    denied = judge(worker(W.MISSING, missing_count=3, cancel=True), StatusOutcome.denied(), denials=3)
    assert denied is not None
    assert denied.target is W.CANCELLED


def test_a_state_that_the_worker_cannot_go_to_counts_as_unknown() -> None:
    assert judge(worker(W.RUNNING), StatusOutcome.of(W.PLANNED, "nonsense"), denials=3) is None
