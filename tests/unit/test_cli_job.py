"""``pilotage job peek``: what it asks for, and what it prints."""

from __future__ import annotations

from typing import Any, Optional

import pytest
import responses

from common.cli.job import job, printable
from common.problem import Problem
from common.states import JobState
from common.wire import PeekAnswer, PeekKind, PeekState, PeekView
from tests.unit.test_cli_commands import query, reply, run, sent, server

__all__ = ["run", "server"]


def view(state: PeekState = PeekState.ANSWERED, answer: Optional[PeekAnswer] = None, **more: Any) -> PeekView:
    values: dict[str, Any] = {
        "peek_id": 3, "job_id": 9, "kind": PeekKind.TAIL, "state": state, "job_state": JobState.RUNNING, "asked": 1e9,
    }  # fmt: skip
    return PeekView(**values | more, answer=answer)


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ([], {"kind": "tail", "path": "stdout"}),
        (["--tail"], {"kind": "tail", "path": "stdout"}),
        (["--tail", "log/a.txt", "--lines", "7"], {"kind": "tail", "path": "log/a.txt", "lines": 7}),
        (["--ls"], {"kind": "ls"}),
        (["--ls", "sub"], {"kind": "ls", "path": "sub"}),
        (["--ps"], {"kind": "ps"}),
        (["--du"], {"kind": "du"}),
        (["--gdb", "17"], {"kind": "gdb", "pid": 17}),
        (["--pilot-log"], {"kind": "pilot-log"}),
    ],
)
def test_what_is_asked_for(
    server: responses.RequestsMock, run: Any, arguments: list[str], body: dict[str, object]
) -> None:
    reply(server, "POST", "/v1/jobs/9/peeks", view(answer=PeekAnswer(text="shown\n")), 201)
    result = run(job, "peek", "9", *arguments)
    assert (result.exit_code, result.output) == (0, "shown\n")
    assert sent(server) == body


def test_the_answer_is_waited_for(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "POST", "/v1/jobs/9/peeks", view(PeekState.WAITING, due_s=42.0), 201)
    reply(server, "GET", "/v1/jobs/9/peeks/3", view(PeekState.WAITING, due_s=42.0))
    reply(server, "GET", "/v1/jobs/9/peeks/3", view(answer=PeekAnswer(text="at last\n", cut=True)))
    result = run(job, "peek", "9")
    assert result.exit_code == 0, result.output
    assert result.stdout == "at last\n"
    assert "heard of within 42 s" in result.stderr and "more than is shown" in result.stderr
    assert query(server) == {"wait_s": "15"}


def test_it_gives_up(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "POST", "/v1/jobs/9/peeks", view(PeekState.WAITING, due_s=1700.0), 201)
    result = run(job, "peek", "9", "--wait", "0")
    assert result.exit_code == 1 and "within 1700 s" in result.output


def test_what_is_added_is_followed_until_the_job_ends(server: responses.RequestsMock, run: Any) -> None:
    path = "/v1/jobs/9/peeks"
    reply(server, "POST", path, view(answer=PeekAnswer(text="one\n", end=4)), 201)
    reply(server, "POST", path, view(answer=PeekAnswer(text="", end=4)), 201)
    reply(server, "POST", path, view(answer=PeekAnswer(text="two\n", end=8, cut=True)), 201)
    reply(server, "POST", path, Problem("Over", 409, "pilotage:conflict", "job 9 is finished"), 409)
    result = run(job, "peek", "9", "--tail", "a.log", "--follow")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\n" and "job 9 is finished" in result.stderr
    assert sent(server) == {"kind": "tail", "path": "a.log", "after": 8}


def test_a_job_that_ended_and_one_that_has_nothing_to_show(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "POST", "/v1/jobs/9/peeks", view(PeekState.OVER, job_state=JobState.FAILED), 201)
    result = run(job, "peek", "9")
    assert result.exit_code == 1 and "job 9 is failed: it ended before its pilot answered" in result.output
    reply(server, "POST", "/v1/jobs/9/peeks", view(answer=PeekAnswer(error="there is no file 'x' (yet)")), 201)
    result = run(job, "peek", "9", "--tail", "x")
    assert result.exit_code == 1 and "there is no file 'x' (yet)" in result.output


@pytest.mark.parametrize("arguments", [["--ps", "--du"], ["--ps", "--follow"], ["--lines", "0"]])
def test_wrong_usage(run: Any, arguments: list[str]) -> None:
    assert run(job, "peek", "9", *arguments).exit_code == 2


def test_a_payload_cannot_command_the_terminal_of_who_looks(server: responses.RequestsMock, run: Any) -> None:
    reply(server, "POST", "/v1/jobs/9/peeks", view(answer=PeekAnswer(text="a\x1b]0;evil\x07\tb\r\n")), 201)
    assert run(job, "peek", "9").stdout == "a\\x1b]0;evil\\x07\tb\\r\n"
    assert printable("größer 日本\n") == "größer 日本\n"
