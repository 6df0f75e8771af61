"""Direct jobs between people and harvesters: claimed once, moved by reports, their first end counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from common.states import JobState, TaskState, UnitState, WorkerState
from common.tokens import TokenError
from common.wire import Downtime, JobPage, TaskCommand, TaskView, WorkerPage
from common.wire.direct import (
    DirectInstruction,
    DirectProxiesReply,
    DirectProxiesRequest,
    DirectReport,
    ProxyWanted,
)
from common.x509 import new_request, proxy_file
from server.agents.housekeeping import keep_house
from server.agents.timeouts import time_out_jobs
from server.dispatch import delegations, direct
from server.engine.access import Caller, Role
from server.store.schema import job, pilot
from server.store.schema_direct import delegated_proxy, direct_run
from tests.integration.server.act_tools import CLUSTER, HARVESTER, XRSL, ActSite
from tests.services.certificates import Authority

W, D = WorkerState, DirectInstruction
ALICE = Caller("alice", frozenset({Role.USER}))


@pytest.fixture
def act(url: str, tmp_path: Path, authority: Authority) -> Iterator[ActSite]:
    made = ActSite(url, tmp_path, authority)
    made.serve()
    yield made
    made.database.close()


def task_of(act: ActSite, task_id: int) -> TaskView:
    return act.admin("GET", f"/v1/tasks/{task_id}", None, TaskView)


def test_a_good_run(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    assert order.description == XRSL.format("job")
    steps = [
        (W.SUBMITTING, {}, D.NONE, "submitting", JobState.SENT),
        (W.SUBMITTED, {"batch_id": "abc", "native": "QUEUING"}, D.NONE, "submitted", JobState.STARTING),
        (W.RUNNING, {"native": "RUNNING"}, D.NONE, "running", JobState.RUNNING),
        (W.FINISHED, {"native": "FINISHED"}, D.FETCH, "finished", JobState.HOLDING),
    ]
    for state, more, todo, word, job_state in steps:
        assert act.say(order.mark, state, **more) is todo
        assert act.say(order.mark, state, **more) is todo, "a repeat changes nothing"
        assert act.state(token, number) == word
        (view,) = act.admin("GET", f"/v1/jobs?task={order.task_id}", None, JobPage).items
        assert view.state is job_state
    assert act.result(order.mark, "out.txt", b"hello").status_code == 204
    assert act.result(order.mark, "out.txt", b"hello again").status_code == 204, "the last one counts"
    assert act.result(order.mark, "a/b/c.txt", b"").status_code == 204
    assert act.say(order.mark, W.FINISHED, results=True) is D.NONE
    assert act.say(order.mark, W.FINISHED, results=True) is D.NONE
    assert act.result(order.mark, "late.txt", b"late").status_code == 409
    act.agents()
    task = task_of(act, order.task_id)
    assert (task.state, task.units[UnitState.DONE.value]) == (TaskState.DONE, 1)
    (worker,) = act.admin("GET", "/v1/workers?queue=q", None, WorkerPage).items
    assert (worker.mark, worker.state, worker.batch_id) == (order.mark, W.FINISHED, "abc")
    answer = act.act("GET", f"/jobs/{number}/results/out.txt", token=token)
    assert answer.content == b"hello again"
    act.check_counts()


def test_a_run_is_claimed_once_however_many_ask(act: ActSite) -> None:
    token = act.known("Alice")
    act.hand_in(token, *(f"job{n}" for n in range(6)))
    found: list[list[str]] = [[] for _ in range(4)]
    names = ["one", "one", "two", "two"]

    def ask(index: int) -> None:
        found[index] = [each.mark for each in act.acquire(name=names[index])]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = ({each.mark for each in act.acquire(name=name)} for name in ("one", "two"))
    assert len(one) + len(two) == 6 and not one & two
    assert set(found[0]) | set(found[1]) <= one and set(found[2]) | set(found[3]) <= two
    assert {each.mark for each in act.acquire(0, name="one")} == one, "an answer that was lost comes again"


def test_a_run_that_failed_is_over_until_its_owner_wants_it_again(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    act.say(order.mark, W.RUNNING, batch_id="b")
    assert act.say(order.mark, W.FAILED, exit_code=3, reason="exit code 3") is D.NONE
    act.agents()
    assert task_of(act, order.task_id).state is TaskState.FAILED
    assert act.acquire() == [], "nobody else runs it again"
    assert act.act("PATCH", "/jobs", token=token, params={"action": "resubmit"}).json == [number]
    act.agents()
    (again,) = act.acquire()
    assert again.mark != order.mark and again.task_id == order.task_id and again.job_id != order.job_id
    assert act.say(order.mark, W.FAILED) is D.CLEAN
    assert act.say(order.mark, W.FAILED, cleaned=True) is D.FORGET
    act.say(again.mark, W.FINISHED)
    act.say(again.mark, W.FINISHED, results=True)
    act.agents()
    assert task_of(act, order.task_id).state is TaskState.DONE
    act.check_counts()


def test_the_first_end_counts(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    act.say(order.mark, W.FAILED, reason="no")
    (outcome,) = act.report(DirectReport(order.mark, W.FINISHED, results=True))
    assert not outcome.accepted and "already" in outcome.reason
    assert act.state(token, number) == "failed"


def test_what_cannot_be_stored_makes_the_run_fail_and_can_be_fetched_again(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    act.turn("direct_file_mb", 1)
    assert act.say(order.mark, W.FINISHED) is D.FETCH
    assert act.result(order.mark, "big", b"x" * 1_100_000).status_code == 413
    assert act.say(order.mark, W.FINISHED, left_out="big: too large") is D.NONE
    assert act.state(token, number) == "failed"
    act.turn("direct_file_mb", 2)
    assert act.act("PATCH", "/jobs", token=token, params={"action": "fetch"}).json == [number]
    assert act.say(order.mark, W.FINISHED, left_out="big: too large") is D.FETCH
    assert act.result(order.mark, "big", b"x" * 1_100_000).status_code == 204
    assert act.say(order.mark, W.FINISHED, results=True) is D.NONE
    assert act.state(token, number) == "donefailed"


def test_a_kill_reaches_the_ce(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    act.say(order.mark, W.RUNNING, batch_id="b")
    (row,) = act.act("PATCH", "/jobs", token=token, params={"action": "cancel", "id": str(number)}).json
    assert row == {"c_id": number, "a_id": order.job_id, "a_arcstate": "running"}
    act.agents()
    assert act.state(token, number) == "tocancel", "nobody says that it has ended before it has"
    assert act.say(order.mark, W.RUNNING) is D.KILL
    assert act.say(order.mark, W.RUNNING, killed=True) is D.KILL
    assert act.state(token, number) == "cancelling"
    assert act.say(order.mark, W.CANCELLED) is D.NONE
    assert act.state(token, number) == "cancelled"
    act.agents()
    task = task_of(act, order.task_id)
    assert (task.state, task.units[UnitState.CANCELLED.value]) == (TaskState.ABORTED, 1)
    act.check_counts()


def test_a_job_killed_before_anybody_claimed_it(act: ActSite) -> None:
    token = act.known("Alice")
    (number,) = act.hand_in(token, "job")
    assert len(act.act("PATCH", "/jobs", token=token, params={"action": "cancel"}).json) == 1
    assert act.state(token, number) == "cancelled"
    assert act.acquire() == []
    assert act.act("DELETE", "/jobs", token=token).json == [number]


def test_our_own_command_kills_a_direct_job_and_does_nothing_else_to_it(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    for word in ("pause", "finish", "retry"):
        refused = act.raw("POST", f"/v1/tasks/{order.task_id}:command", TaskCommand(word), act.token("admin"))
        assert refused.status_code == 409, refused.text
    act.admin("POST", f"/v1/tasks/{order.task_id}:command", TaskCommand("kill"), TaskView)
    assert act.state(token, number) == "tocancel"
    assert act.say(order.mark, W.PLANNED) is D.KILL


def test_a_job_that_its_owner_cleaned_is_ended_and_cleaned_there(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    act.say(order.mark, W.FINISHED)
    act.result(order.mark, "out.txt", b"hello")
    act.say(order.mark, W.FINISHED, results=True)
    assert act.act("DELETE", "/jobs", token=token).json == [number]
    before = act.row_counts()
    assert before["direct_file"] == before["direct_part"] == before["direct_job"] == 0
    assert act.result(order.mark, "out.txt", b"hello").status_code == 404
    assert act.say(order.mark, W.FINISHED, results=True) is D.CLEAN
    assert act.say(order.mark, W.FINISHED, results=True, cleaned=True) is D.FORGET
    assert act.say(order.mark, W.FINISHED, results=True, cleaned=True) is D.FORGET, "after a lost answer, too"
    assert act.row_counts()["direct_run"] == 0


def test_a_run_that_is_lost(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    act.say(order.mark, W.SUBMITTED, batch_id="b")
    assert act.say(order.mark, W.MISSING) is D.NONE
    assert act.state(token, number) == "submitted", "not knowing is not a fact"
    act.say(order.mark, W.FAILED, reason="lost: denied 3 times")
    assert act.state(token, number) == "lost"
    assert act.act("PATCH", "/jobs", token=token, params={"action": "resubmit"}).json == [number]


def test_no_silence_and_no_time_out_ends_a_direct_job(act: ActSite) -> None:
    token = act.delegate("Alice", 40 * 86400.0)
    number, order = act.run(token)
    act.say(order.mark, W.RUNNING, batch_id="b")
    for _ in range(3):
        act.tick(20.0)
        act.clock.advance(5 * 86400.0)  # type: ignore[attr-defined]
        act.say_up()
        act.agents()
        time_out_jobs(act.dispatcher)
        keep_house(act.dispatcher)
    with act.database.read() as connection:
        assert connection.execute(select(job.c.ended).where(job.c.id == order.job_id)).scalar() is None
    act.say(order.mark, W.FINISHED)
    act.say(order.mark, W.FINISHED, results=True)
    with act.database.read() as connection:
        assert connection.execute(select(pilot.c.ended)).scalar() is not None


def test_another_harvesters_run_is_none_of_ones_business(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    before = act.row_counts()
    (outcome,) = act.report(DirectReport(order.mark, W.FAILED), name="other")
    assert not outcome.accepted and "belongs to" in outcome.reason
    assert act.result(order.mark, "x", b"x", name="other").status_code == 404
    path = f"/v1/direct/{order.mark}/inputs"
    assert act.raw("GET", path, None, act.token("harvester", "other"), params={"path": "x"}).status_code == 404
    (unknown,) = act.report(DirectReport("mark-nobody-knows", W.RUNNING))
    assert not unknown.accepted and unknown.instruction is D.NONE
    asked = DirectProxiesRequest("other", [ProxyWanted(order.proxy_id, new_request()[1])])
    reply = act.call("POST", "/v1/direct/proxies:sign", asked, DirectProxiesReply, act.token("harvester", "other"))
    assert not reply.proxies[0].chain and "no job of this harvester" in reply.proxies[0].reason
    lie = DirectProxiesRequest(HARVESTER, [])
    assert act.raw("POST", "/v1/direct/proxies:sign", lie, act.token("harvester", "other")).status_code == 403
    assert act.row_counts() == before
    assert act.state(token, number) == "tosubmit"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/", ".", "a/../b", "a\nb", "x" * 2000, ""])
def test_a_result_stays_in_its_folder(act: ActSite, path: str) -> None:
    _, order = act.run(act.known("Alice"))
    assert act.result(order.mark, path, b"x").status_code == 400
    assert act.row_counts()["direct_file"] == 0


def test_harvesters_proxies_hang_on_what_the_person_delegated(act: ActSite) -> None:
    token = act.delegate("Alice")
    _, order = act.run(token)
    key, request = new_request()
    harvester = act.token("harvester", HARVESTER)

    def sign(csr: str) -> DirectProxiesReply:
        body = DirectProxiesRequest(HARVESTER, [ProxyWanted(order.proxy_id, csr)])
        return act.call("POST", "/v1/direct/proxies:sign", body, DirectProxiesReply, harvester)

    (signed,) = sign(request).proxies
    assert signed.chain.count("BEGIN CERTIFICATE") == 3 and "KEY" not in signed.chain
    assert proxy_file(signed.chain, key) and 0 < signed.life_s <= 12 * 3600
    assert "no certificate signing request" in sign("nonsense").proxies[0].reason
    assert act.delegate("Alice") != token
    (later,) = sign(request).proxies
    assert later.stamp != signed.stamp, "it was delegated anew, under the same number"
    assert act.act("DELETE", "/proxies", token=token).status_code == 204
    assert "has ended" in sign(request).proxies[0].reason


def test_no_key_lies_in_the_database_in_clear(act: ActSite) -> None:
    token = act.delegate("Alice")
    with act.database.read() as connection:
        (row,) = connection.execute(select(delegated_proxy)).all()
    sealed = bytes(row.sealed)
    assert b"PRIVATE" not in sealed and b"CERTIFICATE" not in sealed and b"Alice" not in sealed
    act.run(token)
    with act.database.write() as connection:
        connection.execute(update(delegated_proxy).values(id=row.id + 1))
        connection.execute(update(direct_run).values(proxy_id=row.id + 1))
    asked = DirectProxiesRequest(HARVESTER, [ProxyWanted(row.id + 1, new_request()[1])])
    reply = act.call("POST", "/v1/direct/proxies:sign", asked, DirectProxiesReply, act.token("harvester", HARVESTER))
    assert "cannot be opened" in reply.proxies[0].reason, "what is sealed for one number opens under no other"


def test_old_things_go(act: ActSite) -> None:
    token = act.delegate("Alice")
    act.begin("Bob")
    number, order = act.run(token)
    act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}], token)
    act.say(order.mark, W.FAILED)
    assert direct.drop_old(act.dispatcher) == 0 and delegations.drop_old(act.dispatcher) == 0
    act.clock.advance(31 * 86400.0)  # type: ignore[attr-defined]
    assert direct.drop_old(act.dispatcher) == 2
    assert delegations.drop_old(act.dispatcher) == 1, "a request that nobody answered; Alice's is needed to clean"
    assert act.say(order.mark, W.FAILED) is D.CLEAN
    assert act.say(order.mark, W.FAILED, cleaned=True) is D.FORGET
    assert delegations.drop_old(act.dispatcher) == 1
    counts = act.row_counts()
    assert not counts["direct_job"] and not counts["direct_run"] and not counts["delegated_proxy"]
    with pytest.raises(TokenError):
        act.issuer.verify(token)


def test_what_is_said_again_is_not_written_again(act: ActSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that harvester reports every few seconds until it is cleaned was never old enough to be forgotten."""
    token = act.known("Alice")
    _, order = act.run(token)
    act.say(order.mark, W.FINISHED, batch_id="b", native="FINISHED")
    act.say(order.mark, W.FINISHED, batch_id="b", native="FINISHED", results=True)
    (before,) = direct.look(act.dispatcher, ALICE)
    act.clock.advance(31 * 86400.0)  # type: ignore[attr-defined]
    monkeypatch.setattr(act.database, "write", None)
    assert act.say(order.mark, W.FINISHED, batch_id="b", native="FINISHED", results=True) is D.NONE
    monkeypatch.undo()
    assert direct.look(act.dispatcher, ALICE) == [before]
    assert direct.drop_old(act.dispatcher) == 1
    assert act.say(order.mark, W.FINISHED, results=True) is D.CLEAN


def test_jobs_for_a_queue_that_is_not_online_wait(act: ActSite) -> None:
    token = act.known("Alice")
    act.put_queue("q", status="paused")
    act.hand_in(token, "job")
    assert act.acquire() == []
    act.put_queue("q")
    act.put_site("s", status="draining")
    assert act.acquire() == []
    now = act.dispatcher.now()
    act.put_site("s", downtimes=[Downtime(now - 5, now + 50, "repairs")])
    assert act.acquire() == []
    act.clock.advance(60)  # type: ignore[attr-defined]
    assert len(act.acquire()) == 1
    with act.database.read() as connection:
        assert connection.execute(select(direct_run.c.queue)).scalar() == "q"
