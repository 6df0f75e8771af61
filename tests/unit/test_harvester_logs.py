"""The output of ended workers: tried a bounded number of times, compressed, told to the server, removed in time."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common.clock import FrozenClock
from common.states import WorkerState
from harvester import logs as logs_module
from harvester.backends.base import BackendError, WorkerRef
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.config import LogsConfig
from harvester.logs import FIRST_PAUSE_S, TAIL_BYTES, tail_of
from harvester.outcome import Outcome
from tests.harvester_world import QUEUE, FakeServer, config, make_cycle

SECRET = "pls_" + "s" * 20


class Keeping(FakeBackend):
    """A fake batch system that has the output of its workers."""

    failing = 0
    down = False
    asked = 0

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        self.asked += 1
        if self.down:
            raise BackendError("no answer")
        if self.failing:
            self.failing -= 1
            return {ref.mark: "the node is gone" for ref in folders}
        for folder in folders.values():
            (folder / "stdout").write_text("hello\n" * 10)
            (folder / "stderr").write_text(f"no pilot: {SECRET}\n\x1b[31mred\x00\n")
            (folder / "batch.log").write_text("x")
            (folder / "link").symlink_to("/etc/passwd")
        return {}


class World:
    def __init__(self, folder: Path, failure_rate: float = 1.0, **settings: object) -> None:
        self.clock = FrozenClock()
        self.server = FakeServer(folder, 1)
        options = FakeOptions(start_delay_s=1, run_s=2, failure_rate=failure_rate)
        self.backend = Keeping(FakeBatchSystem(options, self.clock))
        self.config = config(folder, logs=LogsConfig(url="https://x.example.org/l", **settings))  # type: ignore[arg-type]
        self.cycle, self.store = make_cycle(self.config, self.backend, self.server, self.clock)
        self.folder = Path(self.config.state_dir) / "logs"

    def run(self, advance: float) -> Outcome:
        self.clock.advance(advance)
        return self.cycle.run(threading.Event())

    def end_one(self) -> str:
        self.run(0)
        self.server.pilots = 0
        self.run(2)
        self.run(10)
        (worker,) = self.store.ended(10)
        return worker.mark


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_the_output_of_a_failed_worker_is_home_and_told_once(world: World) -> None:
    mark = world.end_one()
    told = [report for report in world.server.reports() if report.log_url]
    assert [(one.mark, one.state) for one in told] == [(mark, WorkerState.FAILED)]
    (place,) = world.folder.glob("*/*/*")
    assert told[0].log_url == f"https://x.example.org/l/{place.relative_to(world.folder)}/"
    assert told[0].log_tail.startswith("stderr:\nno pilot: ***\n [31mred")
    assert SECRET not in told[0].log_tail and "\x00" not in told[0].log_tail
    assert sorted(path.name for path in place.iterdir()) == ["batch.log.gz", "stderr.gz", "stdout.gz"]
    assert gzip.decompress((place / "stdout.gz").read_bytes()) == b"hello\n" * 10
    asked = world.backend.asked
    world.run(1000)
    assert world.backend.asked == asked
    assert len([report for report in world.server.reports() if report.log_url]) == 1


def test_a_worker_that_ended_well_has_no_tail(tmp_path: Path) -> None:
    world = World(tmp_path, failure_rate=0.0)
    world.end_one()
    (told,) = [report for report in world.server.reports() if report.log_url]
    assert (told.state, told.log_tail) == (WorkerState.FINISHED, "")
    world.store.close()


def test_where_it_is_waits_until_the_server_is_back(world: World) -> None:
    world.run(0)
    world.run(2)
    world.server.down = True
    world.run(10)
    assert list(world.folder.glob("*/*/*"))
    world.server.down = False
    world.server.pilots = 0
    world.run(1)
    world.run(1)
    assert len([report for report in world.server.reports() if report.log_url]) == 1


def test_output_that_cannot_be_had_is_tried_a_bounded_number_of_times(world: World) -> None:
    world.backend.failing = 1000
    world.end_one()
    world.run(FIRST_PAUSE_S - 1)
    assert world.backend.asked == 1, "not again at once"
    world.run(1)
    assert world.backend.asked == 2
    world.run(FIRST_PAUSE_S)
    assert world.backend.asked == 2, "the pauses grow"
    for _ in range(100):
        world.run(60)
    assert world.backend.asked == LogsConfig().tries
    assert list(world.folder.glob("*/*/*")) == []
    assert not any(report.log_url for report in world.server.reports())


def test_a_batch_system_that_is_down_costs_a_try_and_is_told(world: World) -> None:
    world.backend.down = True
    world.end_one()
    done = world.run(60)
    assert any("output of workers can't be fetched: no answer" in problem for problem in done.problems)
    world.backend.down = False
    world.run(3600)
    assert len([report for report in world.server.reports() if report.log_url]) == 1


def test_keep_false_leaves_everything_where_it_is(tmp_path: Path) -> None:
    world = World(tmp_path, keep=False)
    world.end_one()
    assert world.backend.asked == 0
    world.store.close()


def test_what_is_too_old_or_too_much_goes_the_oldest_first(tmp_path: Path) -> None:
    world = World(tmp_path, keep_days=3.0, max_gb=0.000_25)  # 250 kB
    for number, day in enumerate(("2023-11-01", "2023-11-13", "2023-11-14")):
        for mark in ("a", "b"):
            place = world.folder / QUEUE / day / mark
            place.mkdir(parents=True)
            (place / "stdout.gz").write_bytes(b"x" * 100_000)
            os.utime(place, (number * 10 + (mark == "b"),) * 2)
    world.cycle.lanes[0]._logs.rotate()  # the frozen clock says 2023-11-14
    left = sorted(str(path.relative_to(world.folder / QUEUE)) for path in world.folder.glob("*/*/*"))
    assert left == ["2023-11-14/a", "2023-11-14/b"]
    world.store.close()


def test_a_huge_file_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "MOST_BYTES", 20)
    monkeypatch.setattr(logs_module, "_BLOCK", 5)
    path = tmp_path / "stdout"
    path.write_bytes(b"beginning." + b"-" * 1000 + b".the end..")
    logs_module._compress(path)
    kept = gzip.decompress((tmp_path / "stdout.gz").read_bytes())
    assert kept == b"beginning.\n... 1000 bytes are left out here ...\n.the end.."


def test_a_tail_is_bounded_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("é" * 100_000)
    (tmp_path / "stdout").write_text("last words")
    assert len(tail_of(tmp_path)) <= TAIL_BYTES
    (tmp_path / "stderr").unlink()
    (tmp_path / "stderr").symlink_to("/etc/passwd")
    assert tail_of(tmp_path) == "stdout:\nlast words"


def test_a_secret_that_begins_before_the_tail_does_is_masked(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("pls_" + "s" * 40 + "x" * (TAIL_BYTES - 60))
    assert "ssss" not in tail_of(tmp_path)
