"""Failures: each source ends as its rule says, grown units alone ask for more, and no unit is lost on the way."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from common.clock import FrozenClock
from common.errors import ErrorCode
from common.states import JobState, ResourceState, UnitState
from common.wire import (
    Assignment,
    BlockedHostList,
    CustomAction,
    EventPage,
    EventView,
    LimitRetry,
    MoreMemory,
    MoreTime,
    NoRetry,
    Offer,
    Requirements,
    RetryAction,
    RetryCondition,
    RetryRule,
    RetryRuleList,
    UnitOutcome,
    UnitResult,
)
from server.agents.blackhole import forget_failures, tell_outgrown
from server.agents.duties import reap
from server.agents.timeouts import time_out_jobs
from server.dispatch import failing
from server.engine.retry_rules import Failure, Verdict
from server.store.schema import bucket, site_fault, unit
from server.store.schema_failures import host_fault
from tests.integration.server.harness import Pilot, Refused, Site, files, stage, states

OOM = ErrorCode.OUT_OF_MEMORY


@pytest.fixture
def ruled(site: Site) -> Iterator[Site]:
    """A world without a rule."""
    site.world()
    for rule in rules(site):
        site.admin("DELETE", f"/v1/retry-rules/{rule.name}")
    yield site


def rules(site: Site) -> list[RetryRule]:
    return site.admin("GET", "/v1/retry-rules", reply=RetryRuleList).items


def put(
    site: Site, action: RetryAction, name: str = "r", *, position: int = 100, active: bool = True, **when: Any
) -> None:
    rule = RetryRule(name=name, action=action, when=RetryCondition(**when), position=position, active=active)
    assert site.admin("PUT", f"/v1/retry-rules/{name}", rule, RetryRule) == rule


def events(site: Site, kind: str) -> list[EventView]:
    return site.user_page(f"/v1/events?kind={kind}&limit=1000", EventPage).items


def asks(site: Site, task: int) -> dict[int, tuple[int, int]]:
    """What each unit asks for beyond its task: memory and wall time."""
    with site.database.read() as connection:
        query = select(unit.c.id, bucket.c.memory_mb, bucket.c.wall_s).join(bucket, bucket.c.id == unit.c.bucket_id)
        return {row.id: (row.memory_mb, row.wall_s) for row in connection.execute(query.where(unit.c.task_id == task))}


def later(site: Site, seconds: float) -> None:
    """Time goes by, and nobody looks."""
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(seconds)


def wait(site: Site, seconds: float, *pairs: tuple[Pilot, Assignment], state: JobState = JobState.RUNNING) -> None:
    """Time goes by, pilots say that their jobs are in a state."""
    while seconds > 0:
        site.tick(min(600.0, seconds))
        seconds -= 600
        for pilot, job in pairs:
            pilot.grant.token = pilot.beat(job, state=state).token or pilot.grant.token


def slot(memory_mb: int, wall_s: int = 0) -> Offer:
    return Offer(cores=1, memory_mb=memory_mb, disk_mb=20_000, wall_s=wall_s, tags=["apptainer"])


# ---------------------------------------------------------------- the rules as people keep them


def test_a_new_server_has_rules_that_can_be_read_changed_and_deleted(site: Site) -> None:
    found = {rule.name: rule for rule in rules(site)}
    assert {"out-of-memory", "out-of-time", "looping"} <= found.keys()
    changed = msgspec.structs.replace(found["looping"], action=NoRetry(), position=1)
    site.admin("PUT", "/v1/retry-rules/looping", changed, RetryRule)
    assert rules(site)[0] == changed == site.user("GET", "/v1/retry-rules/looping", reply=RetryRule)
    site.admin("DELETE", "/v1/retry-rules/looping")
    assert "looping" not in {rule.name for rule in rules(site)}
    for method in ("GET", "DELETE"):
        with pytest.raises(Refused) as refused:
            site.admin(method, "/v1/retry-rules/looping")
        assert refused.value.status == 404


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "r", "action": {"kind": "no_retry"}, "colour": 1}, "$"),
        ({"name": "r", "action": {"kind": "no_retry"}, "when": {"message": "(a|"}}, "$.when.message"),
        ({"name": "r", "action": {"kind": "no_retry"}, "when": {"error_codes": ["9..1"]}}, "$.when.error_codes[0]"),
        ({"name": "other", "action": {"kind": "no_retry"}}, "$.name"),
        ({"name": "r", "action": {"kind": "custom", "plugin": "x"}}, "$.action.plugin"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_field_and_changes_nothing(
    site: Site, body: dict[str, Any], path: str
) -> None:
    before = rules(site)
    with pytest.raises(Refused) as refused:
        site.admin("PUT", "/v1/retry-rules/r", body)
    assert refused.value.status in (400, 422)
    assert any(each.startswith(path) for each in refused.value.paths), refused.value.problem
    assert rules(site) == before


# ---------------------------------------------------------------- each source ends as its rule says


@pytest.mark.parametrize(
    ("code", "when", "action", "jobs"),
    [
        (1305, {"sources": ["payload"]}, NoRetry(), 1),
        (1305, {"sources": ["site"]}, NoRetry(), 3),
        (1305, {"error_codes": ["1300..1310"], "exit_codes": ["7"], "message": "bad (input|data)"}, NoRetry(), 1),
        (1305, {"message": "good data"}, NoRetry(), 3),
        (1099, {"sources": ["site"], "shares": ["default"], "sites": ["s"]}, LimitRetry(2), 2),
        (1099, {"sources": ["payload"]}, LimitRetry(2), 20),
        (1404, {"sources": ["preemption"]}, LimitRetry(4), 4),
        (1404, {"sources": ["preemption"]}, NoRetry(), 1),
        (1150, {"architectures": ["apptainer"], "labels": {"campaign": "a"}}, LimitRetry(2), 2),
        (1150, {"labels": {"campaign": "b"}}, LimitRetry(2), 3),
    ],
)
def test_a_failure_is_tried_as_often_as_its_rule_says(
    ruled: Site, code: int, when: dict[str, Any], action: RetryAction, jobs: int
) -> None:
    put(ruled, action, **when)
    ruled.turn("host_failures", 1000)
    task = ruled.submit(stage(count=1), labels={"campaign": "a"})[0]
    pilot = ruled.pilot()
    for n in range(1, jobs + 1):
        assert states(ruled.units(task)) == {"ready": 1}, n
        pilot.fail(pilot.acquire(), code, exit_code=7, error_detail="died of bad data")
        later(ruled, 1000)
        pilot.grant.token = pilot.beat().token or pilot.grant.token
    view = ruled.units(task)[0]
    assert (view.state, view.error_code) == (UnitState.FAILED, code)
    assert "died of bad data" in view.error_detail
    assert ("rule r" in view.error_detail) == (isinstance(action, NoRetry) and jobs == 1)
    ruled.check_counts()


def test_a_rule_for_silent_pilots(ruled: Site) -> None:
    put(ruled, LimitRetry(1), sources=["pilot"])
    task = ruled.counter(1)
    ruled.pilot().acquire()
    ruled.tick(3700)
    reap(ruled.dispatcher)
    view = ruled.units(task)[0]
    assert (view.state, view.error_code) == (UnitState.FAILED, ErrorCode.HEARTBEAT_LOST)


def test_a_rule_for_time_outs(ruled: Site) -> None:
    put(ruled, NoRetry(), sources=["server"])
    task = ruled.counter(1)
    pilot = ruled.pilot()
    wait(ruled, 1900, (pilot, pilot.acquire()), state=JobState.SENT)
    assert time_out_jobs(ruled.dispatcher) == 1
    view = ruled.units(task)[0]
    assert (view.state, view.error_code) == (UnitState.FAILED, ErrorCode.STATE_TIMEOUT)


def test_units_that_were_done_or_given_back_are_none_of_the_rules(ruled: Site) -> None:
    put(ruled, NoRetry(), sources=["payload"])
    task = ruled.counter(3, files_per_job=3)
    pilot = ruled.pilot()
    job = pilot.acquire()
    results = [
        UnitResult(job.units[0].unit_id, UnitOutcome.RETURNED),
        UnitResult(job.units[1].unit_id, UnitOutcome.FAILED),
    ]
    pilot.fail(job, ErrorCode.PAYLOAD_FAILED, units=results)
    found = {view.id: view.state for view in ruled.units(task)}
    assert [found[each.unit_id] for each in job.units] == [UnitState.READY, UnitState.FAILED, UnitState.FAILED]


def test_a_passive_rule_only_leaves_an_event(ruled: Site) -> None:
    put(ruled, NoRetry(), active=False, sources=["payload"])
    task = ruled.counter(1)
    pilot = ruled.pilot()
    job = pilot.acquire()
    pilot.fail(job, ErrorCode.PAYLOAD_FAILED)
    assert states(ruled.units(task)) == {"ready": 1}
    (event,) = events(ruled, "RETRY_RULE_PASSIVE")
    assert (event.job_id, event.detail["rule"], event.detail["units"]) == (job.job_id, "r", 1)
    assert not events(ruled, "RETRY_RULE")


def test_a_plug_in_decides_and_one_that_fails_does_no_harm(ruled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def action(failure: Failure, parameters: dict[str, Any]) -> Verdict:
        if failure.exit_code == 99:
            raise RuntimeError("no idea")
        return Verdict(memory_mb=failure.memory_mb + parameters["more"])

    class Entry:
        def load(self) -> Any:
            return action

    for module in ("server.api.retry_rules", "server.dispatch.failing"):
        monkeypatch.setattr(f"{module}.plugins", lambda group: {"own": Entry()})
    failing._compiled.cache_clear()
    put(ruled, CustomAction(plugin="own", parameters={"more": 7}), sources=["payload"])
    task = ruled.counter(1)
    pilot = ruled.pilot()
    pilot.fail(pilot.acquire(), ErrorCode.PAYLOAD_FAILED, exit_code=99)
    assert list(asks(ruled, task).values()) == [(0, 0)]
    assert "RuntimeError: no idea" in events(ruled, "RETRY_RULE")[0].detail["problem"]
    pilot.fail(pilot.acquire(), ErrorCode.PAYLOAD_FAILED, exit_code=1)
    assert list(asks(ruled, task).values()) == [(1007, 0)]
    failing._compiled.cache_clear()


# ---------------------------------------------------------------- more memory, more time


def test_only_the_unit_that_failed_asks_for_more(ruled: Site) -> None:
    put(ruled, MoreMemory(factor=1.5, cap_mb=9000), error_codes=[str(int(OOM))])
    task = ruled.counter(3)
    pilot = ruled.pilot(offer=slot(1200))
    first = pilot.acquire()
    pilot.fail(first, OOM)
    failed = first.units[0].unit_id
    assert asks(ruled, task) == {view.id: ((1500, 0) if view.id == failed else (0, 0)) for view in ruled.units(task)}
    taken = [pilot.succeed(pilot.acquire()), pilot.succeed(pilot.acquire())]
    assert failed not in {int(each) for reply in taken for each in reply.units}
    reply = pilot.ask()
    assert not reply.jobs and [each.filter for each in reply.refusals] == ["memory"]
    assert "1500" in reply.refusals[0].detail
    large = ruled.pilot(offer=slot(1500))
    job = large.ask(request_id="request-grown").jobs[0]
    assert [each.unit_id for each in job.units] == [failed]
    assert (first.requirements.memory_mb, job.requirements.memory_mb) == (1000, 1500)
    assert large.ask(request_id="request-grown").jobs[0].requirements == job.requirements
    ruled.check_counts()


def test_memory_grows_again_and_at_the_cap_the_unit_fails(ruled: Site) -> None:
    put(ruled, MoreMemory(factor=2, cap_mb=3000), "oom", error_codes=[str(int(OOM))])
    task = ruled.counter(1, max_attempts=50)
    pilot = ruled.pilot(offer=slot(16_000))
    for expected in (2000, 3000):
        pilot.fail(pilot.acquire(), OOM)
        assert list(asks(ruled, task).values()) == [(expected, 0)]
    pilot.fail(pilot.acquire(), OOM)
    view = ruled.units(task)[0]
    assert view.state == UnitState.FAILED and "3000 MB were not enough" in view.error_detail


def test_another_fault_keeps_what_was_grown(ruled: Site) -> None:
    put(ruled, MoreMemory(factor=2, cap_mb=9000), error_codes=[str(int(OOM))])
    put(ruled, MoreTime(factor=2, cap_s=9000), "t", error_codes=[str(int(ErrorCode.WALL_TIME_REACHED))])
    task = ruled.counter(1, max_attempts=50, requirements=Requirements(wall_s=100))
    pilot = ruled.pilot(offer=slot(16_000, 10_000))
    for code, expected in ((OOM, (2000, 0)), (1213, (2000, 200)), (1305, (2000, 200)), (1404, (2000, 200))):
        pilot.fail(pilot.acquire(), code)
        assert list(asks(ruled, task).values()) == [expected]
    pilot.succeed(pilot.acquire())
    assert states(ruled.units(task)) == {"done": 1}


def test_a_bad_replica_and_more_memory_at_once(ruled: Site) -> None:
    from common.wire import BadReplica

    ruled.put_storage("tape", "s")
    put(ruled, MoreMemory(factor=2, cap_mb=9000), error_codes=[str(int(OOM))])
    given_files = files("a", storages=("disk", "tape"), size=3 * 2**30)
    task = ruled.submit(stage(given=given_files))[0]
    pilot = ruled.pilot(offer=slot(16_000))
    pilot.fail(pilot.acquire(), OOM, BadReplica("data:a", "disk", ErrorCode.GET_ADLER32_MISMATCH))
    assert list(asks(ruled, task).values()) == [(2000, 0)]
    job = pilot.acquire()
    assert job.units[0].file is not None
    assert {each.storage for each in job.units[0].file.replicas} == {"tape"}
    with ruled.database.read() as connection:
        assert {row.unit_mb for row in connection.execute(select(bucket.c.unit_mb))} == {3 * 1024}


def test_a_task_that_no_queue_can_hold_any_more_says_so(ruled: Site) -> None:
    ruled.put_queue("q", "s", memory_mb=1000)
    put(ruled, MoreMemory(factor=4, cap_mb=9000), error_codes=[str(int(OOM))])
    task = ruled.counter(2)
    pilot = ruled.pilot(offer=slot(1000))
    pilot.fail(pilot.acquire(), OOM)
    ruled.agents()
    assert tell_outgrown(ruled.dispatcher) == 1 and tell_outgrown(ruled.dispatcher) == 0
    assert "no queue has 4000 MB" in ruled.task(task).state_reason
    assert [event.task_id for event in events(ruled, "TASK_OUTGROWN")] == [task]
    assert states(ruled.units(task)) == {"ready": 2}
    pilot.succeed(pilot.acquire())  # the others go on
    ruled.put_queue("q", "s", memory_mb=4000)
    assert tell_outgrown(ruled.dispatcher) == 1
    assert ruled.task(task).state_reason == ""
    assert len(ruled.pilot(offer=slot(4000)).ask().jobs) == 1


def test_it_grows_to_the_largest_queue_first(ruled: Site) -> None:
    ruled.put_queue("q", "s", memory_mb=1600)
    put(ruled, MoreMemory(factor=4, cap_mb=9000), error_codes=[str(int(OOM))])
    task = ruled.counter(1)
    pilot = ruled.pilot(offer=slot(1600))
    pilot.fail(pilot.acquire(), OOM)
    assert list(asks(ruled, task).values()) == [(1600, 0)]
    assert len(pilot.ask().jobs) == 1


# ---------------------------------------------------------------- hosts that swallow jobs


def swallow(site: Site, pilot: Pilot, *, one_task: bool = False, jobs: int = 6) -> None:
    """A host fails jobs, each of another task or all of one; its site's waits are over each time."""
    if one_task:
        site.counter(jobs)
    for n in range(jobs):
        if not one_task:
            site.counter(1, priority=n)
        reply = pilot.ask()
        if not reply.jobs:
            return
        pilot.fail(reply.jobs[0], ErrorCode.NO_LOCAL_SPACE)
        with site.database.write() as connection:
            connection.execute(site_fault.delete())
        site.dispatcher.changed()


