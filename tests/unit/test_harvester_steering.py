"""Whole cycles: queues whose workers get no pilot, workers that wait for nothing, several nodes, commands of admins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.clock import FrozenClock
from common.states import ResourceState, WorkerState
from common.wire import HarvesterCommandState, HarvesterCommandView
from harvester.backends.base import BatchLoad
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.config import QueueConfig
from harvester.outcome import Outcome
from harvester.store import Worker
from tests.harvester_world import QUEUE, FakeServer, config, make_cycle

W = WorkerState


class World:
    """Harvester, its server and its batch system, where a worker waits for ten seconds and runs for a minute."""

    def __init__(self, folder: Path, pilots: int = 3, batch: dict[str, Any] | None = None, **queue: Any) -> None:
        self.clock = FrozenClock()
        self.server = FakeServer(folder, pilots)
        options = FakeOptions(**{"start_delay_s": 10.0, "run_s": 60.0, **(batch or {})})
        self.system = FakeBatchSystem(options, self.clock)
        settings = QueueConfig(**{"max_workers": 50, "max_queued": 50, "per_cycle": 50, **queue})
        self.config = config(folder, settings)
        self.numbers = iter(range(1000))
        self.start()

    def start(self) -> None:
        """A harvester that has only its files."""
        self.cycle, self.store = make_cycle(self.config, FakeBackend(self.system), self.server, self.clock)

    def run(self, advance: float = 5.0) -> Outcome:
        self.clock.advance(advance)
        return self.cycle.run(threading.Event())

    def states(self) -> dict[str, int]:
        return {state.value: count for (_, state), count in self.store.counts().items()}

    def workers(self) -> list[Worker]:
        return [*self.store.live(), *self.store.ended(1000)]

    def tell(self, kind: str, **fields: Any) -> int:
        """A command of an admin; its number."""
        command = HarvesterCommandView(
            command_id=next(self.numbers),
            harvester="harvester",
            kind=kind,
            state=HarvesterCommandState.WAITING,
            asked=self.clock.now(),
            expires=self.clock.now() + 3600,
            who="ada",
            **fields,
        )
        self.server.orders.append(command)
        return command.command_id

    def told(self, number: int) -> tuple[bool, str]:
        """What harvester answered."""
        result = self.server.answers[number]
        return result.ok, result.detail


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[World] = []

    def build(**more: Any) -> World:
        made.append(World(tmp_path, **more))
        return made[-1]

    yield build
    for world in made:
        world.store.close()


# ---------------------------------------------------------------- workers without pilots


def test_workers_that_get_no_pilot_close_their_queue_and_a_test_worker_opens_it_again(make: Any) -> None:
    """Everyone's users complain of black-hole hosts: here ten workers a minute end without a pilot, not thousands."""
    world = make(pilots=10, batch={"start_delay_s": 0.0, "run_s": 1.0}, throttle_after=5, backoff_s=60.0)
    world.server.seen[""] = 0
    world.run()
    world.run()  # more go before the server has heard how the first ended
    done = world.run()
    assert world.states() == {"finished": 20}
    assert any("submission is held back: 5 workers in a row got no pilot" in problem for problem in done.problems)
    submitted = []
    for _ in range(30):  # five minutes
        submitted.append(world.run(10).submitted)
    assert sum(submitted) == 2, "after one minute, and after two more"
    (decision,) = world.run().decisions
    assert decision.lines[0].bound == "throttle"
    world.server.seen[""] = 1  # mended
    submitted = [world.run(10).submitted for _ in range(40)]
    assert [n for n in submitted if n][:4] == [1, 2, 4, 8]
    assert world.cycle.steering.throttle(QUEUE).open
    assert world.run().problems == []


def test_what_became_of_workers_is_known_after_a_restart(make: Any) -> None:
    world = make(pilots=10, batch={"start_delay_s": 0.0, "run_s": 1.0})
    world.server.seen[""] = 0
    world.run()
    world.run()
    before = world.cycle.steering.throttle(QUEUE)
    assert before.level == 1
    world.start()
    assert world.cycle.steering.throttle(QUEUE) == before
    assert world.run(5).submitted == 0


