"""Sites, storages and the distances between them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import ResourceState
from common.wire import Activity, Downtime, Endpoint, QueueSpec, SiteSpec, StorageSpec
from server.engine.world import FAR, MAX_LOCATIONS, NEVER, World, join_url, path_problem

GIVES_FILES = {ResourceState.ONLINE, ResourceState.PAUSED, ResourceState.DRAINING, ResourceState.TEST}


def storage(name: str, site: str, status: ResourceState = ResourceState.ONLINE, *endpoints: Endpoint) -> StorageSpec:
    return StorageSpec(name=name, site=site, status=status, endpoints=list(endpoints) or [Endpoint("root://h//d")])


def world(*specs: StorageSpec | SiteSpec) -> World:
    return World(
        sites={spec.name: spec for spec in specs if isinstance(spec, SiteSpec)},
        storages={spec.name: spec for spec in specs if isinstance(spec, StorageSpec)},
    )


SMALL = world(
    SiteSpec("HOME", distances={"NEAR": 20, "BANNED": 101, "SLOW_OWN": 30}),
    SiteSpec("OTHER"),
    storage("OWN", "HOME"),
    storage("SLOW_OWN", "HOME"),
    storage("NEAR", "OTHER"),
    storage("UNSET", "OTHER"),
    storage("BANNED", "OTHER"),
)


@pytest.mark.parametrize(
    ("site", "name", "expected"),
    [
        ("HOME", "OWN", 0),
        ("HOME", "NEAR", 20),
        ("HOME", "UNSET", FAR),
        ("HOME", "BANNED", NEVER),
        ("HOME", "SLOW_OWN", 30),
        ("HOME", "GONE", NEVER),
        ("OTHER", "NEAR", 0),
        ("OTHER", "OWN", FAR),
        ("NOWHERE", "OWN", FAR),
    ],
)
def test_distances(site: str, name: str, expected: int) -> None:
    assert SMALL.distance(site, name) == expected


def test_what_is_not_set_is_far_but_not_never() -> None:
    assert (FAR, NEVER) == (100, 101)


def test_a_unit_without_input_is_near_everywhere() -> None:
    assert SMALL.nearest("HOME", ()) == SMALL.nearest("NOWHERE", ()) == 0


def test_the_nearest_of_many() -> None:
    assert SMALL.nearest("HOME", ("UNSET", "NEAR", "BANNED")) == 20
    assert SMALL.nearest("HOME", ("BANNED",)) == NEVER


@pytest.mark.parametrize("status", ResourceState)
def test_a_storage_gives_files_unless_it_is_offline_and_takes_them_only_online(status: ResourceState) -> None:
    there = world(SiteSpec("HOME"), storage("SE", "HOME", status))
    assert there.readable("SE") is (status in GIVES_FILES)
    assert there.writable("SE") is (status == ResourceState.ONLINE)
    assert there.nearest("HOME", ("SE",)) == (0 if status in GIVES_FILES else NEVER)


@pytest.mark.parametrize("status", ResourceState)
def test_the_storages_of_an_offline_site_are_offline_too(status: ResourceState) -> None:
    there = world(SiteSpec("HOME", status=status), storage("SE", "HOME"))
    assert there.readable("SE") is there.writable("SE") is (status != ResourceState.OFFLINE)


def test_a_storage_that_nobody_knows_neither_gives_nor_takes() -> None:
    assert not SMALL.readable("GONE") and not SMALL.writable("GONE")


def test_an_offline_replica_is_passed_over_for_the_next_nearest() -> None:
    there = world(
        SiteSpec("HOME", distances={"NEAR": 20}),
        storage("OWN", "HOME", ResourceState.OFFLINE),
        storage("NEAR", "OTHER"),
    )
    assert there.nearest("HOME", ("OWN", "NEAR")) == 20
    assert there.nearest("HOME", ("OWN",)) == NEVER


def many(count: int, sites: int) -> World:
    return world(*(storage(f"SE{n:02d}", f"SITE{n % sites}") for n in range(count)))


def test_few_locations_are_named_one_by_one() -> None:
    names = [f"SE{n:02d}" for n in range(MAX_LOCATIONS)]
    assert many(20, 3).locations_of(reversed(names)) == tuple(names)


def test_many_locations_are_coarsened_to_their_sites() -> None:
    names = [f"SE{n:02d}" for n in range(MAX_LOCATIONS + 1)]
    assert many(20, 3).locations_of(names) == ("@SITE0", "@SITE1", "@SITE2")


def test_a_coarse_location_is_as_near_as_the_sites_nearest_readable_storage() -> None:
    there = world(
        SiteSpec("HOME", distances={"A": 40, "B": 10, "C": 1}),
        storage("A", "OTHER"),
        storage("B", "OTHER"),
        storage("C", "OTHER", ResourceState.OFFLINE),
    )
    assert there.nearest("HOME", ("@OTHER",)) == 10
    assert there.nearest("OTHER", ("@OTHER",)) == 0
    assert there.nearest("HOME", ("@EMPTY",)) == NEVER


def test_replicas_on_storages_that_were_removed_were_once_no_input_at_all() -> None:
    gone = [f"GONE{n}" for n in range(MAX_LOCATIONS + 1)]
    assert SMALL.nearest("HOME", SMALL.locations_of(gone)) == NEVER


@settings(deadline=None)
@given(st.sets(st.integers(0, 39)), st.integers(0, 4))
def test_coarsening_never_makes_input_unreachable_or_nearer_than_its_site(chosen: set[int], home: int) -> None:
    there = many(40, 5)
    names = {f"SE{n:02d}" for n in chosen}
    locations = there.locations_of(names)
    assert locations == there.locations_of(sorted(names)) and len(set(locations)) == len(locations)
    assert bool(locations) is bool(names)
    assert len(locations) <= max(MAX_LOCATIONS, 5)
    exact = min((there.distance(f"SITE{home}", name) for name in names), default=0)
    assert there.nearest(f"SITE{home}", locations) == exact


LAN = Endpoint("file:///data", [Activity.READ_LAN, Activity.WRITE_LAN])
WAN_READ = Endpoint("https://h/dav/", [Activity.READ_WAN])
WAN_ALL = Endpoint("root://h//data", [Activity.READ_WAN, Activity.WRITE_WAN, Activity.READ_LAN])


@pytest.mark.parametrize(
    ("site", "write", "expected"),
    [
        ("HOME", False, ["file:///data/a/b", "root://h//data/a/b"]),
        ("HOME", True, ["file:///data/a/b"]),
        ("OTHER", False, ["https://h/dav/a/b", "root://h//data/a/b"]),
        ("OTHER", True, ["root://h//data/a/b"]),
    ],
)
def test_urls_are_those_for_the_place_and_the_purpose_in_the_storages_order(
    site: str, write: bool, expected: list[str]
) -> None:
    there = world(storage("SE", "HOME", ResourceState.ONLINE, LAN, WAN_READ, WAN_ALL))
    assert there.urls("SE", "a/b", site, write=write) == expected


@pytest.mark.parametrize(
    ("prefix", "path", "expected"),
    [
        ("root://h:1094//data", "a/b", "root://h:1094//data/a/b"),
        ("root://h:1094//data/", "/a/b", "root://h:1094//data/a/b"),
        ("root://h:1094//", "/a", "root://h:1094//a"),
        ("file:///", "a", "file:///a"),
        ("file:///data", "//a", "file:///data/a"),
        ("https://h", "a", "https://h/a"),
    ],
)
def test_a_prefix_that_ends_in_slashes_once_lost_them(prefix: str, path: str, expected: str) -> None:
    assert join_url(prefix, path) == expected


@pytest.mark.parametrize("path", ["%2e%2e/state/signing.key", "a/..%2fb", "50% off", "what?", "a#b", "ü m"])
def test_a_path_is_no_url_and_once_led_out_of_the_storage(path: str) -> None:
    url = join_url("file:///data", path)
    assert url.isascii() and not {"?", "#", " "} & set(url)
    assert unquote(urlsplit(url).path) == f"/data/{path}"


@pytest.mark.parametrize("path", ["..", "a/../b", "%2e%2e/key", "..%2fkey", "a/.", "a\nb", "a\x00b"])
def test_a_path_that_leads_out_of_the_storage_is_refused(path: str) -> None:
    assert path_problem(path)


@pytest.mark.parametrize("path", ["a/b.root", "50% off", "...", "a..b", ".hidden/x", "ü"])
def test_a_path_that_stays_is_taken(path: str) -> None:
    assert path_problem(path) == ""


# ---------------------------------------------------------------- downtimes, direct reading


def test_a_storage_in_a_downtime_neither_gives_nor_takes() -> None:
    own = StorageSpec(name="SE", site="HOME", endpoints=[Endpoint("root://h//d")], downtimes=[Downtime(100, 200)])
    there = world(SiteSpec("HOME"), own, storage("OTHER", "HOME"))
    assert there.at(99) is there and there.at(200) is there
    down = there.at(100)
    assert down.down == {"SE"} and down.at(150) is down and down.at(200) == there
    assert not down.readable("SE") and not down.writable("SE") and not down.takes("SE", "HOME")
    assert (there.takers("HOME"), down.takers("HOME"), there.takers("HOME")) == (
        ("OTHER", "SE"),
        ("OTHER",),
        ("OTHER", "SE"),
    )
    assert down.readable("OTHER") and "SE" not in down.reach("HOME")
    assert down.nearest("HOME", ("SE",)) == NEVER


def test_a_sites_downtime_is_that_of_its_storages_and_queues() -> None:
    there = world(SiteSpec("HOME", downtimes=[Downtime(100, 200, "power")]), storage("SE", "HOME"))
    assert there.at(150).down == {"SE"}
    queue = QueueSpec(name="Q", site="HOME", downtimes=[Downtime(400, 500), Downtime(10, 20)])
    assert [getattr(there.next_downtime(queue, now), "start", None) for now in (0, 20, 150, 200, 499, 500)] == [
        10, 100, 100, 400, 400, None,
    ]  # fmt: skip


@pytest.mark.parametrize("status", ResourceState)
def test_idle_pilots_leave_a_queue_that_drains_or_whose_site_does(status: ResourceState) -> None:
    leave = status in (ResourceState.DRAINING, ResourceState.OFFLINE)
    assert world(SiteSpec("HOME")).pilots_leave(QueueSpec(name="Q", site="HOME", status=status)) is leave
    assert world(SiteSpec("HOME", status=status)).pilots_leave(QueueSpec(name="Q", site="HOME")) is leave


def test_a_probe_may_write_where_only_tests_may() -> None:
    there = world(SiteSpec("HOME"), storage("SE", "HOME", ResourceState.TEST))
    assert there.takes("SE", "HOME", probe=True) and not there.takes("SE", "HOME")


def test_locations_that_can_be_read_without_a_copy() -> None:
    there = world(
        SiteSpec("HOME"),
        storage("DIRECT", "A", ResourceState.ONLINE, Endpoint("srm://h/d"), Endpoint("https://h/d")),
        storage("COPY", "B", ResourceState.ONLINE, Endpoint("srm://h/d")),
        storage("BOTH", "B"),
        storage("LAN", "C", ResourceState.ONLINE, LAN),
    )
    assert there.direct("HOME") == {"DIRECT", "@A", "BOTH"}
    assert "LAN" in there.direct("C")


def test_a_pilot_is_told_only_of_what_it_can_read_now() -> None:
    down = Downtime(start=100.0, end=200.0, reason="power")
    there = world(
        SiteSpec("HOME", distances={"BANNED": NEVER, "NEAR": 20}),
        storage("NEAR", "X", ResourceState.ONLINE, Endpoint("root://near//d"), Endpoint("https://near/d")),
        storage("BANNED", "X"),
        storage("OFF", "X", ResourceState.OFFLINE),
        StorageSpec(name="DOWN", site="X", endpoints=[Endpoint("root://down//d")], downtimes=[down]),
    )
    both = ["root://near//d/a/f", "https://near/d/a/f"]
    for _ in range(2):  # the second time from what it remembers
        distance, prefixes = there.reading("NEAR", "HOME")
        assert (distance, [join_url(each, "/a/f") for each in prefixes]) == (20, both)
        for name in ("BANNED", "OFF", "GONE"):
            assert there.reading(name, "HOME") == (NEVER, [])
        assert there.reading("DOWN", "HOME")[0] == FAR
    assert there.at(150.0).reading("DOWN", "HOME") == (NEVER, [])
