"""The rules of imports: what other systems say is followed, and what somebody made by hand stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import ImportStep
from server.engine.imports import DISTANCES, KINDS, Document, Key, Plan, Said, plan, unbelievable

CERN: Key = ("site", "CERN")
DISK: Key = ("storage", "DISK")
FARM: Key = ("queue", "FARM")
NEAR: Key = (DISTANCES, "CERN")
FIELDS = {"site": "CERN", "tape": False, "status": "online"}
World = dict[Key, dict[str, Any]]


class Import:
    """A world, and what is remembered of imports into it."""

    def __init__(self, *sources: str) -> None:
        self.sources = sources or ("rucio",)
        self.world: World = {}
        self.known: dict[Key, dict[str, Said]] = {}
        self.now = 0.0

    def run(
        self, wanted: Mapping[Key, Mapping[str, Any]], source: str = "", skipped: Iterable[Key] = (), take: str = ""
    ) -> Plan:
        """A look, with the site that all is at."""
        source, self.now = source or self.sources[0], self.now + 1.0
        document = Document("d", kinds=KINDS, found={CERN: {}, **wanted}, skipped=dict.fromkeys(skipped, "odd"))
        order = dict.fromkeys(KINDS, self.sources)
        found = plan(source, [document], self.world, self.known, order, self.now, [take])
        for change in found.steps:
            there = self.world.setdefault((change.kind, change.name), {})
            there.update(change.fields)
            for name in [name for name, value in there.items() if value is None]:
                del there[name]
        for (who, key), said in found.remember.items():
            self.known.setdefault(key, {}).pop(who, None)
            if said is not None:
                self.known[key][who] = said
        return found


def steps(found: Plan, *of: Key) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (each.step.value, each.name, each.fields) for each in found.changes if not of or (each.kind, each.name) in of
    ]


def whys(found: Plan) -> list[str]:
    return [each.why for each in found.left]


def test_what_is_new_is_made_and_the_same_again_changes_nothing() -> None:
    it = Import()
    assert steps(it.run({DISK: FIELDS})) == [("created", "CERN", {}), ("created", "DISK", FIELDS)]
    assert it.run({DISK: FIELDS}).changes == []


def test_a_field_that_nobody_touched_follows() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    assert steps(it.run({DISK: {**FIELDS, "status": "offline"}})) == [("changed", "DISK", {"status": "offline"})]
    assert it.world[DISK]["status"] == "offline"


def test_a_field_that_was_changed_by_hand_stays_and_the_others_follow() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    it.world[DISK]["status"] = "draining"
    found = it.run({DISK: {**FIELDS, "tape": True, "status": "offline"}})
    assert it.world[DISK] == {"site": "CERN", "tape": True, "status": "draining"}
    assert whys(found) == ["status changed by hand"]
    # Once it is again what the other system says, it follows again.
    it.world[DISK]["status"] = "offline"
    it.run({DISK: {**FIELDS, "tape": True, "status": "offline"}})
    it.run({DISK: {**FIELDS, "tape": True}})
    assert it.world[DISK]["status"] == "online"


def test_fields_that_an_import_does_not_speak_of_are_no_business_of_its() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    it.world[DISK]["description"] = "of the second floor"
    assert it.run({DISK: FIELDS}).changes == []
    it.run({DISK: {**FIELDS, "tape": True}}, take="DISK")
    assert it.world[DISK]["description"] == "of the second floor"


def test_a_field_that_was_written_by_hand_before_an_import_spoke_of_it_stays() -> None:
    """It was overwritten: only fields that an earlier import had left otherwise counted as changed."""
    it = Import()
    it.run({DISK: {"site": "CERN"}})
    it.world[DISK]["tape"] = True
    found = it.run({DISK: {"site": "CERN", "tape": False}})
    assert it.world[DISK]["tape"] is True
    assert whys(found) == ["tape changed by hand"]


def test_a_field_that_is_gone_there_is_as_if_nobody_had_written_it() -> None:
    it = Import()
    it.run({DISK: {**FIELDS, "description": "theirs", "tape": True}, NEAR: {"DISK": 3}})
    it.world[DISK]["tape"] = False
    it.run({DISK: {"site": "CERN", "status": "online"}, NEAR: {}})
    assert it.world[DISK] == {"site": "CERN", "status": "online", "description": "", "tape": False}
    assert it.world[NEAR] == {}


def test_what_was_made_or_deleted_by_hand_stays_so() -> None:
    it = Import()
    it.world[DISK] = {"site": "FNAL"}
    assert whys(it.run({DISK: FIELDS})) == ["it was made by hand"]
    assert it.world[DISK] == {"site": "FNAL"} and whys(it.run({DISK: FIELDS})) == ["it was made by hand"]
    it = Import()
    it.run({DISK: FIELDS})
    del it.world[DISK]
    for _ in range(2):
        assert whys(it.run({DISK: FIELDS})) == ["it was deleted by hand"]
        assert DISK not in it.world


def test_what_is_asked_for_by_name_follows_altogether() -> None:
    it = Import()
    it.world[DISK] = {"site": "FNAL", "status": "test", "tape": False}
    it.run({DISK: FIELDS}, take="DISK")
    assert it.world[DISK] == FIELDS
    del it.world[DISK]
    it.run({DISK: FIELDS}, take="DISK")
    assert it.world[DISK] == FIELDS and it.run({DISK: FIELDS}).changes == []


def test_what_had_vanished_and_was_deleted_then_is_made_when_it_is_there_again() -> None:
    it = Import()
    it.run({FARM: FIELDS})
    it.run({})
    del it.world[FARM]
    assert it.run({}).changes == [] and not it.known[FARM]
    assert steps(it.run({FARM: FIELDS})) == [("created", "FARM", FIELDS)]


def test_things_of_a_site_that_was_deleted_by_hand_are_left_out() -> None:
    it = Import()
    it.run({DISK: FIELDS, NEAR: {"DISK": 10}})
    it.world.clear()
    found = it.run({DISK: FIELDS, NEAR: {"DISK": 10}})
    assert found.steps == [] and whys(found) == ["it was deleted by hand", "its site was deleted by hand"]
    it.world[CERN] = {}
    it.run({DISK: FIELDS, NEAR: {"DISK": 10}}, take="DISK")
    assert it.world == {CERN: {}, DISK: FIELDS, NEAR: {"DISK": 10}}


def test_things_of_a_site_that_is_not_there_wait_for_it() -> None:
    it = Import()
    found = it.run({DISK: {**FIELDS, "site": "FNAL"}})
    assert whys(found) == ["there is no site 'FNAL'"]
    it.world["site", "FNAL"] = {}
    assert steps(it.run({DISK: {**FIELDS, "site": "FNAL"}}))[0][:2] == ("created", "DISK")


def test_distances_are_added_to_sites_that_were_made_by_hand_and_those_that_were_set_stay() -> None:
    it = Import()
    it.world = {CERN: {"description": "ours"}, NEAR: {"DISK": 7}, ("storage", "OURS"): {"site": "FNAL"}}
    it.run({DISK: {**FIELDS, "site": "CERN"}, NEAR: {"DISK": 100, "OURS": 20, "NOWHERE": 30}})
    assert it.world[CERN] == {"description": "ours"}
    assert it.world[NEAR] == {"DISK": 7, "OURS": 20}


def test_what_is_gone_there_is_drained_here_and_comes_back() -> None:
    it = Import()
    it.run({DISK: FIELDS, FARM: FIELDS, NEAR: {"DISK": 10}})
    assert steps(it.run({})) == [
        ("drained", "DISK", {"status": "draining"}),
        ("changed", "CERN", {"DISK": None}),
        ("drained", "FARM", {"status": "draining"}),
    ]
    assert it.run({}).changes == []
    assert steps(it.run({DISK: FIELDS, FARM: FIELDS, NEAR: {"DISK": 10}}), DISK, FARM) == [
        ("back", "DISK", {"status": "online"}),
        ("back", "FARM", {"status": "online"}),
    ]
    assert it.world == {CERN: {}, DISK: FIELDS, FARM: FIELDS, NEAR: {"DISK": 10}}


def test_what_is_gone_there_but_was_changed_here_stays() -> None:
    it = Import()
    it.run({DISK: FIELDS, NEAR: {"DISK": 10}})
    it.world[DISK]["status"] = "test"
    it.world[NEAR]["DISK"] = 3
    assert it.run({}).steps == []
    assert it.world == {CERN: {}, DISK: {**FIELDS, "status": "test"}, NEAR: {"DISK": 3}}


def test_what_is_offline_there_stays_offline_when_it_vanishes() -> None:
    it = Import()
    it.run({DISK: {**FIELDS, "status": "offline"}})
    assert it.run({}).changes == [] and it.world[DISK]["status"] == "offline"


def test_a_site_of_which_no_status_is_known_is_not_drained() -> None:
    """Rucio says nothing of sites but their names: jobs go on where its last RSE has gone."""
    it = Import()
    it.run({("site", "FNAL"): {}})
    assert it.run({}).changes == [] and it.world["site", "FNAL"] == {}


def test_what_is_left_out_stays_as_it_was() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    found = it.run({}, skipped=[DISK])
    assert found.steps == [] and [each.step for each in found.left] == [ImportStep.LEFT_OUT]
    assert it.world[DISK] == FIELDS


def test_entries_are_checked_and_have_the_form_of_the_world() -> None:
    document = Document("d")
    assert document.add("storage", "DISK", {"site": "CERN", "endpoints": [{"url": "root://a//b", "provider": None}]})
    assert not document.add("storage", "BAD", {"site": "CERN", "endpoints": [{"url": "no"}]})
    assert not document.add("site", "odd name", {})
    assert document.found == {DISK: {"site": "CERN", "endpoints": [{"url": "root://a//b", "activities": [
        "read_lan", "write_lan", "read_wan", "write_wan"]}]}}  # fmt: skip
    assert set(document.skipped) == {("storage", "BAD"), ("site", "odd name")}


# ---------------------------------------------------------------- what is not believed


def judged(left: int, skipped: int, percent: float) -> str:
    """Of ten queues, one that had vanished before, and five sites without a status."""
    known = {("queue", f"q{n}"): {"cric": Said({"status": "online"})} for n in range(10)}
    known["queue", "old"] = {"cric": Said({"status": "draining"}, 1.0)}
    known |= {("site", f"s{n}"): {"cric": Said({})} for n in range(5)}
    document = Document("d", "/d", ("site", "queue"))
    document.found = {("queue", f"q{n}"): {} for n in range(left)} | {("site", "s0"): {}}
    document.skipped = {("queue", f"q{n}"): "odd" for n in range(left, left + skipped)}
    return unbelievable(document, "cric", known, percent)


@pytest.mark.parametrize(
    ("left", "skipped", "percent", "good"),
    [(10, 0, 0, True), (8, 0, 20, True), (7, 1, 20, True), (7, 0, 20, False), (9, 0, 0, False), (1, 0, 100, True)],
)
def test_too_much_that_vanishes_is_not_believed(left: int, skipped: int, percent: float, good: bool) -> None:
    words = judged(left, skipped, percent)
    assert (not words) == good and (good or f"{10 - left} of 10 entries have vanished" in words)


def test_a_document_without_any_entry_is_not_believed() -> None:
    assert "no entry of it can be used (2 were left out)" in judged(0, 2, 100)


# ---------------------------------------------------------------- several sources


def test_a_field_belongs_to_the_first_source_that_says_it() -> None:
    it = Import("cric", "rucio")
    theirs = {"site": "CERN", "status": "online", "naming": "rucio-hash", "tape": True}
    it.run({DISK: theirs}, "rucio")
    found = it.run({DISK: {"site": "CERN", "status": "paused", "description": "of CRIC"}}, "cric")
    assert steps(found) == [("changed", "DISK", {"description": "of CRIC", "status": "paused"})]
    assert it.world[DISK] == {**theirs, "status": "paused", "description": "of CRIC"}
    assert it.run({DISK: {**theirs, "status": "offline", "tape": False}}, "rucio").steps[0].fields == {"tape": False}
    # What the first says no more is the next one's.
    it.run({DISK: {"site": "CERN"}}, "cric")
    assert it.world[DISK] == {**theirs, "status": "offline", "tape": False, "description": ""}


def test_what_one_source_has_no_more_is_drained_only_if_no_other_says_its_status() -> None:
    it = Import("cric", "rucio")
    for source, status in (("cric", "paused"), ("rucio", "online")):
        it.run({DISK: {**FIELDS, "status": status}}, source)
    assert it.world[DISK]["status"] == "paused"
    assert steps(it.run({}, "cric")) == [("changed", "DISK", {"status": "online"})]
    assert steps(it.run({}, "rucio")) == [("drained", "DISK", {"status": "draining"})]
    assert steps(it.run({DISK: FIELDS}, "rucio")) == [("back", "DISK", {"status": "online"})]
    it = Import("cric", "rucio")
    it.run({CERN: {"status": "online"}, ("site", "FNAL"): {"status": "online"}}, "cric")
    it.run({("site", "FNAL"): {}}, "rucio")
    assert steps(it.run({}, "cric")) == [("drained", "FNAL", {"status": "draining"})]
    assert it.run({("site", "FNAL"): {}}, "rucio").changes == []


def test_what_a_source_said_that_is_not_asked_any_more_stays_until_another_says_otherwise() -> None:
    it = Import("cric", "rucio")
    it.run({DISK: {**FIELDS, "status": "paused", "description": "of CRIC"}}, "cric")
    it.sources = ("rucio",)
    assert it.run({}, "rucio").changes == []
    it.run({DISK: FIELDS}, "rucio")
    assert it.world[DISK] == {**FIELDS, "description": "of CRIC"}


def test_what_was_changed_by_hand_stays_whoever_says_otherwise() -> None:
    it = Import("cric", "rucio")
    it.run({DISK: FIELDS}, "rucio")
    it.world[DISK]["status"] = "test"
    assert it.run({DISK: {**FIELDS, "status": "paused"}}, "cric").steps == []
    assert it.world[DISK] == {**FIELDS, "status": "test"}


_FIELDS = st.dictionaries(st.sampled_from(["status", "tape", "naming"]), st.integers(1, 3), min_size=1).map(
    lambda fields: {"site": "CERN", **fields}
)
_DISTANCES = st.dictionaries(st.just("DISK"), st.integers(1, 3))
_WORLDS = st.fixed_dictionaries({}, optional={DISK: _FIELDS, FARM: _FIELDS, NEAR: _DISTANCES})


@given(_WORLDS, _WORLDS, st.lists(st.sampled_from(["cric", "rucio"])))
def test_the_world_does_not_depend_on_which_source_was_looked_at_first(
    first: World, second: World, turns: list[str]
) -> None:
    said = {"cric": first, "rucio": second}
    worlds = []
    for order in ([*turns, "cric", "rucio", "cric"], ["rucio", "cric", "rucio"]):
        it = Import("cric", "rucio")
        for source in order:
            it.run(said[source], source)
        worlds.append(it.world)
        assert [it.run(said[source], source).changes for source in said] == [[], []]
    assert worlds[0] == worlds[1]


@given(_WORLDS, _WORLDS, _WORLDS, _WORLDS)
def test_no_field_that_a_hand_touched_is_ever_written(first: World, other: World, second: World, hand: World) -> None:
    it = Import("cric", "rucio")
    it.run(first, "rucio")
    it.run(other, "cric")
    touched = {
        (key, name)
        for key, fields in hand.items()
        for name, value in fields.items()
        if it.world.get(key, {}).get(name) != value
    }
    for key, fields in hand.items():
        it.world.setdefault(key, {}).update(fields)
    before = {key: dict(fields) for key, fields in it.world.items()}
    it.run(second, "rucio")
    it.run(second, "cric")
    for key, name in touched:
        assert it.world[key][name] == before[key][name]
