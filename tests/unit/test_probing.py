"""What a probe job does: it writes, reads back, compares and removes; what is broken costs the rest nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from common.wire import (
    Gpu,
    KnownReplica,
    NodeChecks,
    ProbeLevel,
    ProbeOrder,
    ProbeReport,
    ProbeTarget,
    Queue,
    StorageProbe,
)
from pilot.config import PilotConfig
from pilot.container.host import Finding, Level
from pilot.copytool import Copytool, TransferRequest, load_copytool
from pilot.copytool.base import Transferred
from pilot.probe import SlotProbe
from pilot.probing import Ground, Probing
from tests.unit.test_transfers import Credentials


@pytest.fixture(autouse=True)
def no_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apptainer has tests of its own."""
    monkeypatch.setattr("pilot.doctor.check_host", lambda *_a, **_k: [Finding("apptainer", Level.OK, "here")])


class Hanging(Copytool):
    """Nothing ever comes back; ``deaf`` does not even hear that it is to give up."""

    name = "hanging"
    schemes = frozenset({"hang", "deaf"})
    release = threading.Event()

    def exists(self, url: str) -> bool:
        raise NotImplementedError

    def _hang(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        waiting = self.release if request.url.startswith("deaf") else cancel
        waiting.wait(30)
        raise PilotageError(ErrorCode.STAGE_OUT_FAILED, "cancelled")

    _fetch = _store = _hang

    def _delete(self, url: str, cancel: threading.Event) -> None:
        raise PilotageError(ErrorCode.STAGE_OUT_FAILED, "cancelled")


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    tool = Hanging()
    tool.release.clear()
    yield tool
    tool.release.set()


class World:
    """A node, and folders that are storages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.tools: list[Copytool] = [load_copytool("file")]
        self.credentials = Credentials()
        self.queue = Queue(name="q", site="s")
        (folder / "job").mkdir()

    def storage(self, name: str, *, leftovers: int = 0, **more: Any) -> ProbeTarget:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        url = f"file://{place}/pilotage-probes/s/probe-7"
        left = [f"file://{place}/pilotage-probes/s/probe-{n}" for n in range(leftovers)]
        return ProbeTarget(**{"storage": name, "write": [url], "read": [url], "leftovers": left, **more})

    def known(self, name: str, content: bytes = b"known") -> KnownReplica:
        path = self.folder / name
        path.write_bytes(content)
        return KnownReplica([f"file://{path}"], len(content), str(file_checksum(path)))

    def probing(self, *targets: ProbeTarget, **more: Any) -> Probing:
        order = ProbeOrder(storages=[*targets], **{"storage_s": 60.0, "total_s": 120.0, **more})
        config = PilotConfig(work_dir=str(self.folder / "job"))
        ground = Ground(
            config, "", self.queue, {"PATH": "/usr/bin:/bin"}, self.folder / "job", 7, self.tools, {}, self.credentials
        )
        return Probing(order, ground, self.notes.append)

    def probe(self, *targets: ProbeTarget, **more: Any) -> dict[str, StorageProbe]:
        return {each.storage: each for each in self.probing(*targets, **more).run().storages}

    def files(self) -> list[Path]:
        return [path for path in self.folder.glob("[a-z]*/pilotage-probes/**/*") if path.is_file()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_storage_that_works_is_written_read_and_left_clean(world: World) -> None:
    target = world.storage("disk", leftovers=2)
    for url in target.leftovers:
        path = Path(url.removeprefix("file://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left by a probe that was killed")
    found = world.probe(target)["disk"]
    assert found.write is not None and found.write.ok, found
    assert found.read is not None and found.read.ok
    assert found.write.mb_s > 0 and found.read.mb_s > 0
    assert world.files() == []
    assert world.credentials.told == [("writes", [*target.write, *target.read, *target.leftovers])]


def test_one_broken_storage_costs_the_others_nothing(world: World) -> None:
    broken = world.storage("broken")
    (world.folder / "broken" / "pilotage-probes").write_text("a file where a folder is wanted")
    found = world.probe(broken, *(world.storage(f"disk{n}") for n in range(6)))
    assert found["broken"].write is not None and not found["broken"].write.ok
    assert found["broken"].write.error_code is not None and found["broken"].write.error_detail
    good = [each for name, each in found.items() if name != "broken"]
    assert len(good) == 6
    assert all(each.read and each.read.ok and each.write and each.write.ok for each in good)
    assert any("broken: write failed" in each for each in world.notes)


def test_what_could_not_be_written_says_nothing_of_reading(world: World) -> None:
    target = world.storage("disk")
    folder = world.folder / "disk" / "pilotage-probes" / "s"
    folder.mkdir(parents=True)
    (folder / "probe-7").write_text("somebody else's")  # never overwritten
    found = world.probe(target)["disk"]
    assert found.write is not None and found.write.error_code == int(ErrorCode.FILE_EXISTS)


def test_a_read_only_storage_is_read_by_its_own_file(world: World) -> None:
    known = world.known("known")
    target = world.storage("disk", write=[], read=[], test=known)
    found = world.probe(target)["disk"]
    assert found.write is None
    assert found.read is not None and found.read.ok
    assert ("reads", known.urls) in world.credentials.told


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_known_file_that_is_not_as_it_should_be_fails_reading(world: World, damage: str) -> None:
    known = world.known("known")
    path = Path(known.urls[0].removeprefix("file://"))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"other")
    found = world.probe(world.storage("disk", test=known))["disk"]
    assert found.write is not None and found.write.ok
    assert found.read is not None and not found.read.ok
    expected = ErrorCode.NO_SUCH_FILE if damage == "missing" else ErrorCode.GET_ADLER32_MISMATCH
    assert found.read.error_code == int(expected)


def test_what_can_be_written_and_not_removed_is_a_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: object, url: str, _cancel: threading.Event) -> None:
        raise PilotageError(ErrorCode.STAGE_OUT_AUTHENTICATION, f"{url}: no")

    monkeypatch.setattr(type(world.tools[0]), "_delete", refuse)
    found = world.probe(world.storage("disk"))["disk"]
    assert found.write is not None and not found.write.ok
    assert "it cannot be removed" in found.write.error_detail


@pytest.mark.parametrize("scheme", ["hang", "deaf"])
def test_a_storage_that_hangs_has_its_time_and_no_more(
    world: World, hanging: Hanging, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.probing.GRACE_S", 0.3)
    world.tools.append(hanging)
    url = f"{scheme}://there/file"
    stuck = ProbeTarget(storage="stuck", write=[url], read=[url])
    began = time.monotonic()
    found = world.probe(stuck, world.storage("disk"), storage_s=3.0)
    assert time.monotonic() - began < 25.0
    assert found["stuck"].write is not None
    assert found["stuck"].write.error_code == int(ErrorCode.STAGE_OUT_TIMEOUT)
    assert found["disk"].read is not None and found["disk"].read.ok


def test_what_there_is_no_time_for_is_not_in_the_report(world: World, hanging: Hanging) -> None:
    world.tools.append(hanging)
    stuck = [ProbeTarget(storage=f"s{n}", write=[f"hang://there/{n}"], read=[]) for n in range(6)]
    found = world.probe(*stuck, storage_s=3.0, total_s=5.0)
    assert found.keys() == {"s0", "s1", "s2", "s3"}
    assert any("there was no time for storage s5" in each for each in world.notes)


def test_a_kill_ends_it_within_seconds(world: World, hanging: Hanging) -> None:
    world.tools.append(hanging)
    probing = world.probing(ProbeTarget(storage="s", write=["hang://there/x"], read=[]), storage_s=30.0)
    done: list[ProbeReport] = []
    thread = threading.Thread(target=lambda: done.append(probing.run()))
    thread.start()
    probing.kill()
    thread.join(120)
    assert not thread.is_alive() and done


def test_the_node_is_looked_at_as_its_queue_wants(world: World) -> None:
    world.queue = Queue(name="q", site="s", node_checks=NodeChecks(cvmfs=["none.such.repository"]))
    report = world.probing(cvmfs=["nor.this.one"]).run()
    looks = {each.name: each for each in report.environment}
    assert looks["scratch"].level is not ProbeLevel.ERROR, "a slow disk is no broken one"
    assert looks["cvmfs none.such.repository"].level is ProbeLevel.ERROR
    assert looks["cvmfs nor.this.one"].remedy
    assert "python" in looks


def test_gpus_that_should_be_there_are_looked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def slot(cards: list[Gpu]) -> Any:
        return lambda *_a, **_k: SlotProbe(1, 1000, 1000, gpus=cards)

    monkeypatch.setattr("pilot.doctor.probe_slot", slot([]))
    looks = {each.name: each for each in world.probing(gpus=1).run().environment}
    assert looks["gpus"].level is ProbeLevel.ERROR and "1 wanted" in looks["gpus"].detail
    monkeypatch.setattr("pilot.doctor.probe_slot", slot([Gpu("NVIDIA", "H200", 140_000)]))
    looks = {each.name: each for each in world.probing(gpus=1).run().environment}
    assert looks["gpus"].level is ProbeLevel.OK and "H200" in looks["gpus"].detail
