"""Looking at running jobs: who may, how the question reaches the pilot, and how the answer comes back."""

from __future__ import annotations

import threading
from typing import Any, Optional

import msgspec
import pytest
from sqlalchemy import func, select

from common.clock import FrozenClock, SystemClock
from common.problem import CONTENT_TYPE, decode_problem
from common.wire import Assignment, PeekAnswer, PeekKind, PeekOrder, PeekRequest, PeekState, PeekView
from server.dispatch.peeks import KEPT_S, drop_old
from server.store.schema_peeks import peek
from tests.integration.server.harness import Pilot, Refused, Site

TAIL = PeekRequest(kind=PeekKind.TAIL, path="logs/a.txt", lines=7)


@pytest.fixture
def running(site: Site) -> tuple[Pilot, Assignment]:
    """A pilot with a job that runs."""
    return start(site)


def start(site: Site) -> tuple[Pilot, Assignment]:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.beat(job)
    return pilot, job


def ask(site: Site, job: Assignment, request: PeekRequest, token: Optional[str] = None) -> PeekView:
    return site.call("POST", f"/v1/jobs/{job.job_id}/peeks", request, PeekView, token or site.token("user", "u"))


def look(site: Site, view: PeekView, wait_s: int = 0, token: Optional[str] = None) -> PeekView:
    path = f"/v1/jobs/{view.job_id}/peeks/{view.peek_id}"
    result = site.raw("GET", path, token=token or site.token("user", "u"), query_string=f"wait_s={wait_s}")
    if result.status_code >= 400:
        raise Refused(result.status_code, decode_problem(result.content, result.status_code, CONTENT_TYPE))
    return msgspec.json.decode(result.content, type=PeekView)


def answer(pilot: Pilot, job: Assignment, peek_id: int, **more: Any) -> None:
    pilot.post(f"/v1/jobs/{job.job_id}/peeks/{peek_id}:answer", PeekAnswer(**more), None)


def orders(pilot: Pilot, job: Assignment) -> list[PeekOrder]:
    return pilot.beat(job).jobs[0].peeks


def status(call: Any) -> int:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.status


def test_a_question_goes_to_the_pilot_until_it_has_answered(site: Site, running: tuple[Pilot, Assignment]) -> None:
    pilot, job = running
    assert pilot.beat(job).next_interval_s == 60.0
    view = ask(site, job, TAIL)
    assert view.state is PeekState.WAITING and 0 < view.due_s <= 60
    reply = pilot.beat(job)
    assert reply.jobs[0].peeks == [PeekOrder(peek_id=view.peek_id, kind="tail", path="logs/a.txt", lines=7)]
    assert reply.next_interval_s == 2.0  # somebody is looking
    assert orders(pilot, job) == reply.jobs[0].peeks  # the first reply may have been lost
    for _ in range(2):  # the answer to the answer may be lost too
        answer(pilot, job, view.peek_id, text="last line\n", end=10)
    found = look(site, view)
    assert found.state is PeekState.ANSWERED and found.answer == PeekAnswer(text="last line\n", end=10)
    assert orders(pilot, job) == []


def test_other_pilots_are_not_bothered(site: Site, running: tuple[Pilot, Assignment]) -> None:
    _, job = running
    other = site.pilot()
    view = ask(site, job, TAIL)
    assert other.beat().next_interval_s == 60.0
    assert status(lambda: answer(other, job, view.peek_id, text="forged")) == 404
    assert look(site, view).state is PeekState.WAITING


def test_nobody_looks_at_another_persons_job(site: Site, running: tuple[Pilot, Assignment]) -> None:
    _, job = running
    stranger, producer = site.token("user", "eve"), site.token("production", "eve")
    for token in (stranger, producer):
        assert status(lambda token=token: ask(site, job, TAIL, token)) == 403
    view = ask(site, job, TAIL)
    assert status(lambda: look(site, view, token=stranger)) == 403
    assert look(site, view, token=site.token("admin")).peek_id == view.peek_id


