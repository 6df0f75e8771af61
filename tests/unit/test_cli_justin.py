"""``pilotage justin``: what it asks of the server, what it refuses, and our events by justIN's names."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli.jobscript import parse_reference
from common.cli.justin import justin, simple_workflow
from common.cli.justin_events import Row, Seen, rows_of
from common.cli.main import main
from common.states import JobState, TaskState, UnitState
from common.wire import EventView, JobView, OutputView, TaskView, UnitView, WorkflowView

URL = "http://server.test"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate-from-justin.md"
TASK = TaskView(id=9, workflow_id=7, stage="1", state=TaskState.RUNNING)


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        view = WorkflowView(id=504, name="w", owner="u", scope="s")
        mock.add("POST", f"{URL}/v1/workflows", msgspec.json.encode(view), status=201)
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "my.jobscript").write_text("#!/bin/sh\n")
    options = ["--server", URL, "--token-file", str(tmp_path / "token")]
    return lambda *words: CliRunner().invoke(main, ["justin", *words, *options], obj=Frame(config_file=None))


def sent(server: responses.RequestsMock) -> Any:
    return msgspec.json.decode(server.calls[-1].request.body or b"")


def test_every_option_of_a_simple_workflow(server: responses.RequestsMock, run: Callable[..., Result]) -> None:
    words = ["--mql", "files from dune:all limit 10", "--jobscript", "my.jobscript", "--env", "NUM_EVENTS=1"]
    words += [
        "--env",
        "CUT=a=b",
        "--scope",
        "usertests",
        "--max-distance",
        "30",
        "--rss-mb",
        "4000",
        "--processors",
        "2",
    ]
    words += ["--wall-seconds", "7200", "--gpu", "--image", "fnal-wn-el9:latest", "--lifetime-days", "3"]
    words += ["--output-pattern", "*.root:test-$JUSTIN_WORKFLOW_ID-${JUSTIN_STAGE_ID}-$JUSTIN_SCOPE"]
    words += ["--output-pattern", "*.hist", "--output-rse", "MANCHESTER", "--description", "mine"]
    result = run("simple-workflow", *words)
    assert result.exit_code == 0 and result.output == "Workflow ID: 504\n", result.output
    request = sent(server)
    (stage,) = request["stages"]
    assert request["scope"] == "usertests" and request["labels"] == {"description": "mine"} and request["request_id"]
    assert stage["input"]["kind"] == "dataset" and stage["input"]["query"] == "files from dune:all limit 10"
    assert stage["input"]["catalog"] == "metacat" and stage["name"] == "1" and stage["max_attempts"] == 6
    assert stage["environment"] == {"NUM_EVENTS": "1", "CUT": "a=b"} and stage["max_distance"] == 30
    needs = stage["requirements"]
    assert (needs["memory_mb"], needs["cores"], needs["wall_s"]) == (4000, 2, 7200)
    assert needs["gpus"].get("count", 1) == 1
    assert stage["image"] == "/cvmfs/singularity.opensciencegrid.org/fermilab/fnal-wn-el9:latest"
    first, second = stage["outputs"]
    assert first["dataset"] == "test-{workflow}-{stage}-usertests" and second.get("dataset") is None
    for output in (first, second):
        assert (output["optional"], output["lifetime_days"], output["storage"]) == (True, 3, "MANCHESTER")


def test_what_is_not_said_is_as_with_justin(server: responses.RequestsMock, run: Callable[..., Result]) -> None:
    assert run("simple-workflow", "--monte-carlo", "10", "--jobscript", "my.jobscript").exit_code == 0
    (stage,) = sent(server)["stages"]
    assert (stage["input"]["count"], stage["input"]["first"]) == (10, 1)
    needs = stage["requirements"]
    assert (needs["memory_mb"], needs["wall_s"], stage.get("max_distance")) == (2000, 80000, 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--jobscript", "my.jobscript"], "either --mql QUERY or --monte-carlo"),
        (["--jobscript", "my.jobscript", "--mql", "x", "--monte-carlo", "1"], "either --mql QUERY or --monte-carlo"),
        (["--mql", "x"], "either --jobscript FILE or --jobscript-git"),
        (["--mql", "x", "--jobscript", "none.sh"], "none.sh"),
        (["--mql", "x", "--jobscript", "my.jobscript", "--env", "X"], "write NAME=VALUE"),
        (["--mql", "x", "--jobscript", "my.jobscript", "--output-pattern", "*:https://h/d"], "--output-rse"),
        (["--mql", "x", "--jobscript", "my.jobscript", "--output-pattern", "*:a-$JUSTIN_SCOPE"], "not known here"),
        (["--mql", "x", "--jobscript", "my.jobscript", "--output-pattern", "*:a-$JUSTIN_NONE"], "not known here"),
        (["--mql", "x", "--jobscript-git", "DUNE/x.jobscript"], "OWNER/REPOSITORY/path:ref"),
    ],
)
def test_what_cannot_be_said_is_told_and_nothing_is_sent(
    run: Callable[..., Result], words: list[str], told: str
) -> None:
    result = run("simple-workflow", *words)
    assert result.exit_code != 0 and told in " ".join(result.output.split()), result.output


def test_a_jobscript_of_an_owners_repository_is_pinned_to_its_commit(
    server: responses.RequestsMock, run: Callable[..., Result], tmp_path: Path
) -> None:
    place = tmp_path / "git" / "DUNE" / "tools"
    (place / "jobs").mkdir(parents=True)
    (place / "jobs" / "a.jobscript").write_text("#!/bin/sh\necho 1\n")
    git = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for line in ("init --quiet", "add .", "commit --quiet -m x"):
        subprocess.run([*git, *line.split()], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    place_of = ["--git-server", (tmp_path / "git").as_uri()]
    for ref in (head, "HEAD"):
        words = ["--monte-carlo", "1", "--jobscript-git", f"DUNE/tools/jobs/a.jobscript:{ref}", *place_of]
        result = run("simple-workflow", *words)
        assert result.exit_code == 0, result.output
        (stage,) = sent(server)["stages"]
        assert stage["jobscript"] == "#!/bin/sh\necho 1\n" and stage["jobscript_git"]["commit"] == head
    assert parse_reference("DUNE/dune-justin/testing/a.jobscript:01.00") == (
        "https://github.com/DUNE/dune-justin", "testing/a.jobscript", "01.00",
    )  # fmt: skip


# ---------------------------------------------------------------- events


def job(state: JobState, exit_code: int | None = 0) -> JobView:
    return JobView(
        id=5, task_id=9, state=state, queue="q", host="h", pilot_id=3, n_units=1, claimed=10.0, exit_code=exit_code
    )


def event(kind: str, time: float) -> EventView:
    return EventView(id=int(time), time=time, kind=kind, subject="job", subject_id="5", task_id=9, job_id=5)


def unit(state: UnitState, did: str = "s:a") -> UnitView:
    return UnitView(id=1, task_id=9, seq=0, state=state, did=did, job_id=5)


def names(*kinds: str, ended: JobView, state: UnitState) -> list[tuple[str, str]]:
    seen = Seen(
        [ended],
        [unit(state)],
        [OutputView("s:out", 9, 5, "output", "DISK", "u", 1, ""), OutputView("s:log", 9, 5, "log", "DISK", "u", 1, "")],
        [event(kind, 10.0 + number) for number, kind in enumerate(kinds)],
        {3: ("SITE", 4.0)},
    )
    rows = rows_of(TASK, seen)
    assert rows == sorted(rows, key=lambda row: row.time)
    assert rows[0] == Row(4.0, "JOB_SUBMITTED", 7, "1", "5") and all(row.site_name == "SITE" for row in rows[1:])
    return [(row.event, row.file_did) for row in rows[1:]]


WHOLE = [
    ("JOB_STARTED", ""), ("FILE_ALLOCATED", "s:a"), ("JOB_PROCESSING", ""), ("FILE_PROCESSED", "s:a"),
    ("JOB_OUTPUTTING", ""), ("FILE_CREATED", "s:out"), ("JOB_FINISHED", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    "between", [["JOB_STARTING", "JOB_RUNNING", "JOB_HOLDING"], ["JOB_HOLDING"], ["JOB_RUNNING"], []]
)
def test_a_job_that_finished_went_all_the_way_however_rarely_its_pilot_reported(between: list[str]) -> None:
    kinds = ("JOB_CLAIMED", *between, "JOB_FINISHED")
    assert names(*kinds, ended=job(JobState.FINISHED), state=UnitState.DONE) == WHOLE


@pytest.mark.parametrize(
    ("kinds", "exit_code", "unit_state", "last"),
    [
        (["JOB_RUNNING", "JOB_FAILED"], 3, UnitState.READY, ["JOB_SCRIPT_ERROR", "FILE_ALLOCATED_RESET"]),
        (["JOB_RUNNING", "JOB_FAILED"], 3, UnitState.FAILED, ["JOB_SCRIPT_ERROR", "FILE_SET_TO_FAILED"]),
        (["JOB_RUNNING", "JOB_LOST", "JOB_FAILED"], None, UnitState.READY, ["JOB_STALLED_HEARTBEAT", "FILE_ALLOCATED_RESET"]),
        (["JOB_FAILED"], None, UnitState.READY, ["JOB_ABORTED", "FILE_ALLOCATED_RESET"]),
        (["JOB_RUNNING", "JOB_CANCELLED"], None, UnitState.CANCELLED, ["JOB_ABORTED", "FILE_ALLOCATED_RESET"]),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_justins_names(
    kinds: list[str], exit_code: int | None, unit_state: UnitState, last: list[str]
) -> None:
    told = names("JOB_CLAIMED", *kinds, ended=job(JobState.FAILED, exit_code), state=unit_state)
    assert [name for name, _ in told[-2:]] == last and all(name != "JOB_FINISHED" for name, _ in told)


# ---------------------------------------------------------------- the page


def shown() -> list[str]:
    """The commands of the page, their lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("command", [line for line in shown() if "simple-workflow" in line])
