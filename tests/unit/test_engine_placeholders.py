"""Each placeholder of prun: what it stands for, what is refused, what is left alone."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from common.placeholders import JobFacts, expand, facts_of, fill_in
from common.wire import (
    AssignedFile,
    AssignedUnit,
    Assignment,
    CounterInput,
    FilesInput,
    Needs,
    OutputPattern,
    ProcessSpec,
    ProcessWhen,
    SecondaryInput,
    StageSpec,
    Transformation,
)
from server.engine.placeholders import has_placeholders, output_name_problem, placeholder_problems

FACTS = JobFacts(
    task_id=12,
    number=344,
    inputs=["a.root", "b.root"],
    streams={"IN2": ["x", "y"], "CAVIN": ["c"]},
    events=500,
    skip_events=250,
    first_event=1000,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("%IN", "a.root,b.root"),
        ("--in=%IN,z", "--in=a.root,b.root,z"),
        ("%IN:7", "a.root,b.root:7"),
        ("%IN2 %CAVIN", "x,y c"),
        ("%OUT.hist.root", "12._000345.hist.root"),
        ("%RNDM:100", "444"),
        ("%RNDM=100", "444"),
        ("seed%RNDM:0.txt", "seed344.txt"),
        ("%RNDM", "%RNDM"),
        ("%MAXEVENTS %SKIPEVENTS", "500 250"),
        ("%FIRSTEVENT:1", "1001"),
        ("%INPUT %in %d 100% %% %3", "%INPUT %in %d 100% %% %3"),
        ("", ""),
    ],
)
def test_what_a_placeholder_becomes(text: str, wanted: str) -> None:
    assert expand(text, FACTS) == wanted


def test_unknown_numbers_of_events_are_all_events() -> None:
    assert expand("%MAXEVENTS", JobFacts(1)) == "-1"


def assignment(*units: AssignedUnit, **more: Any) -> Assignment:
    return Assignment(
        job_id=7, task_id=12, workflow_id=1, stage="s", scope="u", units=list(units), requirements=Needs(), **more
    )


def test_facts_come_from_what_the_pilot_is_told() -> None:
    file = AssignedFile("user:a.root")
    ranges = [AssignedUnit(1, 4, file=file, events=250, first_event=n) for n in (250, 500)]
    facts = facts_of(assignment(*ranges, secondary={"IN2": [AssignedFile("s:x")]}))
    assert facts == JobFacts(
        12, 4, inputs=["a.root"], streams={"IN2": ["x"]}, events=500, skip_events=250, first_event=1000
    )
    assert facts_of(assignment(AssignedUnit(1, 0, counter=9), AssignedUnit(2, 1, counter=10, events=5))).events is None


def spec(command: Optional[list[str]], **more: Any) -> StageSpec:
    more.setdefault("input", CounterInput(1))
    return StageSpec(name="s", command=command, **more)


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        (spec(["run", "%DB:ds:file"]), "command[1]"),
        (spec(["%SEGMENT_NAME"]), "command[0]"),
        (spec(["%CAVIN"]), "command[0]"),
        (spec(["%RNDM"]), "command[0]"),
        (spec(["%IN"]), "command[0]"),
        (spec(["run"], environment={"A": "%FIRSTEVENT"}), "environment.A"),
        (spec(["%OUT.root"], outputs=[OutputPattern("*.txt")]), "command[0]"),
    ],
)
def test_what_would_silently_mean_nothing_is_refused(stage: StageSpec, where: str) -> None:
    assert [field for field, _ in placeholder_problems(stage)] == [where]


@pytest.mark.parametrize(
    "stage",
    [
        spec(["date", "+%Y-%m-%d", "%H", "50%"]),
        spec(["%OUT.hist.root"], outputs=[OutputPattern("*.root")]),
        spec(["%IN"], input=FilesInput([])),
        spec(["%CAVIN"], secondary_inputs=[SecondaryInput(name="CAVIN")]),
        spec(["%RNDM:1", "%FIRSTEVENT=0", "%MAXEVENTS"]),
    ],
)
def test_what_is_the_payloads_own_is_left_alone(stage: StageSpec) -> None:
    assert list(placeholder_problems(stage)) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, ""),
        ("u.%OUT.root", ""),
        ("u.root", ""),
        ("%OUT.txt", "does not take"),
        ("u%OUT%OUT.root", "another %"),
        ("u%RNDM:1.root", "another %"),
    ],
)
def test_the_name_of_an_output_fits_its_pattern(name: Optional[str], words: str) -> None:
    problem = output_name_problem(OutputPattern("u*.root", name=name))
    assert bool(problem) is bool(words) and words in problem


def test_a_name_that_the_program_is_told_is_an_output_of_it() -> None:
    outputs = [OutputPattern("u.*.root", name="u.%OUT.root")]
    stage = StageSpec(name="s", input=CounterInput(1), command=["run", "--to=u.%OUT.root"], outputs=outputs)
    assert list(placeholder_problems(stage)) == []


def test_a_stage_without_a_per_cent_sign_costs_nothing() -> None:
    assert not has_placeholders(spec(["run", "{inputs}"]))
    assert has_placeholders(spec(["run"], environment={"A": "%IN"}))


def test_placeholders_reach_transformations_and_processes_too() -> None:
    process = ProcessSpec(command=["check", "%IN"], when=ProcessWhen.BEFORE)
    program = Transformation(url="https://x.example/run.sh", parameters=["%RNDM:5"])
    task = spec(None, transformation=program, processes=[process], input=FilesInput())
    assert has_placeholders(task) and list(placeholder_problems(task)) == []
    made = Assignment(
        job_id=1,
        task_id=2,
        workflow_id=3,
        stage="s",
        scope="u",
        units=[AssignedUnit(1, 3, file=AssignedFile("u:a"))],
        requirements=Needs(),
        transformation=program,
        processes=[process],
        environment={"N": "%RNDM:1"},
    )
    fill_in(made)
    assert made.transformation is not None and made.transformation.parameters == ["8"]
    assert made.processes[0].command == ["check", "a"] and made.environment == {"N": "4"}
    assert program.parameters == ["%RNDM:5"], "the stage itself stays as it is"


def test_an_unsupported_placeholder_of_a_process_is_named_with_its_place() -> None:
    process = ProcessSpec(command=["check", "%DB"], when=ProcessWhen.AFTER)
    problems = dict(placeholder_problems(spec(["run"], processes=[process])))
    assert list(problems) == ["processes[0].command[1]"]
