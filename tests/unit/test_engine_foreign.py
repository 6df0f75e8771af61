"""What pilots of other systems can run, and what their outputs are called."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from common.wire import ForeignTerms, OutputPattern, ProcessSpec, ProcessWhen, SingleInput, StageSpec, Transformation
from server.engine.foreign import kind_refusal, list_problem, outputs_of, plain_name, share_refusal, unsuited
from server.engine.naming import hashed_path


def spec(*patterns: str | OutputPattern, **more: Any) -> StageSpec:
    outputs = [OutputPattern(each) if isinstance(each, str) else each for each in patterns]
    return StageSpec(name="s", input=SingleInput(), outputs=outputs, **{"command": ["run"], **more})


@pytest.mark.parametrize(
    "fine",
    [
        spec(),
        spec("out.root", "hist-1_a+b=c@d~.txt"),
        spec("*.root", command=["run", "%OUT.root"]),
        spec("*.root", command=["run"], environment={"TO": "x/%OUT.root"}),
        spec(OutputPattern("user.*.root", name="user.%OUT.root")),
        spec("out.root", command=None, jobscript="#!/bin/sh\n"),
        spec(command=None, transformation=Transformation(url="https://h/x.sh", checksum="sha256:" + "0" * 64)),
    ],
)
def test_what_they_can_run(fine: StageSpec) -> None:
    assert unsuited(fine) == ""


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (spec("*.root"), "names no file ahead"),
        (spec("*.txt", command=["run", "%OUT.root"]), "*.txt names no file ahead"),
        (spec("out[12].root"), "names no file ahead"),
        (spec("a,b"), "lists cannot hold"),
        (spec("a b"), "lists cannot hold"),
        (spec(OutputPattern("*", name="a,%OUT")), "lists cannot hold"),
        (spec(secrets=["x"]), "secrets"),
        (spec(processes=[ProcessSpec(command=["x"], when=ProcessWhen.BEFORE)]), "processes around the payload"),
        (spec(plugin="dune"), "plug-in"),
        (spec(command=None, probe=True), "our own pilots"),
        (
            spec(command=None, transformation=Transformation(url="https://h/x.sh", checksum="adler32:00000001")),
            "sha256",
        ),
    ],
)
def test_what_they_cannot_run(odd: StageSpec, words: str) -> None:
    assert words in unsuited(odd)


def test_each_output_has_one_name_and_its_pattern() -> None:
    stage = spec("*.root", "out.log", "*.hist.*", command=["run", "%OUT.root", "%OUT.hist.root", "%OUT.hist.txt"])
    found = [(each.name, each.rule.pattern) for each in outputs_of(stage, "7._000003")]
    assert found == [
        ("7._000003.root", "*.root"),
        ("7._000003.hist.root", "*.root"),
        ("out.log", "out.log"),
        ("7._000003.hist.txt", "*.hist.*"),
    ]


def test_an_output_has_the_name_that_its_task_gives_it() -> None:
    """Whatever else the pattern takes: that is for pilots that look what is there."""
    stage = spec(OutputPattern("*.root", name="user.%OUT.root"), command=["run", "%OUT.root"])
    assert [each.name for each in outputs_of(stage, "7._000003")] == ["user.7._000003.root"]


@pytest.mark.parametrize("name", ["", "a,b", "a b", "a/b", "..", ".", "a\nb", "a'b", "$x", "ä"])
def test_names_that_their_lists_cannot_hold(name: str) -> None:
    assert not plain_name(name) and list_problem(["ok", name])


def test_two_inputs_of_one_name_cannot_lie_in_one_folder() -> None:
    assert list_problem(["a", "b"]) == "" and list_problem(["a", "b", "a"]) == "two inputs have the name a"


@pytest.mark.parametrize(
    ("cores", "memory_mb", "refused"),
    [(1, 2000, False), (1, 2001, True), (2, 2000, True), (1, 0, False)],
)
def test_a_kind_of_job_has_bounds(cores: int, memory_mb: int, refused: bool) -> None:
    assert bool(kind_refusal(cores, memory_mb, ForeignTerms(1, 1, 0, 2000))) is refused


def test_a_bound_of_zero_is_none() -> None:
    assert kind_refusal(1000, 10**9, ForeignTerms(min_cores=2)) == ""
    assert (
        kind_refusal(1, 10, ForeignTerms(min_cores=2))
        == "the job needs 1 cores, the pilot asks for jobs with 2 or more"
    )
    assert share_refusal("a", ForeignTerms()) == "" and share_refusal("a", ForeignTerms(shares=["b"]))


def test_a_path_is_that_of_a_deterministic_storage() -> None:
    digest = hashlib.md5(b"mc:1.2.out.root", usedforsecurity=False).hexdigest()
    assert hashed_path("mc", "1.2.out.root") == f"mc/{digest[0:2]}/{digest[2:4]}/1.2.out.root"
