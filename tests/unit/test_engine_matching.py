"""Which buckets a slot may claim from, in which order, and the first filter that said no of each other one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import CLAIMABLE_TASK_STATES, ResourceState, TaskState
from common.wire import (
    Downtime,
    Endpoint,
    ForeignTerms,
    Gpu,
    GpuRequest,
    Offer,
    QueueSpec,
    RemoteIo,
    Requirements,
    Shape,
    SingleInput,
    SiteSpec,
    StageSpec,
    StorageSpec,
)
from server.engine.access import Bans
from server.engine.matching import (
    FILTER_NAMES,
    Candidate,
    Cut,
    Moment,
    SiteFaults,
    Slot,
    Traits,
    effective_offer,
    gpu_fits,
    match,
    missing_tags,
    rank,
    slot_refusal,
)
from server.engine.scouts import Scouting
from server.engine.world import World

NOW = 1000.0


@dataclass(frozen=True)
class Situation:
    """A slot and a bucket that suit each other: the bucket's one replica is at distance 50."""

    queue: ResourceState = ResourceState.ONLINE
    site: ResourceState = ResourceState.ONLINE
    storage: ResourceState = ResourceState.ONLINE
    task: TaskState = TaskState.RUNNING
    tags: tuple[str, ...] = ("el9", "apptainer")
    wanted_tags: tuple[str, ...] = ("el9",)
    container: bool = False
    cores: int = 1
    memory_mb: int = 1000
    disk_mb: int = 500
    wall_s: int = 3600
    gpus: GpuRequest | None = None
    ready_units: int = 10
    min_units: int = 1
    max_distance: int = 100
    far_after_s: float = 0.0
    outputs: tuple[str | None, ...] = ()
    faults: tuple[str, float] = ("HERE", 0.0)
    trusted: bool = True
    host: str = "node1"
    owner: str = "ann"
    sites: tuple[str, ...] = ()
    scouts: int | None = None
    downtime: tuple[float, float] | None = None
    remote_io: RemoteIo = RemoteIo.ALLOWED
    queue_remote_io: bool = False
    reserved: bool = False
    probe: bool = False
    foreign: ForeignTerms | None = None
    secrets: tuple[str, ...] = ()

    def world(self) -> World:
        return World(
            sites={"HERE": SiteSpec("HERE", self.site, {"SE": 50})},
            storages={
                "SE": StorageSpec(name="SE", site="THERE", status=self.storage, endpoints=[Endpoint("root://h//d")])
            },
        )

    def slot(self) -> Slot:
        gpu = Gpu("NVIDIA", "Tesla T4", 16_000)
        offer = Offer(
            cores=8,
            memory_mb=16_000,
            disk_mb=10_000,
            wall_s=7200,
            gpus=[gpu, gpu],
            tags=list(self.tags),
            foreign=self.foreign,
        )
        times = [] if self.downtime is None else [Downtime(*(NOW + each for each in self.downtime), reason="works")]
        queue = QueueSpec(
            name="Q",
            site="HERE",
            status=self.queue,
            trusted=self.trusted,
            downtimes=times,
            remote_io=self.queue_remote_io,
        )
        slot = Slot(queue, offer, self.host).before_downtime(self.world(), NOW)
        return slot.cut_to(7200, Cut("reserved", "cores are kept", strictly=True)) if self.reserved else slot

    def moment(self) -> Moment:
        return Moment(
            self.world(),
            NOW,
            {1: {self.faults[0]: SiteFaults(3, NOW + self.faults[1])}},
            {("Q", "node13"): "it failed jobs fast"},
            Bans(users=frozenset({"eve"})),
        )

    def candidate(self) -> Candidate:
        needs = Requirements(
            cores=self.cores,
            memory_mb=self.memory_mb,
            disk_mb=self.disk_mb,
            wall_s=self.wall_s,
            gpus=self.gpus,
            tags=list(self.wanted_tags),
        )
        return candidate(
            task_state=self.task,
            locations=("SE",),
            requirements=needs,
            ready_units=self.ready_units,
            min_units=self.min_units,
            max_distance=self.max_distance,
            far_after_s=self.far_after_s,
            ready_since=NOW - 60,
            needs_container=self.container,
            output_storages=self.outputs,
            owner=self.owner,
            sites=frozenset(self.sites),
            scouting=None if self.scouts is None else Scouting(self.scouts),
            spec=StageSpec(
                name="s", input=SingleInput(), remote_io=self.remote_io, probe=self.probe, secrets=list(self.secrets)
            ),
        )

    def refusal(self) -> tuple[str, str] | None:
        matches, refusals = match([self.candidate()], self.slot(), self.moment(), {})
        assert len(matches) + len(refusals) == 1
        if matches:
            return None
        assert (refusals[0].task_id, refusals[0].bucket_id) == (7, 1)
        return refusals[0].filter, refusals[0].detail


