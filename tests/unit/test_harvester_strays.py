"""Workers that nobody remembers: found where a batch system lists its workers, ended only on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clock import FrozenClock
from common.states import WorkerState
from common.wire import Shape
from harvester.backends.base import Listing, WorkerRef
from harvester.backends.fake import FakeBackend
from harvester.config import QueueConfig
from harvester.credentials.keeper import Keeper
from harvester.service import Parts, make_backends
from harvester.strays import find, remove
from tests.contract.backends import FakeRig, LocalRig, Rig
from tests.harvester_world import QUEUE, FakeServer, config, make_cycle


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    clock = FrozenClock()
    journal = QueueConfig(backend="fake", options={"journal": str(tmp_path / "journal"), "start_delay_s": 0.0})
    settings = config(tmp_path, journal)
    state_dir = Path(settings.state_dir)
    backends = make_backends(settings, state_dir, clock)
    server = FakeServer(tmp_path)
    cycle, store = make_cycle(settings, backends[QUEUE], server, clock)
    keeper = Keeper({}, state_dir, clock)
    yield Parts(settings, state_dir, store, server, cycle, clock, backends, keeper)  # type: ignore[arg-type]
    store.close()


def test_a_worker_that_is_written_down_is_nobodys_stray(parts: Parts) -> None:
    backend = parts.backends[QUEUE]
    assert isinstance(backend, FakeBackend)
    backend.system.take("known-worker")
    backend.system.take("stray-worker")
    parts.store.plan([("known-worker", QUEUE, Shape())])
    found = find(parts)
    assert [(queue, ref.mark) for _, queue, ref in found.workers] == [(QUEUE, "stray-worker")]
    assert remove(found) == []
    assert find(parts).workers == []
    assert backend.status([WorkerRef("known-worker", "1")])["known-worker"].state is WorkerState.RUNNING


def test_a_batch_system_that_is_down_is_told(parts: Parts) -> None:
    backend = parts.backends[QUEUE]
    assert isinstance(backend, FakeBackend)
    backend.system.down = True
    assert find(parts).problems == [f"queue {QUEUE}: the batch system does not answer"]


@pytest.mark.parametrize("kind", ["fake", "local"])
def test_a_backend_lists_the_workers_that_live(kind: str, tmp_path: Path) -> None:
    rig: Rig = FakeRig(tmp_path) if kind == "fake" else LocalRig(tmp_path)
    try:
        assert isinstance(rig.backend, Listing)
        assert rig.backend.list_workers() == []
        stay, good = rig.submit(rig.spec("stay"), rig.spec("good"))
        if kind == "local":
            # Another harvester sees a worker once its wrapper has said that it is there.
            rig.until(stay, WorkerState.RUNNING)
            rig.until(good, WorkerState.FINISHED, WorkerState.FAILED)
        listed = rig.restarted().list_workers()  # type: ignore[attr-defined]
        assert stay in listed
        assert kind == "fake" or good not in listed
    finally:
        if isinstance(rig, LocalRig):
            rig.close()