def on_host(site: Site, host: str) -> Pilot:
    mark, secret = site.worker()
    return Pilot(site, site.register(mark, secret, host=host), slot(4000), mark)


def test_a_host_that_swallows_jobs_gets_none_for_a_while(ruled: Site) -> None:
    bad, good = on_host(ruled, "bad"), on_host(ruled, "good")
    swallow(ruled, bad)
    reply = bad.ask()
    assert not reply.jobs and {each.filter for each in reply.refusals} <= {"host"}
    (event,) = events(ruled, "HOST_BLOCKED")
    assert (event.subject_id, event.detail["queue"], event.detail["blocks"]) == ("bad", "q", 1)
    (blocked,) = ruled.user("GET", "/v1/blocked-hosts", reply=BlockedHostList).items
    assert (blocked.queue, blocked.host, blocked.error_code) == ("q", "bad", ErrorCode.NO_LOCAL_SPACE)
    assert good.ask().jobs
    later(ruled, 601)
    assert bad.ask().jobs
    assert not ruled.user("GET", "/v1/blocked-hosts", reply=BlockedHostList).items


def test_an_admin_frees_a_host(ruled: Site) -> None:
    bad = on_host(ruled, "bad")
    swallow(ruled, bad)
    assert not bad.ask().jobs
    ruled.admin("DELETE", "/v1/blocked-hosts/q/bad")
    assert bad.ask().jobs
    with pytest.raises(Refused) as refused:
        ruled.admin("DELETE", "/v1/blocked-hosts/q/other")
    assert refused.value.status == 404