def test_refused_submissions_close_a_queue_too(make: Any) -> None:
    world = make(pilots=10, batch={"refusal_rate": 1.0})
    for _ in range(3):
        world.run()
    assert world.states() == {"failed": 10}
    assert "refused by chance" in world.cycle.steering.throttle(QUEUE).reason


def test_plans_that_the_server_refuses_close_a_queue_too(make: Any) -> None:
    world = make(pilots=10)
    world.server.refuse_all = "there is no queue 'q1'"
    for _ in range(5):
        world.run()
    assert world.states() == {"failed": 10}, "not ten more in each cycle"
    world.server.refuse_all = ""
    world.run(61)
    assert world.states()["submitted"] == 1


def test_a_server_that_does_not_tell_of_pilots_closes_nothing(make: Any) -> None:
    world = make(pilots=10, batch={"start_delay_s": 0.0, "run_s": 1.0})
    for _ in range(4):
        world.run()
    assert world.cycle.steering.throttle(QUEUE).open
    assert world.states()["finished"] >= 20


def test_the_first_pilot_of_a_running_test_worker_is_enough(make: Any) -> None:
    """A pilot runs for days: nobody waits for its end to submit more. The server is asked, without a change to report."""
    world = make(pilots=10, batch={"start_delay_s": 0.0, "run_s": 1.0}, backoff_s=10.0)
    world.server.seen[""] = 0
    world.run()
    world.run()
    world.system._options.run_s = 1e6
    world.server.pilots = 30
    world.run(20)
    assert world.states()["submitted"] == 1
    world.run()
    assert world.run().submitted == 0
    world.server.seen[""] = 1
    world.run()
    assert world.run().submitted == 2


def test_a_healthy_queue_costs_no_further_questions(make: Any) -> None:
    world = make(pilots=3)
    world.server.seen[""] = 1
    world.run()
    world.run(10)
    calls = len(world.server.calls)
    world.run()
    assert world.server.calls[calls:] == ["demand"]


def test_a_host_that_swallows_workers_is_named_and_reported(make: Any) -> None:
    world = make(pilots=6, batch={"start_delay_s": 0.0, "run_s": 1.0, "hosts": 2}, throttle_after=100)
    world.run()
    world.run(0.5)
    for worker in world.store.live():
        world.server.seen[worker.mark] = int(worker.batch_id) % 2  # node0 swallows
    world.server.pilots = 0
    world.run()
    done = world.run()
    (problem,) = [one for one in done.problems if "host" in one]
    assert "on host node0 the last 3 workers got no pilot" in problem
    hosts = {report.host for report in world.server.reports() if report.state is W.FINISHED}
    assert hosts == {"node0", "node1"}


# ---------------------------------------------------------------- too many that wait


def test_workers_that_wait_for_nothing_are_withdrawn_after_a_while_the_newest_first(make: Any) -> None:
    world = make(pilots=2, batch={"start_delay_s": 1e6}, cancel_queued_after_s=60.0)
    world.run()
    world.server.pilots = 5
    world.run()
    world.server.pilots = 1
    for _ in range(5):
        world.run(10)
    assert world.states() == {"submitted": 5}
    for _ in range(3):
        world.run(10)
    assert world.states() == {"submitted": 1, "cancelled": 4}
    (left,) = world.store.live()
    assert left.created == min(worker.created for worker in world.workers())
    assert world.run(100).planned == 0


def test_demand_that_comes_and_goes_costs_nobody_a_place(make: Any) -> None:
    world = make(pilots=5, batch={"start_delay_s": 1e6}, cancel_queued_after_s=60.0)
    for n in range(30):
        world.server.pilots = 0 if n % 5 else 5
        world.run(10)
    assert world.states() == {"submitted": 5}


def test_a_worker_that_starts_while_it_is_withdrawn_is_left_alone(make: Any) -> None:
    """Everyone's users complain of scale-in that kills work."""
    world = make(pilots=3, batch={"start_delay_s": 40.0, "run_s": 1e6}, cancel_queued_after_s=30.0)
    world.run()
    world.server.pilots = 0
    world.run(5)
    world.run(31 - 5)
    assert world.states() == {"submitted": 3}
    # Between the decision and the batch system's look at them they start.
    world.cycle.provision(Outcome())
    world.clock.advance(30)
    for lane in world.cycle.lanes:
        lane.withdraw(Outcome())
    for _ in range(3):
        world.run()
    assert world.states() == {"running": 3}
    assert not any(worker.cancel for worker in world.store.live())
    assert world.run().decisions[0].running == 3, "they count again"


