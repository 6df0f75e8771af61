"""Whole cycles over a real store, the fake batch system and a server that remembers, with the time frozen."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from common.config import ConfigError
from common.states import ResourceState, WorkerState
from common.tokens import hash_secret
from harvester import config as harvester_config
from harvester.backends.base import StatusOutcome, SubmitOutcome, SubmitResult, WorkerRef, WorkerSpec, fill
from harvester.backends.fake import FakeBackend
from harvester.config import QueueConfig
from harvester.outcome import Outcome
from tests.harvester_world import QUEUE, World, config

W = WorkerState


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def single(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, pilots=1)
    yield made
    made.close()


def test_the_life_of_workers(world: World) -> None:
    done = world.run()
    assert (done.planned, done.submitted, done.problems) == (3, 3, [])
    assert world.states() == {"submitted": 3}
    world.run(10)
    assert world.states() == {"running": 3}
    world.server.pilots = 0
    world.run(60)
    assert world.states() == {"finished": 3}
    for mark in world.system.marks():
        assert world.server.states(mark) == ["planned", "submitted", "running", "finished"]
    assert list(world.secrets.iterdir()) == []
    calls = len(world.server.calls)
    world.run()
    assert world.server.calls[calls:] == ["demand"], "what is known is not reported again"


def test_a_reason_that_is_the_state_is_not_told_twice(single: World, caplog: pytest.LogCaptureFixture) -> None:
    """A bug: the log said "submitted -> running running"."""
    caplog.set_level("INFO", "harvester.outcome")
    single.run()
    single.run(10)
    told = [message for message in caplog.messages if "-> running" in message]
    assert [message.partition(": ")[2] for message in told] == ["submitted -> running"]


def test_the_demand_is_not_submitted_twice(world: World) -> None:
    world.run()
    assert world.run().planned == 0
    assert len(world.system.marks()) == 3


def test_the_server_has_the_hash_before_the_batch_system_has_the_worker(single: World) -> None:
    told: list[str | None] = []
    submitted: list[WorkerSpec] = []

    class Watching(FakeBackend):
        def submit(self, specs):  # type: ignore[no-untyped-def]
            told.extend(report.secret_hash for report in single.server.reports())
            submitted.extend(specs)
            return super().submit(specs)

    single.backend = Watching(single.system)
    single.start()
    single.run()
    (spec,) = submitted
    assert told == [hash_secret(spec.secret)]
    assert spec.secret not in repr(spec)
    (report, _) = single.server.reports()
    assert report.valid_s == 3 * 86400 + 7 * 86400
    assert spec.mark in spec.command
    assert not any(spec.secret in word for word in [*spec.command, *spec.environment.values()])


def test_nothing_is_submitted_while_the_server_is_down(world: World) -> None:
    world.server.down = True
    done = world.run()
    assert len(done.problems) == 1
    assert "connection refused" in done.problems[0]
    assert (world.states(), world.system.marks()) == ({}, [])


def test_a_server_that_goes_down_before_the_announcement_only_delays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    demand = world.server.demand

    def last_word(queue: str):  # type: ignore[no-untyped-def]
        reply = demand(queue)
        world.server.down = True
        return reply

    monkeypatch.setattr(world.server, "demand", last_word)
    world.run()
    assert (world.states(), world.system.marks()) == ({"planned": 3}, [])
    monkeypatch.undo()
    world.server.down = False
    done = world.run()
    assert (done.planned, done.submitted) == (0, 3)
    assert world.states() == {"submitted": 3}


def test_states_wait_until_the_server_is_back(single: World) -> None:
    single.run()
    single.server.down = True
    single.run(10)
    calls = len(single.server.calls)
    single.run(60)
    assert single.server.calls[calls:] == ["commands"], "a server that is down is asked once in a cycle"
    single.server.down = False
    single.server.pilots = 0
    single.run()
    assert single.server.states(single.only().mark) == ["planned", "submitted", "finished"]


def test_a_worker_that_the_server_refuses_is_never_submitted(single: World) -> None:
    single.server.refuse_all = "queue is offline"
    done = single.run()
    assert single.system.marks() == []
    worker = single.only()
    assert (worker.state, worker.reason) == (W.FAILED, "queue is offline")
    assert any("queue is offline" in problem for problem in done.problems)
    assert list(single.secrets.iterdir()) == []


def test_a_refused_state_is_not_reported_for_ever(single: World) -> None:
    single.run()
    single.server.refuse_all = "never heard of it"
    single.server.pilots = 0
    single.run(10)
    calls = single.server.calls.count("report")
    single.run()
    assert single.server.calls.count("report") == calls
    assert single.only().state is W.RUNNING


def test_a_batch_system_that_is_down_for_an_hour_is_only_slow(world: World) -> None:
    world.run()
    before = world.store.live()
    world.system.down = True
    for _ in range(12):
        done = world.run(300)
        assert "no status: the batch system does not answer" in done.problems[0]
    assert [(one.mark, one.state, one.missing_count) for one in world.store.live()] == [
        (one.mark, one.state, 0) for one in before
    ]
    world.system.down = False
    world.server.pilots = 0
    world.run()
    assert world.states() == {"finished": 3}


def test_submissions_that_were_taken_but_not_answered_are_found_by_their_marks(world: World) -> None:
    world.system.lose_answers = True
    done = world.run()
    assert world.states() == {"submitting": 3}
    assert "no answer to a submission" in done.problems[0]
    world.system.lose_answers = False
    world.run(1)
    assert world.states() == {"submitted": 3}
    assert len(world.system.marks()) == 3
    assert list(world.secrets.iterdir()) == []


def test_submissions_that_never_arrived_are_submitted_again(world: World) -> None:
    world.system.down = True
    world.run()
    assert world.states() == {"submitting": 3}
    marks = {worker.mark for worker in world.store.live()}
    world.run()
    assert world.states() == {"submitting": 3}, "not knowing is not a fact"
    world.system.down = False
    assert world.run().submitted == 3
    assert set(world.system.marks()) == marks
    assert world.states() == {"submitted": 3}


def test_one_submission_without_an_answer_among_others(world: World) -> None:
    class Patchy(FakeBackend):
        def submit(self, specs):  # type: ignore[no-untyped-def]
            first, second, third = specs
            return [
                SubmitOutcome(first.mark, SubmitResult.REFUSED, reason="too large"),
                SubmitOutcome(second.mark, SubmitResult.UNKNOWN, reason="timeout"),
                *super().submit([third]),
            ]

    world.backend = Patchy(world.system)
    world.start()
    done = world.run()
    assert world.states() == {"failed": 1, "submitting": 1, "submitted": 1}
    assert done.submitted == 1
    assert any("1 not submitted: too large" in problem for problem in done.problems)
    assert any("1 not submitted: timeout" in problem for problem in done.problems)
    unanswered = {worker.mark for worker in world.store.live([W.SUBMITTING])}
    assert world.kept_secrets() == unanswered


def test_missing_only_after_repeated_denial_and_back_when_it_reappears(single: World) -> None:
    single.run()
    mark = single.only().mark
    denying = StatusOutcome.denied("no such worker")
    single.backend.status = lambda refs: {ref.mark: denying for ref in refs}  # type: ignore[method-assign]
    single.run(1)
    single.run(1)
    assert single.only().state is W.SUBMITTED
    single.server.pilots = 0
    single.run(1)
    assert single.only().state is W.MISSING
    del single.backend.status
    single.run(10)
    assert single.only().state is W.RUNNING
    assert single.server.states(mark) == ["planned", "submitted", "missing", "running"]


def test_a_missing_worker_is_lost_only_when_no_pilot_of_it_lives(single: World) -> None:
    single.run()
    mark = single.only().mark
    single.system.forget(mark)
    single.server.pilots = 0
    for _ in range(4):
        single.run(1)
    assert single.only().state is W.MISSING
    single.server.alive[mark] = 1
    single.run(200)
    assert single.only().state is W.MISSING, "a pilot's heartbeat outranks what the batch system says"
    single.server.alive[mark] = 0
    single.run(1)
    assert single.only().state is W.FAILED
    assert "lost" in single.only().reason


def test_held_and_released(single: World) -> None:
    single.run()
    mark = single.only().mark
    single.system.hold(mark)
    single.run(1)
    assert single.only().state is W.HELD
    single.system.release(mark)
    single.run(10)
    assert single.only().state is W.RUNNING


def test_a_drained_queue_gets_nothing_new_and_keeps_its_workers(world: World) -> None:
    world.run()
    world.store.set_drained([QUEUE], True)
    world.server.pilots = 5
    done = world.run()
    assert (done.planned, done.decisions[0].lines[0].bound) == (0, "the queue is drained")
    assert world.states() == {"submitted": 3}
    world.store.set_drained([QUEUE], False)
    assert world.run().planned == 2


def test_a_paused_queue_gets_nothing_new(world: World) -> None:
    world.server.status = ResourceState.PAUSED
    assert world.run().planned == 0


def test_workers_are_ended_on_demand_only(world: World) -> None:
    world.run()
    world.server.pilots = 0
    world.run(10)
    assert world.states() == {"running": 3}, "too many workers are no reason to end one"
    world.store.request_cancel([QUEUE])
    world.run(1)
    world.run(1)
    assert world.states() == {"cancelled": 3}


def test_planned_workers_are_cancelled_without_the_batch_system(single: World) -> None:
    single.server.down = False
    single.cycle.provision(Outcome())
    single.store.request_cancel([QUEUE])
    single.server.pilots = 0
    single.run()
    assert single.only().state is W.CANCELLED
    assert single.system.marks() == []
    assert list(single.secrets.iterdir()) == []


def test_a_backend_that_cannot_end_workers_says_so(single: World) -> None:
    class Bare:
        def __init__(self, backend: FakeBackend) -> None:
            self.submit, self.status, self.find_by_marks = backend.submit, backend.status, backend.find_by_marks

    single.backend = Bare(single.backend)  # type: ignore[assignment]
    single.start()
    single.run()
    single.store.request_cancel([QUEUE])
    assert any("can't end workers" in problem for problem in single.run().problems)


def test_a_planned_worker_without_its_secret_fails_and_is_replaced(single: World) -> None:
    single.cycle.provision(Outcome())
    for path in single.secrets.iterdir():
        path.unlink()
    single.start()
    single.run()
    single.run()
    assert single.states() == {"failed": 1, "submitted": 1}
    assert len(single.system.marks()) == 1


def test_secrets_of_workers_that_were_never_written_down_are_swept(single: World) -> None:
    (single.secrets / "stray").write_text("pls_x")
    single.cycle.provision(Outcome())
    single.cycle.sweep()
    assert single.kept_secrets() == {single.only().mark}
    assert not (single.secrets / "stray").exists()


def test_workers_of_a_queue_that_is_configured_no_more_are_left_alone(single: World) -> None:
    single.run()
    queues = {"another": QueueConfig()}
    single.config = msgspec.structs.replace(single.config, queues=queues)
    single.start()
    single.server.pilots = 0
    done = single.run()
    assert single.only().state is W.SUBMITTED
    assert any("is not configured any more" in problem for problem in done.problems)


def test_ended_workers_are_forgotten_after_a_while(single: World) -> None:
    single.run()
    single.server.pilots = 0
    single.run(100)
    single.run(900)
    assert single.states() == {"finished": 1}
    single.run(200)
    assert single.states() == {}


def test_a_stop_is_obeyed_between_two_steps(world: World) -> None:
    stop = threading.Event()
    demand = world.server.demand

    def stopping(queue: str):  # type: ignore[no-untyped-def]
        stop.set()
        return demand(queue)

    world.server.demand = stopping  # type: ignore[method-assign]
    world.cycle.run(stop)
    assert (world.states(), world.system.marks()) == ({"planned": 3}, [])


def test_refused_submissions_fail(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.system._options.refusal_rate = 1.0
    world.run()
    assert world.states() == {"failed": 3}
    assert list(world.secrets.iterdir()) == []
    world.close()


def test_check_names_what_cannot_be_reached(world: World) -> None:
    assert world.cycle.check(QUEUE) == [("server", None), ("backend local", None)]
    world.server.down = world.system.down = True
    server, backend = world.cycle.check(QUEUE)
    assert "connection refused" in str(server[1])
    assert "does not answer" in str(backend[1])


def test_placeholders_are_filled_and_others_left() -> None:
    assert fill(["{mark}", "x={work_dir}/y", '{"a": 1}', "{other}"], {"mark": "m", "work_dir": "/w"}) == [
        "m",
        "x=/w/y",
        '{"a": 1}',
        "{other}",
    ]


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (QueueConfig(command=["pilot", "{secrets}"]), r"\{secrets\} means nothing; known are"),
        (QueueConfig(command=["pilot", "{mark}"]), "must hand {secret_file}"),
        (QueueConfig(command=[]), "leave it out for the default"),
    ],
)
def test_a_bad_pilot_command_is_refused(tmp_path: Path, queue: QueueConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        harvester_config.check(config(tmp_path, queue))
    assert f"[harvester.queues.{QUEUE}] command" in str(caught.value)


def test_the_default_command_is_the_script_beside_this_python() -> None:
    command = harvester_config.pilot_command(QueueConfig())
    assert command[0].endswith("/bin/pilotage")
    assert "{secret_file}" in command


class SlowToShow(FakeBackend):
    """Takes its time when it is asked for marks, in which what comes is not to be seen yet."""

    settle_s = 10.0

    def __init__(self, world: World) -> None:
        super().__init__(world.system)
        self.clock = world.clock
        self.looks_s = 0.0

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        found = super().find_by_marks(marks) if not self.looks_s else {}
        self.clock.advance(self.looks_s)
        return found


def test_a_look_that_began_before_all_had_settled_once_had_a_worker_submitted_twice(tmp_path: Path) -> None:
    """What a slow batch system showed was older than the time at which it had been read."""
    world = World(tmp_path)
    world.backend = slow = SlowToShow(world)
    world.start()
    try:
        world.system.lose_answers = True
        world.run()
        world.system.lose_answers = False
        given = sorted(world.system.marks())
        slow.looks_s = 20.0
        world.run()
        assert world.states() == {"submitting": len(given)}, "it may still turn up"
        slow.looks_s = 0.0
        world.run()
        assert sorted(world.system.marks()) == given
    finally:
        world.close()