def test_one_task_alone_blocks_no_host_and_a_success_clears_it(ruled: Site) -> None:
    pilot = on_host(ruled, "h")
    swallow(ruled, pilot, one_task=True, jobs=8)
    assert not events(ruled, "HOST_BLOCKED")
    pilot.succeed(pilot.acquire())
    with ruled.database.read() as connection:
        assert connection.execute(select(host_fault)).all() == []


def test_what_was_long_ago_is_forgotten(ruled: Site) -> None:
    swallow(ruled, on_host(ruled, "bad"))
    later(ruled, 90_000)
    assert forget_failures(ruled.dispatcher) == 0
    with ruled.database.read() as connection:
        assert connection.execute(select(host_fault)).all() == []
        assert connection.execute(select(site_fault)).all() == []


def test_failures_and_successes_at_once_are_all_counted_and_nobody_waits_for_ever(ruled: Site, url: str) -> None:
    ruled.turn("host_failures", 1000)
    put(ruled, MoreMemory(factor=2, cap_mb=64_000), sources=["site"])
    tasks = [ruled.counter(6, files_per_job=2), ruled.counter(6, files_per_job=2)]
    pilots = [on_host(ruled, "h") for _ in range(6)]
    jobs = [pilot.acquire() for pilot in pilots]
    barrier, problems = threading.Barrier(len(jobs)), []

    def end(number: int) -> None:
        own = Site(url, ruled.clock)
        pilot = dataclasses.replace(pilots[number], site=own)
        barrier.wait(240)
        try:
            if number == 0:
                pilot.succeed(jobs[0], units=[jobs[0].units[0].unit_id])
            else:
                pilot.fail(jobs[number], ErrorCode.NO_LOCAL_SPACE)
        except Refused as error:
            problems.append(error)
        own.database.close()

    threads = [threading.Thread(target=end, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    with ruled.database.read() as connection:
        assert sum(row.n for row in connection.execute(select(site_fault))) == 5
        assert [row.failures for row in connection.execute(select(host_fault))] == [5]
    found = [state for task in tasks for state in states(ruled.units(task)).items()]
    assert sum(n for _, n in found) == 12 and sum(n for state, n in found if state == "done") == 1
    grown = [memory for task in tasks for memory, _ in asks(ruled, task).values()]
    assert grown.count(2000) == 10
    ruled.check_counts()


# ---------------------------------------------------------------- no unit is ever lost

ACTIONS: list[RetryAction] = [
    NoRetry(),
    LimitRetry(1),
    LimitRetry(2),
    MoreMemory(factor=2, cap_mb=4000),
    MoreMemory(step_mb=700, cap_mb=16_000),
    MoreTime(factor=3, cap_s=9000),
]
CODES = [1305, 1212, 1213, 1099, 1404, 1098, 1106, 424242]


def test_whatever_the_rules_say_no_unit_is_lost_or_done_twice(ruled: Site) -> None:
    ruled.turn("host_failures", 10_000)
    ruled.turn("site_failures", 4)
    ruled.turn("preemptions", 4)
    pilot = ruled.pilot(offer=slot(16_000, 90_000))

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        kept=st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(CODES), st.booleans()), max_size=4),
        count=st.integers(1, 5),
        per_job=st.integers(1, 3),
        ends=st.lists(st.one_of(st.none(), *[st.sampled_from(CODES)] * 3), min_size=1, max_size=12),
    )
    def history(kept: list[tuple[RetryAction, int, bool]], count: int, per_job: int, ends: list[int | None]) -> None:
        for rule in rules(ruled):
            ruled.admin("DELETE", f"/v1/retry-rules/{rule.name}")
        for n, (action, code, active) in enumerate(kept):
            put(ruled, action, f"r{n}", position=n, active=active, error_codes=[str(code)])
        task = ruled.counter(count, files_per_job=per_job)
        done: set[int] = set()
        before = asks(ruled, task)
        for end in itertools.islice(itertools.cycle(ends), 300):
            with ruled.database.write() as connection:
                connection.execute(site_fault.delete())
            ruled.dispatcher.changed()
            reply = pilot.ask()
            if not reply.jobs:
                break
            (job,) = reply.jobs
            if end is None:
                pilot.succeed(job)
                ids = {each.unit_id for each in job.units}
                assert not ids & done
                done |= ids
            else:
                pilot.fail(job, end)
            now = asks(ruled, task)
            assert now.keys() == before.keys() and all(now[each] >= before[each] for each in now)
            before = now
            assert sum(states(ruled.units(task)).values()) == count
        found = ruled.units(task)
        assert {view.id for view in found if view.state == UnitState.DONE} == done
        assert {view.state for view in found} <= {UnitState.DONE, UnitState.FAILED}
        ruled.check_counts()

    history()


def test_a_queue_that_is_offline_holds_nothing(ruled: Site) -> None:
    ruled.put_queue("q", "s", memory_mb=1000)
    ruled.put_queue("large", "s", memory_mb=64_000, status=ResourceState.OFFLINE)
    put(ruled, MoreMemory(factor=2, cap_mb=90_000), error_codes=[str(int(OOM))])
    task = ruled.counter(1)
    pilot = ruled.pilot(offer=slot(1000))
    pilot.fail(pilot.acquire(), OOM)
    ruled.agents()
    tell_outgrown(ruled.dispatcher)
    assert "no queue has 2000 MB" in ruled.task(task).state_reason
