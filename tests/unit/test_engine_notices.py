"""Who may be told that a workflow is over, and when it is tried again."""

from __future__ import annotations

import pytest

from common.states import TaskState
from common.wire import NoticeChannel, NotifySpec
from server.engine.notices import MOST_ATTEMPTS, NoticeConfig, mail_text, next_attempt, notify_problem, outcome

CONFIG = NoticeConfig(
    webhook_hosts=["hooks.example.org", "other.example.org:8443", ".inside.example.org"],
    smtp_host="mail",
    mail_from="p@example.org",
    mail_domains=["example.org"],
)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/x?y=1",
        "https://HOOKS.example.org:443/",
        "https://other.example.org:8443/x",
        "https://a.b.inside.example.org/",
    ],
)
def test_hosts_that_are_called(url: str) -> None:
    assert notify_problem(NotifySpec(NoticeChannel.WEBHOOK, url), CONFIG) == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "https://hooks.example.org:8443/",
        "https://other.example.org/",
        "https://hooks.example.org.evil.org/",
        "https://evilhooks.example.org/",
        "https://inside.example.org/",
        "https://a.inside.example.org:22/",
        "https://hooks.example.org@evil.org/",
        "https://user:secret@hooks.example.org/",
        "https://evil.org#hooks.example.org",
        "https://evil.org\\@hooks.example.org/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://hooks.example.org:99999/",
        "file:///etc/passwd",
        "https:///x",
        "https://hooks.example.org/ x",
        "https://hooks.example.org/\nHost: evil",
        "gopher",
    ],
)
def test_everything_else_is_not(url: str) -> None:
    assert notify_problem(NotifySpec(NoticeChannel.WEBHOOK, url), CONFIG)
    assert notify_problem(NotifySpec(NoticeChannel.WEBHOOK, "https://hooks.example.org/"), NoticeConfig())


def test_who_is_written_to() -> None:
    assert notify_problem(NotifySpec(NoticeChannel.EMAIL, "ann@example.org"), CONFIG) == ""
    for address in ("ann@evil.org", "ann", "ann@example.org\nBcc: all@example.org", "a b@example.org", "@example.org"):
        assert notify_problem(NotifySpec(NoticeChannel.EMAIL, address), CONFIG)
    assert "sends no mail" in notify_problem(NotifySpec(NoticeChannel.EMAIL, "ann@example.org"), NoticeConfig())


def test_it_is_tried_again_for_most_of_a_day() -> None:
    waits = [next_attempt(n, 0.0) for n in range(1, MOST_ATTEMPTS + 1)]
    assert waits[:4] == [30.0, 60.0, 120.0, 240.0] and waits[-1] is None
    known = [wait for wait in waits if wait is not None]
    assert max(known) == 3600.0 and 12 * 3600 < sum(known) < 86400


def test_how_a_workflow_ended() -> None:
    done, failed, finished, aborted = TaskState.DONE, TaskState.FAILED, TaskState.FINISHED, TaskState.ABORTED
    assert outcome([done, done]) == "done" and outcome([aborted]) == "aborted"
    assert outcome([done, failed]) == outcome([finished, aborted]) == "finished"
    assert outcome([failed, aborted]) == "failed"


def test_a_name_breaks_no_mail() -> None:
    workflow = {"id": 1, "name": "a\r\nBcc: b", "owner": "o", "state": "done", "tasks": []}
    subject, _ = mail_text({"workflow": workflow})
    assert "\n" not in subject and "\r" not in subject
