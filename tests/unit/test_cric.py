"""CRIC's words and ours, and what an import changes: each rule by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import ResourceState
from common.wire import (
    Activity,
    QueueSpec,
    StorageSpec,
)
from server.catalogs.cric import KINDS, CricConfig
from server.engine import cric
from server.engine.cric import Wrong
from server.engine.imports import Document

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


def read(reader: Callable[..., None], content: Any, *more: Any) -> Document:
    document = Document("d")
    reader(content, document, *more)
    assert document.entries == len(document.found)
    return document


def queue(**changes: Any) -> Any:
    document = read(cric.read_queues, {"Q": {**QUEUE, **changes}})
    key = ("queue", "Q")
    return document.skipped.get(key) or msgspec.convert({"name": "Q", **document.found[key]}, QueueSpec)


def storage(blacklist: dict[str, str] | None = None, **changes: Any) -> Any:
    document = read(cric.read_storages, {"S": {**STORAGE, **changes}}, blacklist or {})
    key = ("storage", "S")
    return document.skipped.get(key) or msgspec.convert({"name": "S", **document.found[key]}, StorageSpec)


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
    document = read(cric.read_queues, {"Q": {"atlas_site": "RAL", "maxrss": None, "corepower": None}})
    assert document.found == {("queue", "Q"): {"site": "RAL", "status": "online", "remote_io": False}}


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
        ({"atlas_site": "no where"}, "$.site"),
        ({"atlas_site": None}, "`site`"),
        ({"copytools": "rucio"}, "copytools: names of copytools"),
        ({"direct_access_lan": "yes"}, "true or false"),
        ({"comment": {}}, "comment: text is expected"),
    ],
)
def test_a_queue_of_wrong_types_is_left_out_with_the_field_and_the_others_go_on(
    changes: dict[str, Any], words: str
) -> None:
    document = read(cric.read_queues, {"Q": {**QUEUE, **changes}, "other": QUEUE, "odd name": QUEUE, "x": 1})
    assert words in document.skipped["queue", "Q"] and list(document.found) == [("queue", "other")]
    assert {name for _, name in document.skipped} == {"Q", "odd name", "x"}


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
        ({"site": None}, "`site`"),
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
    document = Document("d")
    cric.tell_distances(closeness, {"R1": "RAL", "C1": "CERN", "C2": "CERN"}, document)
    assert document.found == {("distances", "RAL"): {"C1": 1, "C2": 1}, ("distances", "CERN"): {"R1": 100}}


READERS: list[Callable[[Any], object]] = [
    lambda one: read(cric.read_sites, one), lambda one: read(cric.read_queues, one),
    lambda one: read(cric.read_storages, one, {}), cric.read_blacklist, cric.read_closeness,
]  # fmt: skip


@pytest.mark.parametrize("document", [None, 1, "x", True])
def test_what_is_no_document_at_all_is_refused(document: Any) -> None:
    for reader in READERS:
        with pytest.raises(Wrong, match="expected"):
            reader(document)


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
        for reader in READERS:
            try:
                reader(document)
            except Wrong:
                assert not isinstance(document, (dict, list)) or reader is cric.read_closeness


def test_the_configuration_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "cric.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    config = msgspec.convert(tomllib.loads(text)["server"]["cric"], CricConfig)
    assert all(getattr(config, name) for name in KINDS)
    for table in (cric.QUEUE_FIELDS, cric.SITE_FIELDS, cric.STORAGE_FIELDS):
        assert all(f"`{each.theirs}`" in page for each in table)