def test_every_look_is_audited(site: Site, running: tuple[Pilot, Assignment]) -> None:
    _, job = running
    ask(site, job, TAIL)
    found = site.raw("GET", "/v1/events", token=site.token("admin"), query_string=f"job={job.job_id}")
    audits = [each for each in found.json["items"] if each["kind"] == "AUDIT"]
    assert [(each["detail"]["kind"], each["detail"]["looked_at"]) for each in audits] == [("tail", "logs/a.txt")]


def test_one_open_question_of_each_kind(site: Site, running: tuple[Pilot, Assignment]) -> None:
    pilot, job = running
    first = ask(site, job, TAIL)
    assert ask(site, job, TAIL).peek_id == first.peek_id  # a repeat
    assert ask(site, job, TAIL, site.token("admin")).peek_id == first.peek_id  # the same is shown to both
    other = PeekRequest(kind=PeekKind.TAIL, path="b.txt")
    assert status(lambda: ask(site, job, other, site.token("admin"))) == 409
    second = ask(site, job, other)  # one's own is given up
    assert look(site, first).state is PeekState.REPLACED
    ask(site, job, PeekRequest(kind=PeekKind.PS))
    assert [order.kind for order in orders(pilot, job)] == ["tail", "ps"]
    answer(pilot, job, second.peek_id, error="there is no file")
    assert ask(site, job, other).peek_id not in (first.peek_id, second.peek_id)


def test_a_job_that_ends_meanwhile(site: Site, running: tuple[Pilot, Assignment]) -> None:
    pilot, job = running
    view = ask(site, job, TAIL)
    pilot.fail(job, 1305)
    found = look(site, view, wait_s=5)
    assert found.state is PeekState.OVER and found.job_state.value == "failed"
    with pytest.raises(Refused, match=f"see pilotage log {job.job_id}"):
        ask(site, job, TAIL)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (PeekRequest(kind=PeekKind.GDB), "$.pid"),
        (PeekRequest(kind=PeekKind.PS, pid=4), "$.pid"),
        (PeekRequest(kind=PeekKind.LS, path="../../etc"), "$.path"),
        (PeekRequest(kind=PeekKind.TAIL, path="/etc/passwd"), "$.path"),
        (PeekRequest(kind=PeekKind.DU, path="a"), "$.path"),
    ],
)
def test_questions_that_make_no_sense(
    site: Site, running: tuple[Pilot, Assignment], request_: PeekRequest, field: str
) -> None:
    with pytest.raises(Refused) as refused:
        ask(site, running[1], request_)
    assert (refused.value.status, refused.value.paths) == (422, [field])


def test_an_answer_that_is_too_long_is_refused(site: Site, running: tuple[Pilot, Assignment]) -> None:
    pilot, job = running
    view = ask(site, job, TAIL)
    assert status(lambda: answer(pilot, job, view.peek_id, text="x" * 65537)) == 400


def test_a_person_waits_for_the_answer(url: str) -> None:
    site = Site(url, SystemClock())
    site.say_up()
    try:
        pilot, job = start(site)
        view = ask(site, job, PeekRequest(kind=PeekKind.DU))
        later = threading.Timer(0.3, answer, [pilot, job, view.peek_id], {"text": "1 MiB\0\n"})
        later.start()
        found = look(site, view, wait_s=20)
        later.join()
        assert found.answer is not None and found.answer.text.startswith("1 MiB")
    finally:
        site.database.close()


def test_what_was_shown_is_not_kept(site: Site, running: tuple[Pilot, Assignment]) -> None:
    pilot, job = running
    view = ask(site, job, TAIL)
    answer(pilot, job, view.peek_id, text="private")
    assert drop_old(site.dispatcher) == 0
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(KEPT_S + 1)
    assert drop_old(site.dispatcher) == 1
    with site.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(peek)).scalar() == 0
    assert status(lambda: look(site, view)) == 404