@pytest.mark.parametrize("status", [ResourceState.DRAINING, ResourceState.OFFLINE])
def test_a_queue_that_is_emptied_withdraws_what_waits_and_leaves_what_runs(make: Any, status: ResourceState) -> None:
    world = make(pilots=2, batch={"run_s": 1e6}, cancel_queued_when_closed=True)
    world.run()
    world.run(10)
    world.server.pilots = 4
    world.run()
    assert world.states() == {"running": 2, "submitted": 2}
    world.server.status = status
    world.run(1)
    world.run(1)
    assert world.states() == {"running": 2, "cancelled": 2}


def test_a_queue_that_is_emptied_keeps_what_waits_unless_told(make: Any) -> None:
    world = make(pilots=2, batch={"start_delay_s": 1e6})
    world.run()
    for status in (ResourceState.PAUSED, ResourceState.DRAINING, ResourceState.OFFLINE):
        world.server.status = status
        world.run()
    assert world.states() == {"submitted": 2}


def test_withdrawn_workers_are_replaced_when_work_comes_back(make: Any) -> None:
    world = make(pilots=3, batch={"start_delay_s": 1e6}, cancel_queued_after_s=0.0)
    world.run()
    world.server.pilots = 0
    world.run()
    world.server.pilots = 3
    for _ in range(3):
        world.run()
    assert world.states() == {"cancelled": 3, "submitted": 3}


# ---------------------------------------------------------------- limits


def test_the_backlog_of_the_batch_system_holds_back(make: Any) -> None:
    world = make(pilots=20, batch={"start_delay_s": 1e6}, max_backlog=8)
    world.system.foreign = BatchLoad(waiting=3, running=100)
    world.run()
    assert world.states() == {"submitted": 5}
    (decision,) = world.run().decisions
    assert (decision.new, decision.lines[0].bound) == (0, "max_backlog")
    world.system.foreign = BatchLoad(waiting=0, running=100)
    world.run()
    assert world.states() == {"submitted": 8}


def test_a_batch_system_that_does_not_tell_its_backlog_gets_nothing_new(make: Any) -> None:
    world = make(pilots=20, max_backlog=8)
    world.system.down = True
    done = world.run()
    assert any("nobody knows how many jobs wait there" in problem for problem in done.problems)
    assert world.states() == {}


def test_explain_asks_the_batch_system_by_itself(make: Any) -> None:
    world = make(pilots=20, max_backlog=8)
    world.system.foreign = BatchLoad(waiting=6, running=1)
    decision = world.cycle.decide(QUEUE)
    assert (decision.new, decision.situation.load) == (2, BatchLoad(6, 1))
    assert world.states() == {}


def test_a_worker_of_several_nodes_serves_as_many_pilots(make: Any) -> None:
    world = make(pilots=9, nodes=4)
    assert world.run().planned == 3
    assert world.run().planned == 0


# ---------------------------------------------------------------- commands


def test_drain_and_undrain(make: Any) -> None:
    world = make(pilots=2)
    first = world.tell("drain", queue=QUEUE)
    world.run()
    assert (world.told(first), world.states()) == ((True, f"{QUEUE}: no new workers"), {})
    world.tell("undrain")
    world.run()
    assert world.states() == {"submitted": 2}


def test_a_command_takes_effect_once_however_often_it_comes(make: Any) -> None:
    world = make(pilots=0)
    number = world.tell("submit", queue=QUEUE, workers=3)
    world.run()
    assert world.told(number)[0]
    assert world.states() == {"submitted": 3}
    for _ in range(3):  # the server has lost the answer, and harvester was started anew
        world.server.answers.clear()
        world.start()
        world.run(1)
        assert world.told(number)[0]
        assert world.states() == {"submitted": 3}
    drain = world.tell("drain")
    world.run(1)
    world.store.set_drained([QUEUE], False)  # by hand, meanwhile
    world.server.answers.pop(drain)
    world.run(1)
    assert world.store.drained() == set(), "it is not carried out again"


