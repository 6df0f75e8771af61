"""Rules give new tasks their share, priority and labels."""

from __future__ import annotations

from typing import Any

import pytest

from common.wire import CounterInput, StageSpec, TaggingCondition, TaggingRule, Tags, WorkflowRequest
from server.engine.tagging import problems, tag

SHARES = {"default", "mc", "urgent"}


def stage(name: str = "gen", **more: Any) -> StageSpec:
    return StageSpec(name=name, input=CounterInput(1), command=["x"], **more)


def workflow(*stages: StageSpec, **more: Any) -> WorkflowRequest:
    return WorkflowRequest(name="run3-mc", stages=list(stages or (stage(),)), **more)


def rule(
    name: str = "r", gives: Tags | None = None, position: int = 100, active: bool = True, **when: Any
) -> TaggingRule:
    return TaggingRule(
        name=name, set=gives or Tags(share="mc"), when=TaggingCondition(**when), position=position, active=active
    )


def shares(request: WorkflowRequest, *rules: TaggingRule, owner: str = "ann") -> list[str]:
    return [each.share for each in tag(rules, owner, "user.ann", request, SHARES).stages]


@pytest.mark.parametrize(
    ("when", "applies"),
    [
        ({}, True),
        ({"owner": "^ann$"}, True),
        ({"owner": "^an$"}, False),
        ({"group": "^phys"}, True),
        ({"workflow": "mc"}, True),
        ({"workflow": "^mc"}, False),
        ({"stage": "gen|sim"}, True),
        ({"image": "."}, False),
        ({"scope": "user\\.ann"}, True),
        ({"share": "^default$"}, True),
        ({"labels": {"campaign": "^24"}}, True),
        ({"labels": {"campaign": "^25"}}, False),
        ({"labels": {"other": ""}}, False),
        ({"attributes": {"energy": "^13\\.6$"}}, True),
        ({"attributes": {"kind": "full"}}, True),
        ({"owner": "ann", "workflow": "data"}, False),
    ],
)
def test_a_rule_applies_when_all_that_it_names_matches(when: dict[str, Any], applies: bool) -> None:
    request = workflow(
        stage(attributes={"energy": 13.6, "kind": "fullsim"}), group="physics", labels={"campaign": "24a"}
    )
    assert shares(request, rule(**when)) == ["mc" if applies else "default"]


def test_the_first_rule_that_gives_something_counts_for_it() -> None:
    rules = [
        rule("a", Tags(share="urgent")),
        rule("b", Tags(share="mc", priority=5, labels={"x": "b", "y": "b"})),
        rule("c", Tags(priority=9, labels={"x": "c", "z": "c"})),
        rule("off", Tags(labels={"off": "1"}), active=False),
    ]
    made = tag(rules, "ann", "s", workflow(labels={"x": "mine", "own": "1"}), SHARES)
    assert (made.stages[0].share, made.stages[0].priority) == ("urgent", 5)
    assert made.labels == {"x": "b", "y": "b", "z": "c", "own": "1"}


def test_each_stage_is_tagged_by_itself() -> None:
    request = workflow(stage("gen"), stage("merge"))
    assert shares(request, rule(stage="merge")) == ["default", "mc"]


def test_a_share_that_was_deleted_since_is_not_given() -> None:
    assert shares(workflow(), rule(gives=Tags(share="gone"))) == ["default"]
    assert shares(workflow(), rule(gives=Tags(share="gone")), rule("s")) == ["mc"]


def test_without_rules_nothing_changes() -> None:
    request = workflow(stage(share="mc", priority=3), labels={"a": "b"})
    assert tag([], "ann", "s", request, SHARES) == request


@pytest.mark.parametrize(
    ("made", "paths"),
    [
        (rule(), []),
        (rule(gives=Tags()), ["$.set"]),
        (rule(gives=Tags(share="gone")), ["$.set.share"]),
        (rule(owner="(", labels={"a": "("}), ["$.when.owner", "$.when.labels.a"]),
    ],
)
def test_what_is_wrong_with_a_rule_is_named(made: TaggingRule, paths: list[str]) -> None:
    assert [path for path, _ in problems(made, SHARES)] == paths
