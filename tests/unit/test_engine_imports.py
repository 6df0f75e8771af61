"""The rules of imports: what another system says is followed, and what somebody made by hand stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.engine.imports import Change, Key, Known, Plan, Step, plan, report

DISK: Key = ("storage", "DISK")
NEAR: Key = ("distance", "CERN DISK")
FIELDS = {"site": "CERN", "tape": False, "status": "online"}
World = dict[Key, dict[str, Any]]


class Import:
    """A world, and what is remembered of imports into it."""

    def __init__(self, **world: Any) -> None:
        self.world: World = {}
        self.known: dict[Key, Known] = {}

    def run(self, wanted: Mapping[Key, Mapping[str, Any]], source: str = "rucio") -> Plan:
        found = plan(source, wanted, self.world, self.known, {})
        for change in found.steps:
            key = (change.kind, change.name)
            if change.step is Step.GONE and change.kind == "distance":
                del self.world[key]
            else:
                self.world.setdefault(key, {}).update(change.fields)
        for key, fields in found.remember.items():
            if fields is None:
                self.known.pop(key, None)
            else:
                self.known[key] = Known(source, fields)
        return found


def steps(found: Plan) -> list[tuple[Step, str, dict[str, Any]]]:
    return [(each.step, each.name, each.fields) for each in found.changes]


def test_what_is_new_is_made_and_the_same_again_changes_nothing() -> None:
    it = Import()
    assert steps(it.run({DISK: FIELDS})) == [(Step.MADE, "DISK", FIELDS)]
    assert it.run({DISK: FIELDS}).changes == []


def test_a_field_that_nobody_touched_follows() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    assert steps(it.run({DISK: {**FIELDS, "status": "offline"}})) == [(Step.CHANGED, "DISK", {"status": "offline"})]
    assert it.world[DISK]["status"] == "offline"


def test_a_field_that_was_changed_by_hand_stays_and_the_others_follow() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    it.world[DISK]["status"] = "draining"
    found = it.run({DISK: {**FIELDS, "tape": True, "status": "offline"}})
    assert it.world[DISK] == {"site": "CERN", "tape": True, "status": "draining"}
    assert [each.words for each in found.changes if each.step is Step.KEPT] == ["status was changed by hand"]
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


def test_a_field_that_was_written_by_hand_before_an_import_spoke_of_it_stays() -> None:
    """It was overwritten: only fields that an earlier import had left otherwise counted as changed."""
    it = Import()
    it.run({DISK: {"site": "CERN"}})
    it.world[DISK]["tape"] = True
    found = it.run({DISK: {"site": "CERN", "tape": False}})
    assert it.world[DISK]["tape"] is True
    assert [each.words for each in found.changes] == ["tape was changed by hand"]


def test_what_was_made_or_deleted_by_hand_stays_so() -> None:
    it = Import()
    it.world[DISK] = {"site": "FNAL"}
    assert [each.words for each in it.run({DISK: FIELDS}).changes] == ["it was made by hand"]
    assert it.world == {DISK: {"site": "FNAL"}}
    it = Import()
    it.run({DISK: FIELDS})
    del it.world[DISK]
    assert [each.words for each in it.run({DISK: FIELDS}).changes] == ["it was deleted by hand"]
    assert it.world == {}


def test_things_of_a_site_that_was_deleted_by_hand_are_left_out() -> None:
    it = Import()
    wanted = {("site", "CERN"): {}, DISK: FIELDS, NEAR: {"distance": 10}}
    it.known[("site", "CERN")] = Known("rucio", {})
    assert it.run(wanted).steps == []


def test_what_another_import_made_is_that_ones() -> None:
    it = Import()
    it.run({DISK: FIELDS})
    found = it.run({DISK: {**FIELDS, "tape": True}}, source="cric")
    assert [(each.step, each.words) for each in found.changes] == [(Step.KEPT, "it comes from rucio")]
    assert it.run({}, source="cric").changes == []


def test_what_is_gone_there_goes_offline_here_and_comes_back() -> None:
    it = Import()
    it.run({DISK: FIELDS, NEAR: {"distance": 10}})
    assert steps(it.run({})) == [(Step.GONE, "CERN DISK", {}), (Step.GONE, "DISK", {"status": "offline"})]
    assert it.run({}).changes == []
    it.run({DISK: FIELDS, NEAR: {"distance": 10}})
    assert it.world == {DISK: FIELDS, NEAR: {"distance": 10}}


def test_what_is_gone_there_but_was_changed_here_stays() -> None:
    it = Import()
    it.run({DISK: FIELDS, NEAR: {"distance": 10}})
    it.world[DISK]["status"] = "test"
    it.world[NEAR]["distance"] = 3
    assert it.run({}).steps == []
    assert it.world == {DISK: {**FIELDS, "status": "test"}, NEAR: {"distance": 3}}


def test_the_report_says_what_and_why() -> None:
    lines = report(
        [
            Change(Step.MADE, "storage", "DISK", {"endpoints": [{"url": "root://a//b"}], "site": "CERN"}),
            Change(Step.KEPT, "distance", "CERN DISK", {"distance": 3}, "it was made by hand"),
        ]
    )
    assert lines == [
        "made    storage DISK: endpoints=[root://a//b], site=CERN",
        "kept    distance CERN DISK: distance=3 (it was made by hand)",
    ]


_FIELDS = st.dictionaries(st.sampled_from(["site", "status", "tape"]), st.integers(0, 2), min_size=1)
_WORLDS = st.dictionaries(st.sampled_from([DISK, NEAR, ("site", "CERN")]), _FIELDS)


@given(_WORLDS, _WORLDS, _WORLDS, st.data())
def test_no_field_that_a_hand_touched_is_ever_written(
    first: World, second: World, hand: World, data: st.DataObject
) -> None:
    it = Import()
    it.run(first)
    touched = {
        (key, name)
        for key, fields in hand.items()
        for name, value in fields.items()
        if it.world.get(key, {}).get(name) != value
    }
    for key, fields in hand.items():
        it.world.setdefault(key, {}).update(fields)
    before = {key: dict(fields) for key, fields in it.world.items()}
    it.run(second)
    for key, name in touched:
        assert it.world[key][name] == before[key][name]