def test_a_crash_in_the_middle_of_a_command_doubles_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(pilots=0)
    number = world.tell("submit", queue=QUEUE, workers=3)
    with monkeypatch.context() as patch:
        patch.setattr(world.cycle.commands._memory, "remember", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.run()
    assert world.states() == {"planned": 3}
    world.start()
    world.run()
    assert world.states() == {"submitted": 3}
    assert world.told(number)[0]


def test_cancel_ends_workers_of_a_queue_or_by_mark(make: Any) -> None:
    world = make(pilots=3, batch={"run_s": 1e6})
    world.run()
    world.run(10)
    world.server.pilots = 0
    mark = world.store.live()[0].mark
    number = world.tell("cancel", marks=[mark, "mark-of-nobody"])
    for _ in range(3):
        world.run(1)
    assert world.told(number) == (True, "the end of 1 workers is asked for")
    assert world.states() == {"running": 2, "cancelled": 1}
    world.tell("cancel", queue=QUEUE)
    world.run(1)
    world.run(1)
    world.run(1)
    assert world.states() == {"cancelled": 3}


def test_cancel_of_those_that_wait_ends_no_other(make: Any) -> None:
    world = make(pilots=2, batch={"run_s": 1e6})
    world.run()
    world.run(10)
    world.server.pilots = 5
    world.run(1)
    assert world.states() == {"running": 2, "submitted": 3}
    world.server.pilots = 0
    number = world.tell("cancel", queue=QUEUE, waiting_only=True)
    world.run(1)
    world.run(1)
    assert world.states() == {"running": 2, "cancelled": 3}
    assert world.told(number)[1].startswith("3 workers that wait are withdrawn")


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("drain", {"queue": "elsewhere"}, "queue 'elsewhere' is not configured here; known are q1"),
        ("cancel", {"marks": ["mark-of-nobody"]}, "none of these workers lives here"),
        ("fetch_logs", {"marks": ["mark-of-nobody"]}, "had none of these workers"),
        ("levitate", {}, "does not know 'levitate'"),
        ("submit", {}, "names no queue"),
    ],
)
def test_what_cannot_be_done_is_answered_with_the_reason(
    make: Any, kind: str, fields: dict[str, Any], words: str
) -> None:
    world = make(pilots=0)
    number = world.tell(kind, **fields)
    world.run()
    ok, detail = world.told(number)
    assert (ok, words in detail) == (False, True), detail


def test_reload_is_done_by_whoever_can(make: Any) -> None:
    world = make(pilots=0)
    first = world.tell("reload")
    world.cycle.commands.reload = None
    world.run()
    assert world.told(first)[0] is False
    second = world.tell("reload")
    world.cycle.commands.reload = lambda: "read anew"
    world.run()
    assert world.told(second) == (True, "read anew")


def test_an_answer_that_is_lost_is_given_again(make: Any) -> None:
    world = make(pilots=0)
    number = world.tell("drain")
    answer = world.server.command_done

    def lost(command_id: int, result: Any) -> None:
        world.server.command_done = answer
        world.server.down = True
        answer(command_id, result)

    world.server.command_done = lost
    assert world.run().server_down
    assert world.store.drained() == {QUEUE}
    world.server.down = False
    world.run()
    assert world.told(number)[0]


def test_old_results_of_commands_are_forgotten(make: Any) -> None:
    world = make(pilots=0)
    world.tell("drain")
    world.run()
    world.server.orders.clear()
    world.tell("undrain")
    world.run(100 * 86400)
    memory = world.cycle.commands._memory
    assert len(memory.results([f"{n}@{at!r}" for n in range(2) for at in (0.0,)])) == 0
    assert msgspec.json.encode(world.server.answers[1])


def test_verdicts_do_not_grow_without_end(make: Any) -> None:
    world = make(pilots=50, batch={"start_delay_s": 0.0, "run_s": 1.0})
    world.server.seen[""] = 1
    for _ in range(8):
        world.run()
    assert len(world.cycle.commands._memory.verdicts(QUEUE)) == 200
    world.start()
    assert world.cycle.steering.throttle(QUEUE).open
