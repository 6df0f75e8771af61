"""The user's and the admin's commands: what they ask of the server, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame, commands, progress
from common.cli.admin import admin
from common.cli.api import Api
from common.cli.show import show
from common.cli.submit import submit
from common.cli.why import why
from common.clock import FrozenClock
from common.http import HttpClient
from common.states import JobState, TaskState, UnitState
from common.wire import (
    EventView,
    JobView,
    Offer,
    OutputView,
    Refusal,
    TaskView,
    UnitView,
    WhyReply,
    WorkflowView,
)

URL = "http://server.test"
WORKFLOW = WorkflowView(
    id=7,
    name="zmumu",
    owner="alice",
    scope="alice",
    created=1_700_000_000.0,
    tasks=[
        TaskView(11, 7, "simulate", TaskState.DONE, units={"done": 40}, jobs={"finished": 20}, input_closed=True),
        TaskView(12, 7, "fit", TaskState.RUNNING, state_reason="[first]", units={"ready": 3, "failed": 1, "done": 2}),
    ],
)


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    token = tmp_path / "token"
    token.write_text("some-token\n")
    token.chmod(0o600)

    def invoke(command: click.Command, *arguments: str) -> Result:
        options = ["--server", URL, "--token-file", str(token)]
        return CliRunner().invoke(command, [*arguments, *options], obj=Frame(config_file=None))

    return invoke


def reply(server: responses.RequestsMock, method: str, path: str, body: object, status: int = 200) -> None:
    kind = "application/json" if status < 400 else "application/problem+json"
    server.add(method, URL + path, body=msgspec.json.encode(body), status=status, content_type=kind)


def sent(server: responses.RequestsMock, index: int = -1) -> Any:
    return json.loads(server.calls[index].request.body or b"null")


def query(server: responses.RequestsMock, index: int = -1) -> dict[str, str]:
    return dict(server.calls[index].request.params)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- show


def test_show_workflow(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/workflows/7", WORKFLOW)
    result = run(show, "workflow", "7")
    assert result.exit_code == 0, result.output
    assert "7 zmumu" in result.output
    assert "40/40 " in result.output and "2/6+" in result.output
    assert "3 ready, 1 failed, 2 done" in result.output
    assert "[first]" in result.output  # brackets are no markup
    assert server.calls[0].request.headers["Authorization"] == "Bearer some-token"


def test_show_as_json_leaves_no_default_out(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/workflows/7", WORKFLOW)
    shown = json.loads(run(show, "workflow", "7", "--json").output)
    assert shown["group"] is None and shown["labels"] == {}
    assert shown["tasks"][0]["requirements"]["cores"] == 1
    assert shown["tasks"][0]["state"] == "done"


def test_lists_follow_the_pages_up_to_the_limit(server: responses.RequestsMock, run: Any) -> None:
    units = [UnitView(id=n, task_id=11, seq=n, state=UnitState.READY) for n in range(3)]
    reply(server, "GET", "/v1/tasks/11/units", {"items": units[:2], "next": 1})
    reply(server, "GET", "/v1/tasks/11/units", {"items": units[2:]})
    result = run(show, "units", "11", "--state", "ready", "--limit", "3")
    assert result.exit_code == 0, result.output
    assert query(server, 0) == {"state": "ready", "limit": "4"}
    assert query(server, 1) == {"state": "ready", "limit": "2", "after": "1"}
    assert len(result.output.splitlines()) == 7 and "more" not in result.output


JOBS = [
    JobView(id=n, task_id=11, state=JobState.FINISHED, queue="q", host="h", pilot_id=3, n_units=1, claimed=1.7e9)
    for n in range(1, 4)
]


def test_a_list_that_the_limit_cut_says_that_there_is_more(server: responses.RequestsMock, run: Any) -> None:
    """A bug: the oldest were listed as if they were all."""
    reply(server, "GET", "/v1/jobs", {"items": JOBS})
    result = run(show, "jobs", "--limit", "2")
    assert result.output.splitlines()[-1] == (
        "… more: the first 2 are shown; --limit N shows more; --newest shows the last ones"
    )
    assert query(server) == {"limit": "3"}
    assert [line.split()[0] for line in result.output.splitlines()[3:5]] == ["1", "2"]
    as_json = run(show, "jobs", "--limit", "2", "--json")
    assert [job["id"] for job in json.loads(as_json.stdout)] == [1, 2]
    assert "… more" in as_json.stderr
    assert "more" not in run(show, "jobs", "--limit", "3").output


def test_the_newest_are_found_behind_all_others(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/jobs", {"items": JOBS[:2], "next": 2})
    reply(server, "GET", "/v1/jobs", {"items": JOBS[2:]})
    lines = run(show, "jobs", "--task", "11", "--newest", "--limit", "2").output.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["2", "3"]
    assert lines[-1] == "… more: the newest 2 of 3 are shown; --limit N shows more"
    assert query(server) == {"task": "11", "after": "2", "limit": "500"}


def test_the_newest_of_too_many_are_not_looked_for(
    server: responses.RequestsMock, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("api", "show"):
        monkeypatch.setattr(f"common.cli.{module}.NEWEST_OF", 2)
    reply(server, "GET", "/v1/events", {"items": [EventView(n, 1.7e9, "state", "job", "5") for n in range(3)]})
    result = run(show, "events", "--newest")
    assert result.exit_code == 2 and "narrow the list" in result.output


def test_tables_have_no_trailing_blanks_outside_a_terminal(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/jobs", {"items": JOBS})
    reply(server, "GET", "/v1/jobs/1", JOBS[0])
    for output in (run(show, "jobs").output, run(show, "job", "1").output):
        assert [line for line in output.splitlines() if line != line.rstrip()] == []


def test_show_job_names_the_error(server: responses.RequestsMock, run: Any) -> None:
    job = JobView(
        id=5,
        task_id=11,
        state=JobState.FAILED,
        queue="local",
        host="node1",
        pilot_id=3,
        n_units=2,
        claimed=1.7e9,
        exit_code=1,
        error_code=1305,
        metrics={"wall_s": 1.23456},
    )
    reply(server, "GET", "/v1/jobs/5", job)
    result = run(show, "job", "5")
    assert "1305 PAYLOAD_FAILED: The payload ended with a non-zero exit code" in result.output
    assert "wall_s 1.235" in result.output
    assert "exit code" in result.output


def test_show_lists(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/workflows", {"items": [WORKFLOW]})
    assert "simulate done, fit running" in run(show, "workflows").output
    reply(server, "GET", "/v1/tasks", {"items": WORKFLOW.tasks})
    assert "fit" in run(show, "tasks", "--workflow", "7").output
    assert query(server) == {"workflow": "7", "limit": "101"}
    reply(server, "GET", "/v1/tasks/12", WORKFLOW.tasks[1])
    assert "12 fit (workflow 7)" in run(show, "task", "12").output
    output = OutputView("alice:11.5.z.png", 11, 5, "output", "disk", "file:///d/z.png", 1500, "adler32:00000001")
    reply(server, "GET", "/v1/tasks/11/outputs", {"items": [output]})
    assert "file:///d/z.png" in run(show, "outputs", "11").output
    event = EventView(1, 1.7e9, "state", "job", "5", source="sent", target="running", detail={"why": ["x"]})
    reply(server, "GET", "/v1/events", {"items": [event]})
    assert "job 5" in run(show, "events", "--job", "5").output
    assert query(server) == {"job": "5", "limit": "101"}
    reply(server, "GET", "/v1/jobs", {"items": []})
    assert "nothing found" in run(show, "jobs", "--task", "11", "--state", "running").output


def test_an_unknown_state_is_refused_before_the_server_is_asked(server: responses.RequestsMock, run: Any) -> None:
    result = run(show, "units", "11", "--state", "redy")
    assert result.exit_code == 2 and "'redy' is not one of" in result.output


# ---------------------------------------------------------------- why


def test_why_queue_names_the_filter_and_its_words(server: responses.RequestsMock, run: Any) -> None:
    answer = WhyReply(
        queue="local",
        offer=Offer(cores=4, memory_mb=2000),
        refusals=[Refusal(11, 3, "memory", "needs 4000 MiB, the slot has 2000")],
        matched=[Refusal(12, 4, "", "rank 101.0")],
        note="the queue is online",
    )
    reply(server, "GET", "/v1/queues/local/why", answer)
    result = run(why, "--queue", "local", "--cores", "4", "--memory", "2000MiB", "--tag", "a", "--tag", "b")
    assert result.exit_code == 0, result.output
    assert query(server) == {"cores": "4", "memory_mb": "2000", "tags": "a,b"}
    assert "memory" in result.output and "needs 4000 MiB, the slot has 2000" in result.output
    assert "cores 4, memory_mb 2000" in result.output
    assert "It may claim from" in result.output and "the queue is online" in result.output


def test_why_task(server: responses.RequestsMock, run: Any) -> None:
    refused = WhyReply("far", Offer(), [Refusal(11, 3, "distance", "101 is never")])
    reply(server, "GET", "/v1/tasks/11/why", {"items": [WhyReply("near", Offer()), refused]})
    output = run(why, "--task", "11").output
    assert "queue near" in output and "There are no ready units" in output
    assert "queue far" in output and "101 is never" in output


@pytest.mark.parametrize("arguments", [(), ("--queue", "q", "--task", "1"), ("--task", "1", "--cores", "2")])
def test_why_wants_one_thing(server: responses.RequestsMock, run: Any, arguments: tuple[str, ...]) -> None:
    assert run(why, *arguments).exit_code == 2


def test_a_size_without_a_unit_is_refused(server: responses.RequestsMock, run: Any) -> None:
    result = run(why, "--queue", "q", "--memory", "2000")
    assert result.exit_code == 2 and "has no unit" in result.output


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("name", ["pause", "resume", "kill", "retry"])
def test_commands_to_tasks(server: responses.RequestsMock, run: Any, name: str) -> None:
    reply(server, "POST", "/v1/tasks/12:command", WORKFLOW.tasks[1])
    result = run(getattr(commands, name), "12", "--reason", "storage is down")
    assert result.exit_code == 0, result.output
    assert sent(server) == {"command": name, "reason": "storage is down"}
    assert "fit" in result.output


# ---------------------------------------------------------------- admin


def test_set_makes_a_queue(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/queues", {"items": [{"name": "p", "site": "here"}]})
    reply(server, "PUT", "/v1/queues/q", {"name": "q", "site": "here"})
    arguments = ("--site", "here", "--cores", "8", "--memory", "16GiB", "--wall", "2d", "--tag", "a", "--tag", "b")
    result = run(admin, "queue", "set", "q", *arguments)
    assert result.exit_code == 0, result.output
    assert sent(server) == {
        "name": "q", "site": "here", "cores": 8, "memory_mb": 16384, "wall_s": 172800, "tags": ["a", "b"],
    }  # fmt: skip


def test_set_changes_only_what_the_options_name(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/queues", {"items": [{"name": "q", "site": "here", "cores": 8, "tags": ["a"]}]})
    reply(server, "PUT", "/v1/queues/q", {"name": "q", "site": "here"})
    run(admin, "queue", "set", "q", "--status", "paused")
    assert sent(server) == {"name": "q", "site": "here", "cores": 8, "tags": ["a"], "status": "paused"}


def test_set_from_a_file_replaces_all(server: responses.RequestsMock, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "disk.toml"
    file.write_text('site = "here"\n[[endpoints]]\nurl = "root://h//d"\nactivities = ["read_lan"]\n')
    reply(server, "PUT", "/v1/storages/disk", {"name": "disk", "site": "here", "endpoints": [{"url": "root://h//d"}]})
    result = run(admin, "storage", "set", "disk", "--file", str(file))
    assert result.exit_code == 0, result.output
    endpoint = {"url": "root://h//d", "activities": ["read_lan"]}
    assert sent(server) == {"name": "disk", "site": "here", "endpoints": [endpoint]}


def test_a_file_with_an_unknown_field_is_refused(server: responses.RequestsMock, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text('{"site": "here", "coers": 3}')
    result = run(admin, "queue", "set", "q", "--file", str(file))
    assert result.exit_code == 2
    assert f"{file}: coers: unknown field; did you mean 'cores'?" in result.output


def test_a_file_for_another_name_is_refused(server: responses.RequestsMock, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text('name = "p"\nsite = "here"\n')
    result = run(admin, "queue", "set", "q", "--file", str(file))
    assert result.exit_code == 2 and "make them agree" in result.output


def test_a_new_queue_without_a_site_is_refused(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/queues", {"items": [{"name": "p", "site": "here"}]})
    result = run(admin, "queue", "set", "q", "--cores", "2")
    assert result.exit_code == 2 and "queue q: site: this field is required" in result.output


def test_site_storage_share(server: responses.RequestsMock, run: Any) -> None:
    for kind in ("sites", "storages", "shares"):
        reply(server, "GET", f"/v1/{kind}", {"items": []})
    reply(server, "PUT", "/v1/sites/here", {"name": "here"})
    assert run(admin, "site", "set", "here", "--distance", "disk=0", "--distance", "tape=50").exit_code == 0
    assert sent(server) == {"name": "here", "distances": {"disk": 0, "tape": 50}}
    reply(server, "PUT", "/v1/storages/disk", {"name": "disk", "site": "here", "endpoints": [{"url": "file:///d"}]})
    assert run(admin, "storage", "set", "disk", "--site", "here", "--endpoint", "file:///d").exit_code == 0
    assert [endpoint["url"] for endpoint in sent(server)["endpoints"]] == ["file:///d"]
    reply(server, "PUT", "/v1/shares/muons", {"name": "muons"})
    assert run(admin, "share", "set", "muons", "--parent", "all", "--weight", "2.5").exit_code == 0
    assert sent(server) == {"name": "muons", "parent": "all", "weight": 2.5}
    assert run(admin, "site", "set", "here", "--distance", "disk").exit_code == 2


def test_a_path_given_as_an_endpoint_is_answered_with_its_url(server: responses.RequestsMock, run: Any) -> None:
    """A bug: it spoke of characters that are not allowed."""
    reply(server, "GET", "/v1/storages", {"items": []})
    result = run(admin, "storage", "set", "disk", "--site", "here", "--endpoint", "/tmp/x y")
    assert result.exit_code == 2
    assert "endpoints[0].url: '/tmp/x y' is no URL: write file:///tmp/x%20y" in result.output
    result = run(admin, "storage", "set", "/disk", "--site", "here", "--endpoint", "file:///d")
    assert "name: it has characters that are not allowed here" in result.output


def test_list_show_delete(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "GET", "/v1/sites", {"items": [{"name": "here", "distances": {"disk": 0}}]})
    assert "disk 0" in run(admin, "site", "list").output
    reply(server, "GET", "/v1/queues", {"items": [{"name": "q", "site": "here"}]})
    assert "any" in run(admin, "queue", "list").output
    assert "there is no site 'there'" in run(admin, "site", "show", "there").output
    assert json.loads(run(admin, "site", "show", "here", "--json").output)["status"] == "online"
    reply(server, "DELETE", "/v1/sites/here", None)
    assert "site here is deleted" in run(admin, "site", "delete", "here").output


# ---------------------------------------------------------------- submit and its progress


@pytest.fixture
def workflow_file(tmp_path: Path) -> Path:
    file = tmp_path / "w.toml"
    file.write_text('name = "w"\n[[stage]]\nname = "s"\ninput = "single"\ncommand = ["true"]\n')
    return file


def test_submit_sends_a_request_id(server: responses.RequestsMock, run: Any, workflow_file: Path) -> None:
    reply(server, "POST", "/v1/workflows", WORKFLOW, 201)
    reply(server, "POST", "/v1/workflows", WORKFLOW, 201)
    assert "workflow 7" in run(submit, str(workflow_file)).output
    run(submit, str(workflow_file))
    first, second = sent(server, 0), sent(server, 1)
    assert (first["stages"][0]["name"], first["stages"][0]["input"]) == ("s", {"kind": "single"})
    assert len(first["request_id"]) >= 16
    assert first["request_id"] != second["request_id"]


def test_submit_repeats_the_same_request_after_a_lost_answer(
    server: responses.RequestsMock, run: Any, workflow_file: Path
) -> None:
    server.add("POST", f"{URL}/v1/workflows", status=503)
    reply(server, "POST", "/v1/workflows", WORKFLOW, 201)
    assert run(submit, str(workflow_file)).exit_code == 0
    assert sent(server, 0) == sent(server, 1)


def test_submit_of_a_wrong_file_asks_nothing(server: responses.RequestsMock, run: Any, tmp_path: Path) -> None:
    result = run(submit, str(tmp_path / "gone.toml"))
    assert result.exit_code == 2 and "gone.toml: cannot be read" in result.output


@pytest.mark.parametrize(("state", "code"), [(TaskState.DONE, 0), (TaskState.FINISHED, 1)])
def test_follow_tells_by_its_exit_code(
    server: responses.RequestsMock, run: Any, workflow_file: Path, state: TaskState, code: int
) -> None:
    ended = msgspec.structs.replace(WORKFLOW, tasks=[msgspec.structs.replace(WORKFLOW.tasks[0], state=state)])
    reply(server, "POST", "/v1/workflows", WORKFLOW, 201)
    reply(server, "GET", "/v1/workflows/7", ended)
    result = run(submit, str(workflow_file), "--follow")
    assert result.exit_code == code, result.output
    assert f"simulate {state.value} 40/40" in result.output


def test_watch_ends_with_the_workflow_and_computes_the_rate(server: responses.RequestsMock) -> None:
    clock = FrozenClock()
    reply(server, "GET", "/v1/workflows/7", WORKFLOW)
    reply(server, "GET", "/v1/workflows/7", msgspec.structs.replace(WORKFLOW, tasks=WORKFLOW.tasks[:1]))

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        return False

    seen = list(progress.watch(Api(HttpClient(URL)), 7, wait, interval_s=4.0, clock=clock, pilots=lambda: 2))
    assert [snapshot.ended for snapshot in seen] == [False, True]
    assert seen[1].rate == 5.0  # 20 jobs in 4 s
    assert progress.line(seen[1]) == "simulate done 40/40 (0 running) | 4s · 2 pilots · 20 jobs · 5.0 jobs/s"
    assert "1 failed" in progress.line(seen[0])


def test_watch_gives_up_when_told(server: responses.RequestsMock) -> None:
    reply(server, "GET", "/v1/workflows/7", WORKFLOW)
    assert len(list(progress.watch(Api(HttpClient(URL)), 7, lambda seconds: True))) == 1
