"""Queues in push mode: no worker is submitted before it has jobs, none twice, none without."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import tomllib

from common.cli.admin import set_queue
from common.states import WorkerState
from common.wire import Needs, PushedJob, Refusal, Shape, WorkerJobs
from harvester import push
from harvester.backends.base import BackendError, SubmitOutcome, WorkerSpec
from harvester.config import HarvesterSection, resolve
from harvester.store import Store, Unwritable, Worker
from tests.harvester_world import SHAPE, FakeServer, World

NARROW = Shape(cores=1, memory_mb=600, disk_mb=100, wall_s=900)


class PushServer(FakeServer):
    """A server that has ``jobs`` jobs for workers; it gives each worker one, and the same one again."""

    def __init__(self, folder: Path, pilots: int, jobs: int) -> None:
        super().__init__(folder, pilots)
        self.push = {}
        self.jobs = jobs
        self.answers_lost = 0
        self.away = False
        self.given: dict[str, int] = {}

    def acquire(self, marks: Sequence[str]) -> list[WorkerJobs]:
        assert len(marks) <= push.WORKERS_PER_CALL
        if self.away:
            self.down, was = True, self.down
            try:
                self._check("acquire")
            finally:
                self.down = was
        found = []
        for mark in marks:
            if mark not in self.given and len(self.given) < self.jobs:
                self.given[mark] = len(self.given) + 1
            jobs = [PushedJob(self.given[mark], 7, Needs())] if mark in self.given else []
            why = [Refusal(7, 1, "cores", "the job needs 8 cores, the slot has 1")]
            shape = NARROW if jobs else SHAPE
            found.append(WorkerJobs(mark, True, jobs=jobs, shape=shape, refusals=[] if jobs else why))
        if self.answers_lost:
            self.answers_lost -= 1
            self.down = True
            try:
                self._check("acquire")
            finally:
                self.down = False
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.server = PushServer(tmp_path, 3, jobs=2)
    made.start()
    yield made
    made.close()


def served(world: World) -> PushServer:
    assert isinstance(world.server, PushServer)
    return world.server


def test_workers_with_jobs_are_submitted_with_their_jobs_shape_and_the_others_never(world: World) -> None:
    done = world.run()
    assert (done.planned, done.submitted, done.problems) == (3, 2, [])
    assert world.states() == {"submitted": 2, "cancelled": 1}
    assert sorted(world.system.marks()) == sorted(served(world).given)
    assert [worker.shape for worker in world.store.live()] == [NARROW, NARROW]
    (withdrawn,) = world.store.ended(10)
    assert withdrawn.reason == (
        "not submitted: there are no jobs for it (task 7: cores: the job needs 8 cores, the slot has 1)"
    )
    assert served(world).states(withdrawn.mark) == ["planned", "cancelled"]
    assert world.kept_secrets() == set(), "nobody needs the secrets of workers that are submitted or withdrawn"


def test_an_answer_that_is_lost_is_asked_for_again_and_submits_nothing_meanwhile(world: World) -> None:
    served(world).answers_lost = 1
    done = world.run()
    assert (done.submitted, world.states()) == (0, {"planned": 3})
    assert any("no jobs can be claimed for workers" in problem for problem in done.problems)
    first = dict(served(world).given)
    done = world.run()
    assert (done.planned, done.submitted) == (0, 2)
    assert served(world).given == first
    assert sorted(world.system.marks()) == sorted(first)


def test_while_the_server_cannot_be_asked_nothing_is_submitted(world: World) -> None:
    served(world).away = True
    for _ in range(3):
        assert world.run().submitted == 0
    world.start()
    assert world.run().submitted == 0
    assert world.states() == {"planned": 3}
    served(world).away = False
    assert world.run().submitted == 2


@pytest.mark.parametrize("method", ["set_shapes", "mark_reported", "apply"])
def test_a_harvester_that_dies_amid_its_notes_asks_again_and_submits_each_once(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Store, method)

    def fail(self: Store, found: object) -> object:
        if served(world).given:
            raise Unwritable("the disk is full")
        return real(self, found)

    with monkeypatch.context() as patched:
        patched.setattr(Store, method, fail)
        world.run()
    assert len(world.system.marks()) in (0, 2)
    world.start()
    world.run()
    world.run()
    assert sorted(world.system.marks()) == sorted(served(world).given)
    assert [one.shape for one in world.store.live([WorkerState.SUBMITTED])] == [NARROW, NARROW]


def test_a_worker_that_never_reached_the_batch_system_keeps_its_jobs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        raise BackendError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(world.backend, "submit", never)
        world.run()
    assert world.states() == {"submitting": 2, "cancelled": 1}
    given = dict(served(world).given)
    for _ in range(20):
        world.run()
    assert served(world).given == given
    assert sorted(world.system.marks()) == sorted(given)


def test_workers_are_asked_for_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "WORKERS_PER_CALL", 2)
    served(world).jobs = 3
    assert world.run().submitted == 3


def test_what_the_server_refuses_is_withdrawn_and_what_it_does_not_push_goes_as_it_is() -> None:
    planned = [
        Worker(mark=mark, queue="q", state=WorkerState.PLANNED, shape=SHAPE, created=0, updated=0)
        for mark in ("pulls", "foreign")
    ]
    answers = {
        "pulls": WorkerJobs("pulls", True, pull=True, shape=SHAPE),
        "foreign": WorkerJobs("foreign", False, "this worker belongs to harvester 'h2'"),
    }
    found = push.sort_out(planned, answers)
    assert [one.mark for one in found.ready] == ["pulls"]
    assert found.shapes == {}
    assert found.unwanted == {"foreign": "the server claims no jobs for it: this worker belongs to harvester 'h2'"}


def test_the_worked_configuration_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/push-queues.md").read_text(encoding="utf-8")
    toml = page.partition("```toml\n")[2].partition("```")[0]
    section = msgspec.convert(tomllib.loads(toml)["harvester"], HarvesterSection)
    assert resolve(section).queues["HPC"].max_workers == 4
    words = shlex.split(page.partition("```sh\n")[2].partition("```")[0])
    assert words[:4] == ["pilotage", "admin", "queue", "set"]
    with set_queue.make_context("set", words[4:]) as context:
        assert (context.params["name"], context.params["mode"]) == ("HPC", "push")
