"""Notices that a workflow is over: to a real HTTP server and a real mail server of the test's own."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from common.clock import FrozenClock
from common.wire import NoticeChannel, NotifySpec, WorkflowRequest, WorkflowView
from server.agents.notices import deliver_notices, webhook_key, write_notices
from server.config import ServerConfig
from server.engine.notices import MOST_ATTEMPTS, NoticeConfig, signature
from server.store.schema_commands import notice
from tests.integration.server.harness import Refused, Site, stage


class Receiver:
    """A webhook's other end; ``answers`` are the statuses that it gives, the last one from then on."""

    def __init__(self) -> None:
        self.answers = [204]
        self.calls: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.calls.append((dict(self.headers), content))
                status = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


class MailHandler(socketserver.StreamRequestHandler):
    """As much SMTP as a client that sends a mail needs."""

    def handle(self) -> None:
        self.say("220 test")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                self.say("354 go on")
                text = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    text += part
                self.server.mails.append(text.decode())  # type: ignore[attr-defined]
            self.say("221 bye" if word == "QUIT" else "250 fine")
            if word == "QUIT":
                return

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def mails() -> Iterator[tuple[int, list[str]]]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), MailHandler) as server:
        server.mails = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1], server.mails  # type: ignore[attr-defined]
        server.shutdown()


def configure(site: Site, **more: Any) -> None:
    site.dispatcher.config = msgspec.structs.replace(ServerConfig(), notices=NoticeConfig(**more))


def submit(site: Site, *specs: NotifySpec) -> WorkflowView:
    request = WorkflowRequest(name="w", stages=[stage(count=2)], notify=list(specs), labels={"run": "7"})
    view = site.user("POST", "/v1/workflows", request, WorkflowView)
    site.agents()
    return view


def wait(site: Site, seconds: float) -> None:
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(seconds)


def rows(site: Site) -> list[Any]:
    with site.database.read() as connection:
        return list(connection.execute(select(notice).order_by(notice.c.id)))


def test_a_webhook_is_called_once_and_signed_when_all_tasks_are_over(site: Site, receiver: Receiver) -> None:
    host = receiver.url.split("/")[2]
    configure(site, webhook_hosts=[host], webhook_http=True)
    site.world()
    view = submit(site, NotifySpec(NoticeChannel.WEBHOOK, receiver.url))
    assert (write_notices(site.dispatcher), deliver_notices(site.dispatcher)) == (0, 0)
    site.pilot().run_all("x")
    site.agents()
    assert (write_notices(site.dispatcher), write_notices(site.dispatcher)) == (1, 0)
    assert (deliver_notices(site.dispatcher), deliver_notices(site.dispatcher)) == (1, 0)
    ((headers, content),) = receiver.calls
    told = json.loads(content)
    assert told["event"] == "workflow-over"
    workflow = told["workflow"]
    assert (workflow["id"], workflow["state"], workflow["labels"]) == (view.id, "done", {"run": "7"})
    assert [(task["stage"], task["state"], task["units"]) for task in workflow["tasks"]] == [
        ("one", "done", {"done": 2})
    ]
    key = webhook_key(site.dispatcher)
    assert headers["Pilotage-Signature"] == signature(key, int(headers["Pilotage-Timestamp"]), content)
    assert headers["Pilotage-Signature"] != signature(b"x" * 32, int(headers["Pilotage-Timestamp"]), content)


def test_a_webhook_that_fails_is_called_again_later_and_at_last_given_up(site: Site, receiver: Receiver) -> None:
    configure(site, webhook_hosts=[receiver.url.split("/")[2]], webhook_http=True)
    site.world()
    submit(site, NotifySpec(NoticeChannel.WEBHOOK, receiver.url))
    site.pilot().run_all()
    site.agents()
    write_notices(site.dispatcher)
    receiver.answers = [500, 302, 204]
    assert deliver_notices(site.dispatcher) == 0
    assert deliver_notices(site.dispatcher) == 0 and len(receiver.calls) == 1  # not at once
    wait(site, 31)
    assert deliver_notices(site.dispatcher) == 0 and rows(site)[0].error == "answered 302"  # is not followed
    wait(site, 61)
    assert deliver_notices(site.dispatcher) == 1
    assert [headers["Pilotage-Delivery"] for headers, _ in receiver.calls] == [str(rows(site)[0].id)] * 3
    receiver.answers = [503]
    submit(site, NotifySpec(NoticeChannel.WEBHOOK, receiver.url))
    site.pilot().run_all()
    site.agents()
    write_notices(site.dispatcher)
    for _ in range(MOST_ATTEMPTS + 3):
        deliver_notices(site.dispatcher)
        wait(site, 3601)
    last = rows(site)[-1]
    assert (last.attempts, last.ended is not None, last.error) == (MOST_ATTEMPTS, True, "answered 503")
    assert "NOTICE_GIVEN_UP" in site.raw("GET", "/v1/events", token=site.token("admin")).text


def test_a_mail_says_how_it_ended(site: Site, mails: tuple[int, list[str]]) -> None:
    port, received = mails
    configure(site, smtp_host="127.0.0.1", smtp_port=port, smtp_starttls=False, mail_from="pilotage@example.org")
    site.world()
    view = submit(site, NotifySpec(NoticeChannel.EMAIL, "ann@example.org"))
    site.pilot().run_all()
    site.agents()
    assert (write_notices(site.dispatcher), deliver_notices(site.dispatcher)) == (1, 1)
    (mail,) = received
    assert "To: ann@example.org" in mail and "From: pilotage@example.org" in mail
    assert f"pilotage show workflow {view.id}" in mail and "2 done" in mail


def test_a_mail_server_that_is_away_or_speaks_no_tls_gets_nothing(site: Site, mails: tuple[int, list[str]]) -> None:
    port, received = mails
    configure(site, smtp_host="127.0.0.1", smtp_port=port, mail_from="pilotage@example.org")
    site.world()
    submit(site, NotifySpec(NoticeChannel.EMAIL, "ann@example.org"))
    site.pilot().run_all()
    site.agents()
    write_notices(site.dispatcher)
    assert deliver_notices(site.dispatcher) == 0
    assert received == [] and "STARTTLS" in rows(site)[0].error.upper()


def test_only_hosts_that_the_admin_named_are_called(site: Site, receiver: Receiver) -> None:
    configure(site, webhook_hosts=["hooks.example.org"], webhook_http=True)
    site.world()
    with pytest.raises(Refused) as refused:
        submit(site, NotifySpec(NoticeChannel.WEBHOOK, receiver.url))
    assert (refused.value.status, refused.value.paths) == (400, ["$.notify[0]"])
    configure(site, webhook_hosts=[receiver.url.split("/")[2]], webhook_http=True)
    submit(site, NotifySpec(NoticeChannel.WEBHOOK, receiver.url))
    site.pilot().run_all()
    site.agents()
    write_notices(site.dispatcher)
    configure(site)  # the admin has changed his mind
    assert deliver_notices(site.dispatcher) == 0
    assert receiver.calls == []
