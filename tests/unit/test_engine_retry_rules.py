"""Which failures a rule applies to, and what it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ERRORS, ErrorCode
from common.states import ResourceState
from common.wire import (
    CustomAction,
    ErrorSource,
    LimitRetry,
    MoreMemory,
    MoreTime,
    NoRetry,
    QueueSpec,
    RetryAction,
    RetryCondition,
    RetryRule,
)
from server.engine.outcomes import Attempts, Caps
from server.engine.retry_rules import (
    MOST_MESSAGE,
    Failure,
    Judgement,
    Rule,
    Verdict,
    counted,
    judge,
    outgrown,
    problems,
    source_of,
)
from server.engine.world import World

NOWHERE = World()
FAILURE = Failure(
    error_code=1305,
    message="ERROR: code=42: cannot open file\n",
    exit_code=42,
    share="muons",
    labels={"campaign": "mc25"},
    image="/cvmfs/images/el9:1.2",
    tags=["x86_64", "cvmfs"],
    site="CERN",
    queue="CERN-GRID",
    architectures=["x86_64", "x86_64-v3"],
    memory_mb=2000,
    wall_s=3600,
    ran_s=100.0,
)


def rule(action: RetryAction | None = None, name: str = "r", **when: Any) -> Rule:
    return Rule(RetryRule(name=name, action=action or NoRetry(), when=RetryCondition(**when)))


def world(*queues: dict[str, Any]) -> World:
    made = [QueueSpec(name=f"q{n}", site="s", **each) for n, each in enumerate(queues)]
    return World(queues={each.name: each for each in made})


@pytest.mark.parametrize(
    "when",
    [
        {},
        {"sources": [ErrorSource.PAYLOAD, ErrorSource.SITE]},
        {"error_codes": ["1099", "1300..1310"]},
        {"exit_codes": ["42"]},
        {"message": r"code=4\d: cannot"},
        {"shares": ["other", "muons"]},
        {"labels": {"campaign": "mc25"}},
        {"images": ["*/el9:*"]},
        {"tags": ["cvmfs"]},
        {"sites": ["CERN"]},
        {"architectures": ["x86_64-v3"]},
        {"error_codes": ["1305"], "message": "cannot open", "sites": ["CERN"]},
    ],
)
def test_a_rule_applies(when: dict[str, Any]) -> None:
    assert rule(**when).applies(FAILURE)


@pytest.mark.parametrize(
    "when",
    [
        {"sources": [ErrorSource.SITE]},
        {"error_codes": ["1300..1304", "1306"]},
        {"exit_codes": ["0..41"]},
        {"message": "^cannot"},
        {"shares": ["other"]},
        {"labels": {"campaign": "mc24"}},
        {"labels": {"campaign": "mc25", "more": "x"}},
        {"images": ["*/el8:*"]},
        {"tags": ["gpu"]},
        {"sites": ["FNAL"]},
        {"architectures": ["aarch64"]},
        {"error_codes": ["1305"], "message": "cannot open", "sites": ["FNAL"]},
    ],
)
def test_a_rule_does_not_apply_if_one_condition_fails(when: dict[str, Any]) -> None:
    assert not rule(**when).applies(FAILURE)


def test_a_failure_without_a_number_is_in_no_range() -> None:
    lost = Failure(error_code=None)
    assert not rule(error_codes=["0..9999"]).applies(lost) and not rule(exit_codes=["0..255"]).applies(lost)
    assert rule().applies(lost)


def test_the_end_of_a_long_message_counts() -> None:
    long = Failure(error_code=1305, message="first words " + "x" * MOST_MESSAGE + " last words")
    assert rule(message="last words").applies(long) and not rule(message="first words").applies(long)


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
def test_every_error_has_a_source(code: ErrorCode) -> None:
    found = source_of(code)
    assert (found == ErrorSource.PAYLOAD) == ERRORS[code].payload
    assert source_of(ErrorCode.STATE_TIMEOUT) == ErrorSource.SERVER
    assert source_of(ErrorCode.HEARTBEAT_LOST) == ErrorSource.PILOT
    assert source_of(None) == ErrorSource.NONE and source_of(424242) == ErrorSource.PAYLOAD


# ---------------------------------------------------------------- what rules ask for


def asked(*rules: Rule, failure: Failure = FAILURE, places: World = NOWHERE) -> Verdict:
    return judge(rules, failure, places).verdict


def test_no_rule_asks_for_nothing() -> None:
    assert judge([], FAILURE, NOWHERE) == Judgement()


def test_memory_grows_by_factor_and_step_up_to_the_cap() -> None:
    assert asked(rule(MoreMemory(factor=1.5, cap_mb=10_000))).memory_mb == 3000
    assert asked(rule(MoreMemory(factor=1.5, step_mb=100, cap_mb=10_000))).memory_mb == 3100
    assert asked(rule(MoreMemory(step_mb=500, cap_mb=10_000))).memory_mb == 2500
    assert asked(rule(MoreMemory(factor=4, cap_mb=5000))).memory_mb == 5000


@pytest.mark.parametrize("cap", [1999, 2000])
def test_at_the_cap_the_unit_fails(cap: int) -> None:
    found = asked(rule(MoreMemory(factor=2, cap_mb=cap), "oom"))
    assert found.memory_mb == 0 and "2000 MB were not enough" in found.last and "oom" in found.last
    found = asked(rule(MoreTime(factor=2, cap_s=3600), "late"))
    assert found.wall_s == 0 and "3600 s were not enough" in found.last


def test_memory_grows_to_the_largest_queue_before_it_outgrows_it() -> None:
    grows = rule(MoreMemory(factor=2, cap_mb=100_000))
    assert asked(grows, places=world({"memory_mb": 2500}, {"memory_mb": 3000})).memory_mb == 3000
    assert asked(grows, places=world({"memory_mb": 2000})).memory_mb == 4000
    assert asked(grows, places=world({"memory_mb": 2500}, {"memory_mb": 0})).memory_mb == 4000
    offline = {"memory_mb": 8000, "status": ResourceState.OFFLINE}
    assert asked(grows, places=world({"memory_mb": 3000}, offline)).memory_mb == 3000


def test_time_grows_from_what_was_used_if_the_task_names_none() -> None:
    grows = rule(MoreTime(factor=2, cap_s=100_000))
    assert asked(grows).wall_s == 7200
    assert asked(grows, failure=changed(wall_s=0, ran_s=1000.4)).wall_s == 2002
    assert asked(grows, failure=changed(wall_s=0, ran_s=200_000.0)).last


def changed(**changes: Any) -> Failure:
    return replace(FAILURE, **changes)


def test_of_each_kind_the_first_rule_that_applies_counts() -> None:
    rules = [
        rule(MoreMemory(factor=9, cap_mb=90_000), "elsewhere", sites=["FNAL"]),
        rule(MoreMemory(factor=2, cap_mb=90_000), "first"),
        rule(MoreMemory(factor=3, cap_mb=90_000), "second"),
        rule(MoreTime(factor=2, cap_s=90_000), "time"),
        rule(LimitRetry(4), "limit"),
    ]
    found = judge(rules, FAILURE, NOWHERE)
    assert found.verdict == Verdict(limit=4, memory_mb=4000, wall_s=7200)
    assert [each.rule for each in found.applied] == ["first", "time", "limit"]


def test_a_passive_rule_is_told_and_does_nothing_nor_hides_another() -> None:
    passive = Rule(RetryRule(name="try", action=NoRetry(), active=False))
    found = judge([passive, rule(LimitRetry(7))], FAILURE, NOWHERE)
    assert found.verdict == Verdict(limit=7)
    assert [(each.rule, each.active) for each in found.applied] == [("try", False), ("r", True)]
    assert found.applied[0].verdict.last


def test_a_limit_lowers_the_cap_of_its_own_fault_only() -> None:
    caps = Caps(payload=3, site=20, pilot=10, preemption=50)
    found = asked(rule(LimitRetry(2)))
    judgement = Judgement(found)
    assert judgement.caps(caps, ErrorCode.PAYLOAD_FAILED) == Caps(2, 20, 10, 50)
    assert judgement.caps(caps, ErrorCode.STAGE_IN_FAILED) == Caps(3, 2, 10, 50)
    assert judgement.caps(caps, ErrorCode.HEARTBEAT_LOST) == Caps(3, 20, 2, 50)
    assert judgement.caps(caps, ErrorCode.UNITS_NOT_PROCESSED) == caps
    assert Judgement(Verdict(limit=9)).caps(caps, ErrorCode.PAYLOAD_FAILED) == caps


def test_a_unit_that_was_given_back_untouched_is_none_of_the_rules() -> None:
    code = ErrorCode.PAYLOAD_FAILED
    assert counted(Attempts(), Attempts(payload=1), code)
    assert not counted(Attempts(), Attempts(preemption=1), code)
    assert counted(Attempts(), Attempts(preemption=1), ErrorCode.PREEMPTED)
    assert not counted(Attempts(), Attempts(), None)


# ---------------------------------------------------------------- plug-ins


def test_a_plug_in_gets_the_failure_and_its_parameters() -> None:
    seen: list[Any] = []

    def action(failure: Failure, parameters: Any) -> Verdict:
        seen.append((failure.site, parameters))
        return Verdict(memory_mb=77)

    spec = RetryRule(name="own", action=CustomAction(plugin="mine", parameters={"a": 1}))
    assert asked(Rule(spec, action)).memory_mb == 77
    assert seen == [("CERN", {"a": 1})]


def test_a_plug_in_that_fails_or_is_gone_changes_nothing_and_is_told() -> None:
    def action(failure: Failure, parameters: Any) -> Verdict:
        raise ZeroDivisionError("oh")

    spec = RetryRule(name="own", action=CustomAction(plugin="mine"))
    for made, words in ((Rule(spec, action), "ZeroDivisionError: oh"), (Rule(spec), "mine")):
        found = judge([made, rule(LimitRetry(3))], FAILURE, NOWHERE)
        assert found.verdict == Verdict(limit=3)
        assert words in found.applied[0].problem


# ---------------------------------------------------------------- what people write


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"when": {"message": "(a+"}}, "$.when.message"),
        ({"when": {"message": r"(a)\1"}}, "$.when.message"),
        ({"when": {"error_codes": ["1305", "1310..1300"]}}, "$.when.error_codes[1]"),
        ({"when": {"exit_codes": ["2..1"]}}, "$.when.exit_codes[0]"),
        ({"action": {"kind": "more_memory", "cap_mb": 10}}, "$.action.factor"),
        ({"action": {"kind": "more_time", "cap_s": 10}}, "$.action.factor"),
        ({"action": {"kind": "custom", "plugin": "none-such"}}, "$.action.plugin"),
    ],
)
def test_a_mistake_is_named_with_its_field(spec: dict[str, Any], path: str) -> None:
    made = msgspec.convert({"name": "r", "action": {"kind": "no_retry"}, **spec}, RetryRule)
    assert [where for where, _ in problems(made, ["known"])] == [path]


@pytest.mark.parametrize(
    "spec",
    [
        {"action": {"kind": "retry"}},
        {"action": {"kind": "limit_retry", "limit": 0}},
        {"action": {"kind": "more_memory", "factor": 0.5, "cap_mb": 10}},
        {"action": {"kind": "more_memory", "factor": 2}},
        {"when": {"error_codes": ["12-13"]}},
        {"when": {"message": "x" * 201}},
        {"when": {"site": ["x"]}},
        {"name": "no blanks"},
        {"colour": "red"},
    ],
)
def test_a_rule_is_read_strictly(spec: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "r", "action": {"kind": "no_retry"}, **spec}, RetryRule)


@given(st.floats(1, 100), st.integers(0, 10_000), st.integers(1, 300_000), st.integers(1, 300_000))
def test_what_grows_grows_and_ends_at_the_cap(factor: float, step: int, cap: int, memory: int) -> None:
    action = MoreMemory(factor=factor, step_mb=step, cap_mb=cap)
    for _ in range(1000):
        found = asked(rule(action), failure=changed(memory_mb=memory))
        if found.last:
            assert memory >= cap
            return
        assert memory < found.memory_mb <= cap
        memory = found.memory_mb
        if factor < 1.1 and step < 100:
            return  # it grows, but slowly
    raise AssertionError("it never came to its cap")


def test_units_that_no_queue_can_hold_are_told() -> None:
    small, large = {"memory_mb": 2000, "wall_s": 100}, {"memory_mb": 9000, "wall_s": 50}
    boundless: dict[str, Any] = {}
    assert outgrown(world(small, large), 9000, 0) == ""
    assert outgrown(world(small, large), 0, 100) == ""
    assert "9000 MB and 100 s" in outgrown(world(small, large), 9000, 100)
    assert outgrown(world(small, large, boundless), 9000, 100) == ""
    assert "9001 MB" in outgrown(world(small, large), 9001, 0)
    assert outgrown(NOWHERE, 1, 0)