BUCKET = {"locations", "ready_since", "ready_units", "unit_mb", "memory_mb", "wall_s"}


def candidate(bucket_id: int = 1, **given: Any) -> Candidate:
    bucket = {"locations": (), "ready_units": 10} | {name: given.pop(name) for name in BUCKET & set(given)}
    plain: dict[str, Any] = {
        "task_id": 7,
        "state": given.pop("task_state", TaskState.RUNNING),
        "requirements": Requirements(),
        "share": "default",
        "priority": 0,
        "created": 0.0,
    }
    return Candidate(bucket_id=bucket_id, traits=Traits(**{**plain, **given}), **bucket)


# How to make each filter refuse, and what it says then.
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "queue": ({"queue": ResourceState.PAUSED}, "queue Q is paused"),
    "site": ({"site": ResourceState.DRAINING}, "site HERE is draining"),
    "downtime": ({"downtime": (-60.0, 600.0)}, "queue Q is in a downtime for 600 s more: works"),
    "host": ({"host": "node13"}, "host node13 gets nothing: it failed jobs fast"),
    "trusted": ({"trusted": False}, "the task names no image, and queue Q is not trusted to run payloads without one"),
    "task": ({"task": TaskState.PAUSED}, "task 7 is paused"),
    "owner": ({"owner": "eve"}, "eve is banned"),
    "sites": ({"sites": ("THERE",)}, "the task excludes site HERE"),
    "tags": ({"wanted_tags": ("el9", "zstd", "avx2")}, "the slot lacks avx2, zstd"),
    "container": (
        {"container": True, "tags": ("el9",)},
        "the task names an image and the slot has no Apptainer",
    ),
    "remote_io": (
        {"remote_io": RemoteIo.ALWAYS},
        "the task reads its input from the storage, which queue Q does not allow",
    ),
    "foreign_pilot": (
        {"foreign": ForeignTerms(max_core_mb=99), "secrets": ("x",)},
        "the task has secrets, which only our own pilots handle",
    ),
    "cores": ({"cores": 9}, "the job needs 9 cores, the slot has 8"),
    "memory": ({"memory_mb": 16_001}, "the job needs 16001 MB of memory, the slot has 16000"),
    "disk": ({"disk_mb": 10_001}, "the job needs 10001 MB of disk, input included, the slot has 10000"),
    "wall_time": ({"wall_s": 7201}, "the job needs 7201 s of wall time, the slot has 7200"),
    "reserved": ({"reserved": True, "wall_s": 0}, "nobody knows how long the job runs, and cores are kept"),
    "gpus": (
        {"gpus": GpuRequest(count=3, vendor="NVIDIA", model="T4", memory_mb=8000)},
        "the job needs 3 GPUs (NVIDIA T4 with 8000 MB), the slot has 2 such",
    ),
    "resource_type": (
        {"foreign": ForeignTerms(min_core_mb=50, max_core_mb=99)},
        "the job needs 1000 MB of memory a core, the pilot asks for jobs with 50 to 99",
    ),
    "merge": ({"min_units": 11}, "the merge waits for 11 files, 10 are ready"),
    "scouts": ({"scouts": 0}, "its scouts are out: the rest waits until they have measured what it needs"),
    "storage": ({"storage": ResourceState.OFFLINE}, "no storage of SE can be read from HERE now"),
    "distance": ({"max_distance": 49}, "the nearest replica is at distance 50, the task allows 49"),
    "output_storage": ({"outputs": ("GONE",)}, "storage GONE takes no new files from HERE now"),
    "site_faults": (
        {"faults": ("HERE", 8.0)},
        "its jobs failed 3 times in a row by a fault of HERE; again in 8 s",
    ),
    "far_wait": ({"far_after_s": 100.0}, "a slot at distance 50 qualifies in 40 s"),
}


def test_every_filter_is_tried_here_in_its_order() -> None:
    assert tuple(REFUSALS) == FILTER_NAMES


def test_a_slot_that_suits_is_not_refused() -> None:
    assert Situation().refusal() is None


