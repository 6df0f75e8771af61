"""Bad workflows are refused whole, and each problem names its field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.wire import Endpoint, StorageSpec, WorkflowRequest
from server.engine.workflows import check_workflow
from server.engine.world import World

WORLD = World(
    storages={name: StorageSpec(name=name, site="S", endpoints=[Endpoint("root://h//d")]) for name in ("SE1", "SE2")}
)


def file(did: str = "test:a.root", storage: str = "SE1", path: str = "a.root") -> dict[str, Any]:
    return {"did": did, "replicas": [{"storage": storage, "path": path}]}


def stage(name: str = "s0", **fields: Any) -> dict[str, Any]:
    plain = {"name": name, "input": {"kind": "single"}, "command": ["true"], "outputs": [{"pattern": "*.root"}]}
    return {key: value for key, value in {**plain, **fields}.items() if value is not None}


def after(name: str, source: str, **fields: Any) -> dict[str, Any]:
    return stage(name, input={"kind": "stage", "stage": source}, **fields)


def problems(*stages: dict[str, Any], world: World = WORLD) -> list[tuple[str, str]]:
    request = msgspec.convert({"name": "w", "stages": list(stages)}, WorkflowRequest)
    return [(problem.path, problem.message) for problem in check_workflow(request, world, ["default", "prod"])]


@pytest.mark.parametrize(
    "stages",
    [
        [stage()],
        [stage(command=None, jobscript="#!/bin/sh\nexit 0\n")],
        [stage(command=None, jobscript="#!/usr/bin/env python3")],
        [stage(command=None, jobscript="#!/bin/sh\nprintf 'a\r\n'\r\n")],
        [stage(input={"kind": "counter", "count": 1})],
        [stage(input={"kind": "files", "files": [file(), file("test:b.root", "SE2", "x/..y/b.root")]})],
        [stage("a"), after("b", "a"), after("c", "b", merge={"min_files": 2, "max_files": 2})],
        [after("c", "b"), after("b", "a"), stage("a")],
        [stage("a"), after("b", "a"), after("c", "a")],
        [stage(common_input=[file()], input={"kind": "files", "files": [file()]})],
        [stage(environment={"MY_SEED": "1", "_x": ""}, share="prod")],
        [stage(outputs=[{"pattern": "a", "storage": "SE2"}, {"pattern": "b"}])],
        [stage(outputs=[])],
    ],
)
def test_a_good_workflow_has_no_problems(stages: list[dict[str, Any]]) -> None:
    assert problems(*stages) == []


TWO_FILES = {"kind": "files", "files": [file(), file()]}

BAD: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "no payload": ([stage(command=None)], "$.stages[0]", "either jobscript"),
    "two payloads": ([stage(jobscript="#!/bin/sh")], "$.stages[0]", "either jobscript"),
    "no shebang": ([stage(command=None, jobscript="echo hello")], "$.stages[0].jobscript", "shebang"),
    "empty jobscript": ([stage(command=None, jobscript="")], "$.stages[0].jobscript", "shebang"),
    "blank before the shebang": ([stage(command=None, jobscript="\n#!/bin/sh\n")], "$.stages[0].jobscript", "shebang"),
    "byte order mark": ([stage(command=None, jobscript="\ufeff#!/bin/sh\n")], "$.stages[0].jobscript", "shebang"),
    "carriage return": ([stage(command=None, jobscript="#!/bin/sh\r\ntrue\r\n")], "$.stages[0].jobscript", "Unix"),
    "reserved variable": ([stage(environment={"PILOTAGE_JOB": "1"})], "$.stages[0].environment", "PILOTAGE_JOB"),
    "bad variable": ([stage(environment={"A=B": "1"})], "$.stages[0].environment", "A=B"),
    "empty variable name": ([stage(environment={"": "1"})], "$.stages[0].environment", "''"),
    "pattern twice": ([stage(outputs=[{"pattern": "a"}, {"pattern": "a"}])], "$.stages[0].outputs", "2 times"),
    "name twice": (
        [stage(outputs=[{"pattern": "a*", "name": "a.%OUT"}, {"pattern": "*", "name": "a.%OUT"}])],
        "$.stages[0].outputs",
        "2 times",
    ),
    "a name that its pattern does not take": (
        [stage(outputs=[{"pattern": "*.root", "name": "%OUT.txt"}])],
        "$.stages[0].outputs[0].name",
        "does not take",
    ),
    "no files": ([stage(input={"kind": "files", "files": []})], "$.stages[0].input.files", "empty"),
    "no units": ([stage(input={"kind": "counter", "count": 0})], "$.stages[0].input.count", "at least one"),
    "duplicate DID": ([stage(input=TWO_FILES)], "$.stages[0].input.files[1].did", "at [0]"),
    "duplicate common input": ([stage(common_input=[file(), file()])], "$.stages[0].common_input[1].did", "at [0]"),
    "unknown replica storage": (
        [stage(input={"kind": "files", "files": [file(), file("test:b", "NOPE")]})],
        "$.stages[0].input.files[1].replicas[0].storage",
        "no storage 'NOPE'; known: SE1, SE2",
    ),
    "unknown common input storage": (
        [stage(common_input=[file(storage="NOPE")])],
        "$.stages[0].common_input[0].replicas[0].storage",
        "no storage 'NOPE'",
    ),
    "unknown output storage": (
        [stage(outputs=[{"pattern": "a"}, {"pattern": "b", "storage": "NOPE"}])],
        "$.stages[0].outputs[1].storage",
        "no storage 'NOPE'",
    ),
    "unknown share": ([stage(share="nope")], "$.stages[0].share", "no share 'nope'; known: default, prod"),
    "unknown stage": ([stage("a"), after("b", "nope")], "$.stages[1].input.stage", "'nope'; there are a, b"),
    "a stage that feeds itself": ([after("a", "a")], "$.stages[0].input.stage", "cannot feed itself"),
    "a source without outputs": ([stage("a", outputs=[]), after("b", "a")], "$.stages[1].input.stage", "no outputs"),
    "a circle of two": ([after("a", "b"), after("b", "a")], "$.stages", "circle: a -> b -> a"),
    "a circle of three": (
        [after("a", "b"), after("b", "c"), after("c", "a")],
        "$.stages",
        "circle: a -> b -> c -> a",
    ),
    "one name twice": ([stage("a"), stage("b"), stage("a")], "$.stages", "2 stages are called 'a'"),
    "merge upside down": ([stage(merge={"min_files": 3, "max_files": 2})], "$.stages[0].merge", "larger"),
    "out of the storage": (
        [stage(input={"kind": "files", "files": [file(path="x/../../key")]})],
        "$.stages[0].input.files[0].replicas[0].path",
        "'..'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_its_field(name: str) -> None:
    stages, path, words = BAD[name]
    assert [(where, words in message) for where, message in problems(*stages)] == [(path, True)], problems(*stages)


@pytest.mark.parametrize("name", BAD)
def test_the_index_is_that_of_the_bad_stage(name: str) -> None:
    stages, path, _ = BAD[name]
    if path.startswith("$.stages["):
        shifted = [stage("before"), *stages]
        number = int(path[len("$.stages[") :].split("]")[0])
        assert [where for where, _ in problems(*shifted)] == [path.replace(f"[{number}]", f"[{number + 1}]", 1)]


def test_a_tail_that_leads_into_a_circle_is_not_part_of_it() -> None:
    ((_, message),) = problems(after("tail", "a"), after("a", "b"), after("b", "a"))
    assert message.endswith("circle: a -> b -> a")


def test_two_circles_are_two_problems() -> None:
    found = problems(after("a", "b"), after("b", "a"), after("c", "d"), after("d", "c"))
    assert [message.split(": ")[1] for _, message in found] == ["a -> b -> a", "c -> d -> c"]


def test_all_problems_are_told_at_once() -> None:
    found = problems(stage("a", command=None, share="nope"), stage("b", input={"kind": "counter", "count": 0}))
    assert [path for path, _ in found] == ["$.stages[0]", "$.stages[0].share", "$.stages[1].input.count"]


def test_a_world_without_storages_says_so() -> None:
    ((_, message),) = problems(stage(outputs=[{"pattern": "a", "storage": "SE1"}]), world=World())
    assert message.endswith("known: none yet")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(-1, 8), min_size=1, max_size=9))
def test_a_circle_is_found_exactly_when_some_stage_never_reaches_a_beginning(sources: list[int]) -> None:
    links = {n: source % len(sources) if source >= 0 else None for n, source in enumerate(sources)}
    links = {n: None if source == n else source for n, source in links.items()}

    def ends(name: int | None) -> bool:
        for _ in range(len(links) + 1):
            if name is None:
                return True
            name = links[name]
        return False

    made = [stage(f"s{n}") if source is None else after(f"s{n}", f"s{source}") for n, source in links.items()]
    found = problems(*made)
    assert bool(found) is not all(ends(n) for n in links)
    assert all(path == "$.stages" and "circle" in message for path, message in found)
