"""The rules of probe jobs: places and when they are probed, what is tried, and what a report changes."""

from __future__ import annotations

import pytest

from common.states import FINAL_TASK_STATES, ResourceState, TaskState
from common.wire import (
    Activity,
    Downtime,
    Endpoint,
    KnownFile,
    ProbeFinding,
    ProbeLevel,
    ProbeOperation,
    ProbeOutcome,
    ProbeState,
    QueueSpec,
    SingleInput,
    SiteSpec,
    StageSpec,
    StorageProbe,
    StorageSpec,
)
from server.engine.probes import (
    ATTEMPTS,
    FIRST_AFTER_S,
    Known,
    Place,
    Run,
    environment_ok,
    environment_words,
    first_due,
    is_own_work,
    order_of,
    places_of,
    stopped,
    targets,
    used_files,
    verdicts,
    workflow_of,
)
from server.engine.world import NEVER, World

NOW = 1e9
OK = ProbeOutcome(True)
BAD = ProbeOutcome(False, 1152, "no")
READ, WRITE = ProbeOperation.READ, ProbeOperation.WRITE


def queue(name: str, site: str = "S", **more: object) -> QueueSpec:
    return QueueSpec(name=name, site=site, **more)  # type: ignore[arg-type]


def storage(name: str, site: str = "S", url: str = "", **more: object) -> StorageSpec:
    return StorageSpec(name=name, site=site, endpoints=[Endpoint(url or f"root://{name}//d")], **more)  # type: ignore[arg-type]


def world(*things: QueueSpec | StorageSpec, sites: dict[str, SiteSpec] | None = None) -> World:
    return World(
        sites or {"S": SiteSpec("S"), "T": SiteSpec("T")},
        {each.name: each for each in things if isinstance(each, QueueSpec)},
        {each.name: each for each in things if isinstance(each, StorageSpec)},
    )


@pytest.mark.parametrize(
    ("status", "probed"), [(status, status in (ResourceState.ONLINE, ResourceState.TEST)) for status in ResourceState]
)
def test_places_are_those_with_a_queue_that_takes_probes(status: ResourceState, probed: bool) -> None:
    assert places_of(world(queue("q", status=status)), NOW) == ({Place("S")} if probed else set())
    closed = world(queue("q"), sites={"S": SiteSpec("S", status=status)})
    assert places_of(closed, NOW) == ({Place("S")} if probed else set())


def test_slots_with_gpus_are_a_place_of_their_own() -> None:
    found = places_of(world(queue("a"), queue("b", gpus=1), queue("c", "T"), queue("d", "nowhere")), NOW)
    assert found == {Place("S"), Place("S", True), Place("T")}
    assert Place("S", True).label == "S.gpu"


def test_a_downtime_takes_the_place_away_while_it_lasts() -> None:
    down = queue("q", downtimes=[Downtime(NOW, NOW + 10)])
    assert places_of(world(down), NOW - 1) == {Place("S")}
    assert places_of(world(down), NOW + 1) == set()
    assert places_of(world(down), NOW + 10) == {Place("S")}


def test_first_probes_are_spread_over_the_interval() -> None:
    dues = [first_due(Place(f"site-{n}"), 21600.0, NOW) - NOW for n in range(200)]
    assert min(dues) >= FIRST_AFTER_S and max(dues) <= 21600
    assert max(dues) - min(dues) > 20000
    assert first_due(Place("S"), 21600.0, NOW) == first_due(Place("S"), 21600.0, NOW)
    assert first_due(Place("S"), 60.0, NOW) == NOW + 60


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (Run(Place("S"), ProbeState.NEVER, NOW - 1), ""),
        (Run(Place("S"), ProbeState.DONE, NOW - 1, 0, 1, TaskState.DONE), ""),
        (Run(Place("S"), ProbeState.ASKED, NOW + 1, 0, 1, TaskState.READY), ""),
        (Run(Place("S"), ProbeState.ASKED, NOW, 0, 1, TaskState.RUNNING), "within the interval"),
        (Run(Place("S"), ProbeState.ASKED, NOW + 1, 0, 1, TaskState.FAILED), "its task is failed"),
        (Run(Place("S"), ProbeState.ASKED, NOW + 1, 0, 1, TaskState.DONE), "no report came"),
        (Run(Place("S"), ProbeState.ASKED, NOW + 1, 0, 1, None), "was deleted"),
    ],
)
def test_why_a_probe_counts_as_not_run(run: Run, words: str) -> None:
    reason = stopped(run, NOW, FINAL_TASK_STATES)
    assert (words in reason) if words else not reason


def test_only_what_has_no_payload_is_the_pilots_own_work() -> None:
    stage = workflow_of(Place("S"), 600.0).stages[0]
    assert is_own_work(stage)
    assert (stage.sites, stage.max_attempts, stage.requirements.gpus) == (["S"], ATTEMPTS, None)
    assert workflow_of(Place("S", True), 600.0).stages[0].requirements.gpus is not None
    one = SingleInput()
    assert not is_own_work(StageSpec(name="x", input=one, probe=True, command=["true"]))
    assert not is_own_work(StageSpec(name="x", input=one, probe=True, jobscript="#!/bin/sh"))
    assert not is_own_work(StageSpec(name="x", input=one))