@pytest.mark.parametrize("name", FILTER_NAMES)
def test_a_filter_refuses_in_its_own_words(name: str) -> None:
    changes, words = REFUSALS[name]
    assert Situation(**changes).refusal() == (name, words)


# A task either names an image or does not.
# A job's wall time is known or not.
PAIRS = [
    pair for pair in combinations(FILTER_NAMES, 2) if pair not in (("trusted", "container"), ("wall_time", "reserved"))
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_first_filter_that_says_no_is_the_answer(first: str, second: str) -> None:
    both = {**REFUSALS[second][0], **REFUSALS[first][0]}
    found = Situation(**both).refusal()
    assert found is not None and found[0] == first


@pytest.mark.parametrize(
    "changes",
    [
        {"cores": 8},
        {"memory_mb": 16_000},
        {"disk_mb": 10_000},
        {"wall_s": 7200},
        {"gpus": GpuRequest(count=2)},
        {"min_units": 10},
        {"max_distance": 50},
        {"far_after_s": 60.0},
        {"outputs": ("SE", None)},
        {"faults": ("ELSEWHERE", 8.0)},
        {"container": True},
        {"container": True, "trusted": False},
        {"trusted": False, "tags": ("el9", "payload-users")},
        {"storage": ResourceState.DRAINING},
        {"wall_s": 0},
        {"wanted_tags": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_just_fits_is_not_refused(changes: dict[str, Any]) -> None:
    assert Situation(**changes).refusal() is None


@pytest.mark.parametrize("state", TaskState)
def test_only_a_claimable_task_gives_units(state: TaskState) -> None:
    refusal = Situation(task=state).refusal()
    assert refusal == (None if state in CLAIMABLE_TASK_STATES else ("task", f"task 7 is {state.value}"))


@pytest.mark.parametrize("state", ResourceState)
def test_only_an_online_queue_at_an_online_site_gets_work(state: ResourceState) -> None:
    for kind, name in (("queue", "Q"), ("site", "HERE")):
        here = Situation(**{kind: state})  # type: ignore[arg-type]
        if state == ResourceState.TEST:
            words = (kind, f"{kind} {name} is test: it gets probe jobs only")
            assert (slot_refusal(here.slot(), here.moment()), here.refusal()) == (None, words)
            assert replace(here, probe=True).refusal() is None
            continue
        expected = None if state == ResourceState.ONLINE else (kind, f"{kind} {name} is {state.value}")
        assert slot_refusal(here.slot(), here.moment()) == expected
        assert here.refusal() == expected
        assert replace(here, probe=True).refusal() == expected


def test_a_queue_at_a_site_that_nobody_described_gets_work_without_input() -> None:
    matches, _ = match([candidate()], Situation().slot(), Moment(World(), NOW), {})
    assert [found.distance for found in matches] == [0]


def test_an_offer_of_zero_is_not_known_and_refuses_nothing() -> None:
    slot = Slot(QueueSpec(name="Q", site="HERE", trusted=True), Offer(cores=1))
    needs = Requirements(memory_mb=10**6, disk_mb=10**6, wall_s=10**6)
    matches, refusals = match([candidate(requirements=needs)], slot, Moment(World(), NOW), {})
    assert len(matches) == 1 and refusals == []


@pytest.mark.parametrize(("unit_mb", "names"), [(9500, []), (9501, ["disk"])])
def test_a_slot_must_hold_the_largest_unit_beside_the_scratch(unit_mb: int, names: list[str]) -> None:
    here = Situation()
    _, refusals = match([replace(here.candidate(), unit_mb=unit_mb)], here.slot(), here.moment(), {})
    assert [refusal.filter for refusal in refusals] == names


def test_a_near_slot_never_waits() -> None:
    here = Situation(far_after_s=10**6)
    world = World(storages={"SE": StorageSpec(name="SE", site="HERE", endpoints=[Endpoint("root://h//d")])})
    matches, _ = match([here.candidate()], here.slot(), Moment(world, NOW), {})
    assert [found.distance for found in matches] == [0]


def test_a_storage_at_distance_101_is_never_read_whatever_the_task_allows() -> None:
    here = Situation()
    world = replace(here.world(), sites={"HERE": SiteSpec("HERE", distances={"SE": 101})})
    _, refusals = match([candidate(locations=("SE",), max_distance=101)], here.slot(), Moment(world, NOW), {})
    assert [refusal.filter for refusal in refusals] == ["storage"]


def test_each_bucket_gets_an_answer() -> None:
    candidates = [candidate(1), candidate(2, task_state=TaskState.PAUSED), candidate(3, min_units=99), candidate(4)]
    matches, refusals = match(candidates, Situation().slot(), Moment(World(), NOW), {})
    assert [found.candidate.bucket_id for found in matches] == [1, 4]
    assert [(refusal.bucket_id, refusal.filter) for refusal in refusals] == [(2, "task"), (3, "merge")]


# ---------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (GpuRequest(), True),
        (GpuRequest(vendor="nvidia"), True),
        (GpuRequest(vendor="AMD"), False),
        (GpuRequest(model="a100"), True),
        (GpuRequest(model="A100-SXM4-40GB"), True),
        (GpuRequest(model="H100"), False),
        (GpuRequest(memory_mb=40_000), True),
        (GpuRequest(memory_mb=40_001), False),
    ],
)
def test_a_card_fits_by_vendor_part_of_its_model_and_memory(wanted: GpuRequest, fits: bool) -> None:
    assert gpu_fits(Gpu("NVIDIA", "NVIDIA A100-SXM4-40GB", 40_000), wanted) is fits


def test_only_cards_that_fit_are_counted() -> None:
    here = Situation(gpus=GpuRequest(count=2, memory_mb=20_000))
    offer = Offer(cores=8, gpus=[Gpu("NVIDIA", "T4", 16_000), Gpu("NVIDIA", "A100", 40_000)], tags=["el9"])
    _, refusals = match(
        [here.candidate()], Slot(QueueSpec(name="Q", site="HERE", trusted=True), offer), here.moment(), {}
    )
    assert [(refusal.filter, refusal.detail) for refusal in refusals] == [
        ("gpus", "the job needs 2 GPUs (any with 20000 MB), the slot has 1 such")
    ]


# ---------------------------------------------------------------- order


def order(candidates: list[Candidate], shares: Mapping[str, tuple[float, ...]] | None = None) -> list[int]:
    sites = {"HERE": SiteSpec("HERE", distances={f"D{n}": n for n in range(0, 101, 10)})}
    storages = {
        f"D{n}": StorageSpec(name=f"D{n}", site="X", endpoints=[Endpoint("root://h//d")]) for n in range(0, 101, 10)
    }
    slot = Slot(QueueSpec(name="Q", site="HERE", trusted=True), Offer(cores=8))
    matches, refusals = match(candidates, slot, Moment(World(sites, {}, storages), NOW), shares or {})
    assert refusals == []
    return [found.candidate.bucket_id for found in matches]


@pytest.mark.parametrize(
    ("distance", "priority", "expected"),
    [(0, 0, 100), (100, 0, 0), (0, 100, 101), (30, -500, 65), (100, 10_000, 100), (0, -10_000, 0)],
)
def test_the_rank(distance: int, priority: int, expected: float) -> None:
    assert rank(distance, priority) == pytest.approx(expected)


def test_a_match_says_its_distance_and_rank() -> None:
    matches, _ = match([Situation().candidate()], Situation().slot(), Situation().moment(), {})
    assert [(found.distance, found.rank) for found in matches] == [(50, 50.0)]


def test_nearer_input_comes_first() -> None:
    assert order([candidate(1, locations=("D30",)), candidate(2, locations=("D10",)), candidate(3)]) == [3, 2, 1]


def test_locality_and_priority_trade_at_a_hundred_to_one() -> None:
    near = candidate(1, locations=("D10",))
    assert order([near, candidate(2, locations=("D30",), priority=1999)]) == [1, 2]
    assert order([near, candidate(2, locations=("D30",), priority=2001)]) == [2, 1]


def test_of_equals_the_older_task_comes_first() -> None:
    assert order([candidate(1, created=5.0), candidate(2, created=4.0), candidate(3, created=4.0)]) == [2, 3, 1]


def test_the_share_goes_before_the_rank() -> None:
    candidates = [candidate(1, share="rich", priority=10_000), candidate(2, share="poor", locations=("D100",))]
    assert order(candidates, {"rich": (2.0,), "poor": (0.5,)}) == [2, 1]


def test_nested_shares_are_weighed_where_their_paths_part() -> None:
    shares = {"a": (1.0,), "a.x": (1.0, 9.0), "a.y": (1.0, 2.0), "b": (3.0,), "b.z": (3.0, 0.0)}
    candidates = [candidate(n, share=share) for n, share in enumerate(("b.z", "a.x", "a.y", "b", "a"))]
    assert order(candidates, shares) == [4, 2, 1, 3, 0]


def test_a_share_that_nobody_knows_comes_first() -> None:
    assert order([candidate(1, share="known"), candidate(2, share="new")], {"known": (0.0,)}) == [2, 1]


CANDIDATES = st.lists(
    st.builds(
        lambda n, priority, created, share, location: candidate(
            n, priority=priority, created=created, share=share, locations=(location,)
        ),
        n=st.integers(1, 10**6),
        priority=st.integers(-10_000, 10_000),
        created=st.integers(0, 3).map(float),
        share=st.sampled_from("abc"),
        location=st.sampled_from(["D0", "D20", "D50", "D100"]),
    ),
    max_size=12,
    unique_by=lambda each: each.bucket_id,
)


@settings(deadline=None, max_examples=200)
@given(CANDIDATES, st.randoms())
def test_the_order_is_total_and_does_not_depend_on_the_order_of_asking(
    candidates: list[Candidate], random: Any
) -> None:
    shares = {"a": (1.0,), "b": (1.0,), "c": (0.5,)}
    first = order(candidates, shares)
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert order(shuffled, shares) == first
    keys = []
    by_id = {each.bucket_id: each for each in candidates}
    for each in (by_id[bucket_id] for bucket_id in first):
        # In hundredths, so that the arithmetic here is exact.
        traits = each.traits
        hundredths = 10_000 - 100 * int(each.locations[0][1:]) + traits.priority
        keys.append((shares[traits.share], -hundredths, traits.created, each.bucket_id))
    assert keys == sorted(keys)


# ---------------------------------------------------------------- what a slot may do


LIMITS = st.sampled_from([0, 0, 1, 5, 100])


def least(*values: int) -> int:
    return min((value for value in values if value), default=0)


@settings(deadline=None, max_examples=300)
@given(st.lists(LIMITS, min_size=12, max_size=12), st.integers(1, 9), st.integers(0, 4))
def test_the_effective_offer_is_the_least_of_offer_queue_and_worker(said: list[int], cores: int, cards: int) -> None:
    cards_there = [Gpu("NVIDIA", f"T{n}", 16_000) for n in range(cards)]
    offer = Offer(cores, said[0], said[1], said[2], gpus=cards_there)
    queue = QueueSpec(
        name="Q", site="S", cores=said[3], memory_mb=said[4], disk_mb=said[5], wall_s=said[6], gpus=said[7]
    )
    worker = Shape(said[8], said[9], said[10], said[11], gpus=said[0])
    found = effective_offer(offer, queue, worker)
    assert found.cores == least(cores, said[3], said[8]) >= 1
    assert found.memory_mb == least(said[0], said[4], said[9])
    assert found.disk_mb == least(said[1], said[5], said[10])
    assert found.wall_s == least(said[2], said[6], said[11])
    assert found.gpus == offer.gpus[: least(cards, said[7], said[0]) if cards else 0]
    assert effective_offer(found, queue, worker) == found


def test_a_pilot_that_boasts_gets_what_its_worker_was_recorded_with() -> None:
    boast = Offer(cores=64, memory_mb=10**6, disk_mb=10**6, wall_s=10**6, gpus=[Gpu("NVIDIA", "T4", 1)] * 8)
    worker = Shape(cores=1, memory_mb=2000, disk_mb=3000, wall_s=600, gpus=1)
    found = effective_offer(boast, QueueSpec(name="Q", site="S"), worker)
    assert (found.cores, found.memory_mb, found.disk_mb, found.wall_s, len(found.gpus)) == (1, 2000, 3000, 600, 1)


def test_without_a_worker_the_queue_is_the_limit() -> None:
    found = effective_offer(Offer(cores=64), QueueSpec(name="Q", site="S", cores=8, wall_s=600), None)
    assert (found.cores, found.wall_s, found.memory_mb) == (8, 600, 0)


def test_the_tags_of_slot_and_queue_add_up() -> None:
    offer = Offer(tags=["el9", "x86_64"])
    found = effective_offer(offer, QueueSpec(name="Q", site="S", tags=["el9", "big"]), None)
    assert found.tags == ["big", "el9", "x86_64"]


def test_the_offer_that_came_in_is_left_alone() -> None:
    offer = Offer(cores=4, gpus=[Gpu("NVIDIA", "T4", 1)] * 3, tags=["b", "a"])
    effective_offer(offer, QueueSpec(name="Q", site="S", gpus=1, tags=["c"]), None)
    assert len(offer.gpus) == 3 and offer.tags == ["b", "a"]


CHECKS: dict[str, Callable[[Situation], bool]] = {
    "queue": lambda s: s.queue == ResourceState.ONLINE,
    "task": lambda s: s.task in CLAIMABLE_TASK_STATES,
    "cores": lambda s: s.cores <= 8,
    "memory": lambda s: s.memory_mb <= 16_000,
    "merge": lambda s: s.ready_units >= s.min_units,
    "storage": lambda s: s.storage != ResourceState.OFFLINE,
    "distance": lambda s: s.max_distance >= 50,
}


@settings(deadline=None, max_examples=500)
@given(
    st.builds(
        Situation,
        queue=st.sampled_from(ResourceState),
        storage=st.sampled_from(ResourceState),
        task=st.sampled_from(TaskState),
        cores=st.integers(1, 10),
        memory_mb=st.integers(15_990, 16_010),
        ready_units=st.integers(1, 5),
        min_units=st.integers(1, 5),
        max_distance=st.integers(40, 60),
    )
)
def test_any_situation_is_refused_by_the_first_filter_that_fails(situation: Situation) -> None:
    expected = next((name for name, passes in CHECKS.items() if not passes(situation)), None)
    found = situation.refusal()
    assert (found[0] if found else None) == expected


# ---------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("wanted", "offered", "missing"),
    [
        (["x86-64-v3"], ["x86-64-v4"], []),
        (["x86-64-v3"], ["x86-64-v3"], []),
        (["x86-64-v3"], ["x86-64-v2", "el9"], ["x86-64-v3"]),
        (["x86-64-v3"], [], ["x86-64-v3"]),
        (["el9", "avx"], ["avx"], ["el9"]),
        (["el9", "el9"], [], ["el9"]),
    ],
)
def test_a_higher_cpu_level_has_all_lower_ones(wanted: list[str], offered: list[str], missing: list[str]) -> None:
    assert missing_tags(wanted, offered) == missing


# ---------------------------------------------------------------- downtimes and direct reading


@pytest.mark.parametrize(
    ("begins", "wall_s", "expected"),
    [
        (3600.0, 3600, None),
        (3599.0, 3600, ("downtime", "the job needs 3600 s, and a downtime begins in 3599 s: works")),
        (3599.0, 0, None),
        (9000.0, 7200, None),
        (9000.0, 7201, ("wall_time", "the job needs 7201 s of wall time, the slot has 7200")),
    ],
)
def test_a_job_that_would_end_in_a_downtime_is_refused(
    begins: float, wall_s: int, expected: tuple[str, str] | None
) -> None:
    assert Situation(downtime=(begins, begins + 100), wall_s=wall_s).refusal() == expected


def test_a_downtime_that_is_over_refuses_nothing() -> None:
    assert Situation(downtime=(-100.0, 0.0)).refusal() is None


@pytest.mark.parametrize(
    ("wants", "allowed", "url", "filters"),
    [
        (RemoteIo.ALLOWED, True, "root://h//d", []),
        (RemoteIo.ALWAYS, True, "root://h//d", []),
        (RemoteIo.NEVER, True, "root://h//d", ["disk"]),
        (RemoteIo.ALLOWED, False, "root://h//d", ["disk"]),
        (RemoteIo.ALLOWED, True, "srm://h/d", ["disk"]),
        (RemoteIo.ALWAYS, True, "srm://h/d", ["disk"]),
    ],
)
def test_input_that_is_read_where_it_lies_needs_no_disk(
    wants: RemoteIo, allowed: bool, url: str, filters: list[str]
) -> None:
    here = Situation(remote_io=wants, queue_remote_io=allowed)
    storage = StorageSpec(name="SE", site="THERE", endpoints=[Endpoint(url)])
    moment = Moment(replace(here.world(), storages={"SE": storage}), NOW)
    matches, refusals = match([replace(here.candidate(), unit_mb=20_000)], here.slot(), moment, {})
    assert [refusal.filter for refusal in refusals] == filters
    assert [found.direct for found in matches] == ([] if filters else [True])


def test_what_must_be_read_directly_and_cannot_is_refused() -> None:
    here = Situation(remote_io=RemoteIo.ALWAYS, queue_remote_io=True)
    storage = StorageSpec(name="SE", site="THERE", endpoints=[Endpoint("srm://h/d")])
    moment = Moment(replace(here.world(), storages={"SE": storage}), NOW)
    _, refusals = match([here.candidate()], here.slot(), moment, {})
    assert [(each.filter, each.detail) for each in refusals] == [
        ("remote_io", "files on SE cannot be read without a copy")
    ]
