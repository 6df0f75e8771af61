"""A changed configuration: what it may change while harvester runs, and what must wait for workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.clock import FrozenClock
from common.config import ConfigError
from common.states import WorkerState
from common.wire import Shape
from harvester.backends.base import Backend, BackendError, close_all
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.config import HarvesterConfig, QueueConfig
from harvester.reload import AGAIN_S, Reloader, Watch, with_leaving
from harvester.store import Change, Store
from tests.harvester_world import QUEUE, config


class Connected(FakeBackend):
    """One that keeps something open."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "h.toml"
        self.file.write_text("1")
        self.clock = FrozenClock()
        self.wanted = config(folder)
        self.system = FakeBatchSystem(FakeOptions(), self.clock)
        self.store = Store(folder / "harvester.db", self.clock)
        self.made: list[Connected] = []
        self.failure: Exception | None = None
        self.watch = Watch(lambda: [self.file])
        self.reloader = Reloader(self.wanted, self.wanted, self.load, self.watch, self.store, folder, self.clock)

    def load(self) -> HarvesterConfig:
        if self.failure:
            raise self.failure
        return self.wanted

    def make(self, _queue: QueueConfig) -> Backend:
        made = Connected(self.system)
        self.made.append(made)
        return made

    def look(self, *, forced: bool = False, change: bool = True) -> HarvesterConfig | None:
        if change:
            self.file.write_text(self.file.read_text() + "x")
        return self.reloader.look(forced, self.make)

    def change(self, queues: dict[str, QueueConfig], **settings: object) -> None:
        self.wanted = msgspec.structs.replace(self.wanted, queues=queues, **settings)

    def worker(self, mark: str = "m" * 32) -> None:
        self.store.plan([(mark, QUEUE, Shape())])
        P, S, D = WorkerState.PLANNED, WorkerState.SUBMITTING, WorkerState.SUBMITTED
        self.store.apply([Change(mark=mark, source=P, target=S)])
        self.store.apply([Change(mark=mark, source=S, target=D, batch_id="1")])

    def end(self, mark: str = "m" * 32) -> None:
        self.store.apply([Change(mark=mark, source=WorkerState.SUBMITTED, target=WorkerState.FINISHED)])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_nothing_happens_until_what_is_in_the_file_changes(world: World) -> None:
    world.change({"new": QueueConfig()})
    assert world.look(change=False) is None
    world.file.write_text(world.file.read_text())  # touched, not changed
    assert world.look(change=False) is None
    found = world.look()
    assert found is not None and list(found.queues) == ["new"]


def test_sighup_has_it_read_although_no_file_has_changed(world: World) -> None:
    world.change({"new": QueueConfig()})
    assert world.look(change=False, forced=True) is not None


def test_an_unusable_file_is_a_problem_until_it_is_mended(world: World) -> None:
    world.failure = ConfigError("max_wokers")
    assert world.look() is None
    assert "old one stays in force: 1412 BAD_CONFIGURATION: max_wokers" in world.reloader.problems[0]
    assert world.look(change=False) is None
    assert world.reloader.problems
    world.failure = None
    assert world.look() is None
    assert world.reloader.problems == []


def test_a_file_that_is_gone_for_a_moment_is_only_a_problem(world: World) -> None:
    world.file.rename(world.folder / "away")
    assert world.look(change=False) is None
    assert "No such file" in world.reloader.problems[0]
    (world.folder / "away").rename(world.file)
    world.look(change=False)
    assert world.reloader.problems == []


@pytest.mark.parametrize("changed", [{"name": "other"}, {"state_dir": "/elsewhere"}])
def test_what_needs_a_restart_is_refused_as_a_whole(world: World, changed: dict[str, str]) -> None:
    world.change({"new": QueueConfig()}, **changed)
    assert world.look() is None
    assert "restart it" in world.reloader.problems[0]


def test_what_is_refused_later_stays_a_problem_and_is_not_tried_again(world: World) -> None:
    world.change({"new": QueueConfig()})
    assert world.look() is not None
    world.reloader.refuse(ConfigError("its backend is none"))
    assert world.look(change=False, forced=False) is None
    assert "its backend is none" in world.reloader.problems[0]


def test_a_removed_queue_stays_without_new_workers_until_its_own_have_ended(world: World) -> None:
    world.worker()
    before = world.wanted.queues[QUEUE]
    world.change({"new": QueueConfig()})
    found = world.look()
    assert found is not None
    assert found.queues[QUEUE] == msgspec.structs.replace(before, max_workers=0)
    world.reloader.accept(found)
    again = with_leaving(world.wanted, world.folder, {QUEUE})
    assert again.queues[QUEUE] == found.queues[QUEUE], "over a restart too"
    assert QUEUE not in with_leaving(world.wanted, world.folder, set()).queues
    world.end()
    assert world.look(change=False) is None
    world.clock.advance(AGAIN_S)
    gone = world.look(change=False)
    assert gone is not None and list(gone.queues) == ["new"]
    world.reloader.accept(gone)
    assert not (world.folder / "leaving.json").exists()


def test_options_of_the_same_batch_system_take_effect_at_once(world: World) -> None:
    world.worker()
    world.make = lambda _queue: Knowing(world.system)  # type: ignore[method-assign]
    changed = QueueConfig(options={"timeout_s": 5})
    world.change({QUEUE: changed})
    found = world.look()
    assert found is not None and found.queues[QUEUE] == changed


def test_options_that_would_lose_sight_of_workers_wait_for_their_end(world: World) -> None:
    world.worker()
    before = world.wanted.queues[QUEUE]
    changed = QueueConfig(options={"host": "elsewhere"})
    world.change({QUEUE: changed})
    found = world.look()
    assert found is not None
    assert found.queues[QUEUE] == msgspec.structs.replace(before, max_workers=0)
    assert "does not know 1 of the 1 workers" in world.reloader.problems[0]
    world.reloader.accept(found)
    world.end()
    world.clock.advance(AGAIN_S)
    found = world.look(change=False)
    assert found is not None and found.queues[QUEUE] == changed
    assert world.reloader.problems == []


def test_a_batch_system_that_gives_no_answer_loses_nobody(world: World) -> None:
    world.worker()
    world.system.down = True
    world.change({QUEUE: QueueConfig(options={"host": "elsewhere"})})
    found = world.look()
    assert found is not None and found.queues[QUEUE].options == {}
    assert "can't be told" in world.reloader.problems[0]


@pytest.mark.parametrize("down", [False, True])
def test_a_batch_system_that_was_only_asked_is_left_again(world: World, down: bool) -> None:
    """What talks to it was left open, once for every try."""
    world.worker()
    world.system.down = down
    world.change({QUEUE: QueueConfig(options={"host": "elsewhere"})})
    world.look()
    assert [backend.closed for backend in world.made] == [1]


def test_what_queues_share_is_closed_once(world: World) -> None:
    shared = Connected(world.system)
    close_all([shared, FakeBackend(world.system), shared])
    assert shared.closed == 1


def test_a_command_to_reload_says_what_is_wrong(world: World) -> None:
    world.reloader.validate()
    world.change({}, name="other")
    with pytest.raises(ConfigError, match="restart it"):
        world.reloader.validate()


class Knowing(FakeBackend):
    def find_by_marks(self, marks):  # type: ignore[no-untyped-def]
        if not marks:
            raise BackendError("nothing asked")
        return dict.fromkeys(marks)