def test_the_workflows_of_the_page_are_understood(
    server: responses.RequestsMock, run: Callable[..., Result], command: str
) -> None:
    words = shlex.split(command)
    assert words[:3] == ["pilotage", "justin", "simple-workflow"]
    if "--jobscript-git" in words:  # the reference is of the real place: no test goes there
        at = words.index("--jobscript-git")
        assert parse_reference(words[at + 1])[0].startswith("https://github.com/")
        words[at : at + 2] = ["--jobscript", "my.jobscript"]
    result = run(*words[2:])
    assert result.exit_code == 0, result.output


def test_all_other_commands_of_the_page_exist() -> None:
    others = [line for line in shown() if "simple-workflow" not in line]
    assert others
    for line in others:
        words = shlex.split(line)
        assert words[0] == "pilotage"
        context = main.make_context("pilotage", [], resilient_parsing=True)
        command: Any = main
        for word in words[1:]:
            found = command.get_command(context, word) if hasattr(command, "get_command") else None
            if found is None:
                break
            command = found
        known = {name for parameter in command.params for name in parameter.opts}
        assert command is not main, line
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, line


def test_the_page_names_every_option() -> None:
    text = PAGE.read_text("utf-8")
    for parameter in simple_workflow.params:
        if "--server" not in parameter.opts and not {"--token-file", "--ca-file", "--json", "--help"} & set(
            parameter.opts
        ):
            assert any(option in text for option in parameter.opts), parameter.name
    assert all(name in text for name in justin.commands)