def test_what_is_tried_of_each_storage() -> None:
    reading = StorageSpec(
        name="reading",
        site="T",
        endpoints=[Endpoint("root://r//d", [Activity.READ_WAN])],
        probe_file=KnownFile(path="known", size=3, checksum="adler32:00000001"),
    )
    there = world(
        reading,
        storage("near"),
        storage("test", status=ResourceState.TEST),
        storage("paused", status=ResourceState.PAUSED),
        storage("off", status=ResourceState.OFFLINE),
        storage("tape", tape=True),
        storage("away"),
        sites={"S": SiteSpec("S", distances={"away": NEVER}), "T": SiteSpec("T")},
    )
    found = {each.storage: each for each in targets(there, Place("S"), 7, [5])}
    assert sorted(found) == ["near", "reading", "test"]
    first = {targets(there, Place("S"), number, [])[0].storage for number in range(3)}
    assert first == found.keys()  # each has its turn to be the first
    near, other = found["near"], found["reading"]
    assert near.write == near.read == ["root://near//d/pilotage-probes/S/near-7"]
    assert near.leftovers == ["root://near//d/pilotage-probes/S/near-5"]
    assert (other.write, other.read, other.leftovers) == ([], [], [])
    assert other.test is not None and other.test.urls == ["root://r//d/known"]
    assert other.read_activity is Activity.READ_WAN
    order = order_of(there, Place("S", True), 7, [5], (10.0, 20.0), ["a.ch"])
    assert (order.gpus, order.storage_s, order.total_s, order.cvmfs) == (1, 10.0, 20.0, ["a.ch"])
    assert {url for each in order.storages for url in each.write} >= {"root://near//d/pilotage-probes/S.gpu/near-7"}


def test_places_never_share_a_folder() -> None:
    """Who may write in the one may write all of it."""
    there = world(storage("near"))
    folders = {used_files(there, place, 7)[1][0].path.rpartition("/")[0] for place in (Place("S"), Place("S", True))}
    assert len(folders) == 2


def test_only_changes_are_told() -> None:
    there = world(storage("a"), storage("b"), storage("c"), storage("d"))
    known = {
        ("a", READ): Known(True, 1.0),
        ("b", READ): Known(True, 1.0),
        ("c", READ): Known(False, NOW - 50),
        ("d", READ): Known(False, 2.0),
        ("d", WRITE): Known(True, 3.0),
    }
    report = [
        StorageProbe(storage="a", read=OK, write=OK),
        StorageProbe(storage="b", read=BAD, write=BAD),
        StorageProbe(storage="c", read=OK),
        StorageProbe(storage="d", read=BAD),
        StorageProbe(storage="gone", read=BAD),
    ]
    found = {(each.storage, each.operation): each for each in verdicts(known, report, there, NOW)}
    assert {key: (each.changed, each.since) for key, each in found.items()} == {
        ("a", READ): (False, 1.0),
        ("a", WRITE): (False, NOW),  # nothing was known, and it works
        ("b", READ): (True, NOW),
        ("b", WRITE): (True, NOW),  # nothing was known, and it does not
        ("c", READ): (True, NOW),
        ("d", READ): (False, 2.0),
    }
    assert found["c", READ].failed_s == 50
    assert found["b", READ].failed_s == 0


def test_a_storage_that_is_told_twice_counts_once() -> None:
    report = [StorageProbe(storage="a", read=BAD), StorageProbe(storage="a", read=OK)]
    assert [each.outcome.ok for each in verdicts({}, report, world(storage("a")), NOW)] == [True]


def test_the_software_fails_with_an_error_and_not_with_a_warning() -> None:
    fine = [ProbeFinding("a", ProbeLevel.OK), ProbeFinding("b", ProbeLevel.WARNING, "meagre")]
    assert environment_ok(fine) and not environment_ok([])
    broken = [*fine, ProbeFinding("cvmfs x", ProbeLevel.ERROR, "is empty")]
    assert not environment_ok(broken)
    assert environment_words(broken) == "cvmfs x: is empty"


def test_what_is_barred_is_never_near_and_takes_nothing() -> None:
    there = world(storage("a"), storage("b"), queue("q"))
    barred = there.without(frozenset({("S", "a", False), ("S", "b", True)}))
    assert barred.without(barred.barred) is barred
    assert (barred.nearest("S", ["a"]), barred.nearest("S", ["b"])) == (NEVER, 0)
    assert barred.nearest("T", ["a"]) == there.nearest("T", ["a"])
    assert barred.reach("S")["a"] == NEVER and barred.reach("S")["@S"] == 0
    assert barred.reading("a", "S") == (NEVER, []) and barred.reading("b", "S")[1]
    assert (barred.takes("a", "S"), barred.takes("b", "S"), barred.takes("b", "T")) == (True, False, True)
