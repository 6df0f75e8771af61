"""CRIC's words and ours, and what an import changes: each rule by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import responses
import tomllib
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cli import Frame
from common.cli.main import main
from common.states import ResourceState
from common.wire import Activity, ImportChange, ImportReport, ImportSource, SiteSpec
from server.catalogs.cric import NAMES, CricConfig
from server.engine import cric
from server.engine.cric import Wrong
from server.engine.following import Imported, merge, plan, too_many, vanished

SITES = {"RAL": None, "CERN": None}
QUEUE = {
    "atlas_site": "RAL", "state": "ACTIVE", "status": "online", "corecount": 8, "maxrss": 16000, "maxwdir": 20000,
    "maxtime": 345600, "corepower": "10.5", "catchall": "disableReassign,x", "container_type": "singularity:pilot",
    "copytools": {"gfal": {}, "mv": {}, "rucio": {}}, "comment": "mine", "direct_access_lan": False,
    "direct_access_wan": True, "what_is_new": {"a": 1},
}  # fmt: skip
PROTOCOLS = {
    "read_lan": [{"endpoint": "root://x.example.org:1094/", "path": "/data/rucio", "id": 1, "flavour": "XROOTD"}],
    "read_wan": [{"endpoint": "root://x.example.org:1094/", "path": "/data/rucio"}, {"endpoint": "davs://x:443", "path": "/d"}],
    "write_lan": [{"endpoint": "davs://x:443", "path": "/d"}],
    "delete": [{"endpoint": "davs://x:443", "path": "/d"}],
}  # fmt: skip
STORAGE = {"site": "RAL", "state": "ACTIVE", "is_tape": False, "token": "ATLASDATADISK", "arprotocols": PROTOCOLS}


def queue(**changes: Any) -> Any:
    reading = cric.read_queues({"Q": {**QUEUE, **changes}}, SITES)
    return reading.found.get("Q") or reading.skipped["Q"]


def storage(blacklist: dict[str, str] | None = None, **changes: Any) -> Any:
    reading = cric.read_storages({"S": {**STORAGE, **changes}}, SITES, blacklist or {})
    return reading.found.get("S") or reading.skipped["S"]


def test_each_field_of_a_queue() -> None:
    made = queue()
    assert (made.site, made.cores, made.memory_mb, made.disk_mb, made.wall_s) == ("RAL", 8, 16000, 20000, 345600)
    assert (made.core_power, made.no_reassign, made.remote_io, made.tags) == (10.5, True, True, ["apptainer"])
    assert (made.copytools, made.description, made.status) == (["gfal", "rucio"], "mine", ResourceState.ONLINE)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("online", "online"), ("offline", "offline"), ("test", "test"), ("paused", "paused"), ("brokeroff", "draining")],
)
def test_each_status_of_a_queue(theirs: str, ours: str) -> None:
    assert queue(status=theirs).status.value == ours
    assert queue(status=theirs, state="DISABLED").status is ResourceState.OFFLINE


def test_what_is_not_said_is_as_without_cric() -> None:
    reading = cric.read_queues({"Q": {"atlas_site": "RAL", "maxrss": None, "corepower": None}}, SITES)
    made = reading.found["Q"]
    assert (made.memory_mb, made.core_power, made.tags, made.remote_io) == (0, 10.0, [], False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maxrss": "much"}, "maxrss: a number is expected, not 'much'"),
        ({"corecount": -1}, "corecount: -1 is out of range"),
        ({"corecount": True}, "corecount: a number"),
        ({"maxtime": 1e99}, "maxtime: 1e+99 is out of range"),
        ({"corepower": 0}, "corepower: 0 is out of range"),
        ({"status": "odd"}, "status: 'odd' is none of online"),
        ({"status": 5}, "status: text is expected"),
        ({"atlas_site": "NOWHERE"}, "there is no site 'NOWHERE'"),
        ({"atlas_site": None}, "there is no site None"),
        ({"copytools": "rucio"}, "copytools: names of copytools"),
        ({"direct_access_lan": "yes"}, "true or false"),
        ({"comment": {}}, "comment: text is expected"),
    ],
)
def test_a_queue_of_wrong_types_is_left_out_with_the_field_and_the_others_go_on(
    changes: dict[str, Any], words: str
) -> None:
    reading = cric.read_queues({"Q": {**QUEUE, **changes}, "other": QUEUE, "odd name": QUEUE, "x": 1}, SITES)
    assert words in reading.skipped["Q"] and list(reading.found) == ["other"]
    assert set(reading.skipped) == {"Q", "odd name", "x"}


def test_a_storage_has_each_address_once_with_all_that_it_is_for() -> None:
    made = storage(is_deterministic=True)
    assert [(each.url, each.activities) for each in made.endpoints] == [
        ("root://x.example.org:1094//data/rucio", [Activity.READ_LAN, Activity.READ_WAN]),
        ("davs://x:443/d", [Activity.READ_WAN, Activity.WRITE_LAN]),
    ]
    assert (made.site, made.tape, made.description, made.naming.value) == ("RAL", False, "ATLASDATADISK", "rucio-hash")
    assert storage().naming.value == "job"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arprotocols": None}, "arprotocols: an object"),
        ({"arprotocols": {"delete": []}}, "no protocol"),
        ({"arprotocols": {"read_lan": {}}}, "arprotocols.read_lan: a list"),
        ({"arprotocols": {"read_lan": [{"path": "/"}]}}, "an endpoint is expected"),
        ({"arprotocols": {"read_lan": [{"endpoint": "no url"}]}}, "url"),
        ({"is_tape": "no"}, "is_tape: true or false"),
        ({"site": "NOWHERE"}, "there is no site"),
    ],
)
def test_a_storage_of_wrong_types_is_left_out(changes: dict[str, Any], words: str) -> None:
    assert words in storage(**changes)


def test_the_blacklist_closes_storages_for_what_it_names() -> None:
    off, auto = {"status": {"value": "OFF", "reason": "x"}, "mode": {}}, {"status": {"value": "AUTO"}}
    listed = cric.read_blacklist(
        {"A": {"write_wan": off}, "B": {"read_wan": off, "write_wan": off}, "C": {"read_wan": auto}, "D": {}, "E": {"read_lan": "OFF"}}
    )  # fmt: skip
    assert listed == {"A": "write", "B": "read", "D": "write", "E": "read"}
    assert cric.read_blacklist(["x"]) == {"'x'": "write"}
    assert storage({"S": "write"}).status is ResourceState.PAUSED
    assert storage({"S": "read"}).status is ResourceState.OFFLINE
    assert storage({"S": "write"}, state="DISABLED").status is ResourceState.OFFLINE


def test_closeness_becomes_distances_to_storages() -> None:
    document = [
        {"src": "RAL", "dst": "CERN", "closeness": 0}, {"src": "CERN", "dst": "RAL", "closeness": 11},
        {"src": "RAL", "dst": "RAL", "closeness": 5}, {"src": "RAL", "dst": "X", "closeness": -1}, {"src": "RAL"}, 7,
        {"src": "A", "dst": "B", "closeness": "near"}, {"src": "A", "dst": "B", "closeness": 12},
    ]  # fmt: skip
    closeness = cric.read_closeness(document)
    assert closeness == {("RAL", "CERN"): 1, ("CERN", "RAL"): 100, ("RAL", "RAL"): 46, ("RAL", "X"): 101}
    sites = {name: SiteSpec(name) for name in ("RAL", "CERN")}
    made = cric.with_distances(sites, {"R1": "RAL", "C1": "CERN", "C2": "CERN"}, closeness)
    assert made["RAL"].distances == {"C1": 1, "C2": 1} and made["CERN"].distances == {"R1": 100}


@pytest.mark.parametrize("document", [None, 1, "x", True])
def test_what_is_no_document_at_all_is_refused(document: Any) -> None:
    for read in (
        cric.read_sites, lambda one: cric.read_queues(one, SITES), lambda one: cric.read_storages(one, SITES, {}),
        cric.read_blacklist, cric.read_closeness,
    ):  # fmt: skip
        with pytest.raises(Wrong, match="expected"):
            read(document)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["ACTIVE", "online", "RAL", "OFF"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5) | st.sampled_from([*QUEUE, *STORAGE, *PROTOCOLS, "status", "value", "endpoint", "path"]), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(ODD)
def test_nothing_that_json_can_hold_does_more_than_leave_entries_out(odd: Any) -> None:
    for document in ({"Q": odd, "good": QUEUE, "fine": STORAGE}, [odd], odd):
        for read in (
            cric.read_sites, lambda one: cric.read_queues(one, SITES), lambda one: cric.read_storages(one, SITES, {}),
            cric.read_blacklist, cric.read_closeness,
        ):  # fmt: skip
            try:
                read(document)
            except Wrong:
                assert not isinstance(document, (dict, list)) or read is cric.read_closeness


# ---------------------------------------------------------------- what changes


def test_fields_that_an_admin_has_changed_stay_and_the_others_follow() -> None:
    last, new = {"a": 1, "b": 1, "d": {"x": 1, "y": 1}}, {"a": 2, "b": 2, "d": {"x": 2, "y": 2, "z": 2}}
    there = {"a": 1, "b": 7, "d": {"x": 1, "y": 7}}
    assert merge(there, last, new) == {"a": 2, "b": 7, "d": {"x": 2, "y": 7, "z": 2}}
    assert merge({"a": 1, "own": 5}, {"a": 1}, {"a": 1}) == {"a": 1, "own": 5}
    assert merge({"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 1}) == {"a": 1}, "a field that is gone there goes here"


def test_a_plan_names_what_is_new_changed_gone_and_by_hand() -> None:
    made = plan(
        {"new": {"status": "online"}, "same": {"status": "online", "n": 1}, "other": {"status": "online", "n": 2},
         "hand": {"status": "online"}, "again": {"status": "online"}, "held": {"status": "online", "n": 2}},
        {"broken"},
        {"same": {"status": "online", "n": 1}, "other": {"status": "online", "n": 1}, "hand": {"status": "test"},
         "again": {"status": "draining"}, "held": {"status": "offline", "n": 1}, "gone": {"status": "online"},
         "broken": {"status": "online"}, "shut": {"status": "offline"}},
        {"same": Imported({"status": "online", "n": 1}), "other": Imported({"status": "online", "n": 1}),
         "again": Imported({"status": "draining"}, 5.0), "held": Imported({"status": "online", "n": 1}),
         "gone": Imported({"status": "online"}), "broken": Imported({"status": "online"}),
         "shut": Imported({"status": "online"}), "long-gone": Imported({"status": "draining"}, 3.0)},
        9.0,
    )  # fmt: skip
    assert {each.name: (each.what, each.fields) for each in made.changes} == {
        "new": ("created", ()), "other": ("changed", ("n",)), "again": ("back", ("status",)),
        "held": ("changed", ("n",)), "gone": ("drained", ("status",)),
    }  # fmt: skip
    assert {each.name: each.spec for each in made.changes}["held"] == {"status": "offline", "n": 2}
    assert made.by_hand == {"hand": (), "held": ("status",), "shut": ("status",)}
    assert made.remember["gone"] == Imported({"status": "draining"}, 9.0) and "broken" not in made.remember


def test_too_much_that_vanishes_is_not_believed() -> None:
    last = {f"q{n}": Imported({}) for n in range(10)} | {"old": Imported({}, 1.0)}
    assert vanished({"q0", "q1"}, {"q2"}, last) == [f"q{n}" for n in range(3, 10)]
    assert not too_many(0, last, 0) and not too_many(2, last, 20) and too_many(3, last, 20) and too_many(1, last, 0)


# ---------------------------------------------------------------- the command


REPORT = ImportReport(
    source="cric", time=5.0, changed=5.0,
    sources=[
        ImportSource(name="queues", where="/q.json", entries=2, skipped={"BAD": "maxrss: a number"}, by_hand={"Q2": ["wall_s"], "Q1": []}),
        ImportSource(name="sites", problem="cut short"),
    ],
    changes=[ImportChange("queue", "Q2", "changed", ["memory_mb"])],
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    options = ["--server", "http://server.test", "--token-file", str(tmp_path / "token")]
    return lambda *words: CliRunner().invoke(main, ["admin", "cric", *words, *options], obj=Frame(config_file=None))


@responses.activate
def test_the_command_shows_what_was_left_out_and_why(run: Callable[..., Result]) -> None:
    responses.add("GET", "http://server.test/v1/imports/cric", msgspec.json.encode(REPORT))
    told = " ".join(run().output.split())
    for words in (
        "cut short",
        "BAD left out: maxrss: a number",
        "Q2 by hand: wall_s",
        "Q1 by hand: all of it",
        "memory_mb",
    ):
        assert words in told, told
    assert msgspec.json.decode(run("--json").output, type=ImportReport) == REPORT


@responses.activate
def test_the_command_says_when_nothing_is_followed(run: Callable[..., Result]) -> None:
    responses.add("GET", "http://server.test/v1/imports/cric", msgspec.json.encode(ImportReport(source="cric")))
    result = run()
    assert result.exit_code == 1 and "[server.cric]" in result.output


def test_the_configuration_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "cric.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    config = msgspec.convert(tomllib.loads(text)["server"]["cric"], CricConfig)
    assert all(getattr(config, name) for name in NAMES)
    for table in (cric.QUEUE_FIELDS, cric.SITE_FIELDS, cric.STORAGE_FIELDS):
        assert all(f"`{each.theirs}`" in page for each in table)
