"""Lives of jobs, units and tasks, from submission to their ends."""

from __future__ import annotations

import threading
from typing import Any, Optional

import pytest

from common.errors import ErrorCode
from common.states import JobState, TaskState, UnitState
from common.wire import (
    BadReplica,
    FinishRequest,
    HeartbeatRequest,
    Instruction,
    JobReport,
    MergeRule,
    Metrics,
    SingleInput,
    StageInput,
    UnitOutcome,
    UnitResult,
)
from server.agents import feed, resolve
from server.agents import tasks as advancing
from server.agents.feed import feed_next_stage
from server.agents.resolve import resolve_input
from server.agents.tasks import advance_tasks
from server.engine.tasks import ending
from server.store import inputs, units
from tests.integration.server.harness import LOG, Refused, Site, files, stage, states, uploaded


def test_a_task_lives_from_submission_to_done(site: Site) -> None:
    site.world()
    task = site.counter(5, files_per_job=2)
    assert site.task(task).state == TaskState.READY
    pilot = site.pilot()
    job = pilot.acquire()
    assert site.job(job.job_id).state == JobState.SENT
    site.agents()
    assert site.task(task).state == TaskState.RUNNING
    for state in (JobState.STARTING, JobState.RUNNING, JobState.HOLDING):
        assert pilot.beat(job, state=state).jobs[0].instruction == Instruction.CONTINUE
        assert site.job(job.job_id).state == state
    pilot.beat(job, state=JobState.STARTING)  # an old report that came late
    assert site.job(job.job_id).state == JobState.HOLDING
    pilot.succeed(job, "out.root")
    assert pilot.run_all("out.root") == 2
    site.agents()
    view = site.task(task)
    assert (view.state, view.units, view.jobs) == (TaskState.DONE, {"done": 5}, {"finished": 3})
    assert view.ended is not None
    assert len(site.outputs(task)) == 3
    site.check_counts()


def test_what_a_job_measured_and_logged_can_be_looked_at(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.post(
        "/v1/jobs:heartbeat", HeartbeatRequest([JobReport(job.job_id, JobState.RUNNING, Metrics(cpu_s=3))]), None
    )
    assert site.job(job.job_id).metrics["cpu_s"] == 3
    log = pilot.record(job, "log.tgz", role=LOG)
    request = FinishRequest(
        JobState.FAILED, [], uploaded(log), exit_code=2, error_code=1305, error_detail="boom", log_tail="the \0 end"
    )
    pilot.finish(job, request)
    view = site.job(job.job_id)
    assert (view.state, view.exit_code, view.error_code, view.error_detail) == (JobState.FAILED, 2, 1305, "boom")
    assert view.log_did == log.destinations[0].did
    assert view.log_tail.startswith("the ")


def test_a_single_unit_is_the_task_itself(site: Site) -> None:
    site.world()
    task = site.submit(stage(given=SingleInput()))[0]
    pilot = site.pilot()
    job = pilot.acquire()
    assert [(each.counter, each.file) for each in job.units] == [(None, None)]
    pilot.succeed(job)
    site.agents()
    assert site.task(task).state == TaskState.DONE


def test_three_stages_feed_one_another(site: Site) -> None:
    site.world()
    first, second, third = site.submit(
        stage("make", count=3),
        stage("look", given=StageInput("make", "*.root")),
        stage("merge", given=StageInput("look"), merge=MergeRule(10, 10)),
    )
    assert site.task(second).state == TaskState.PENDING
    pilot = site.pilot()
    for _ in range(3):
        pilot.succeed(pilot.acquire(), "x.root", "notes.txt")
    site.agents()
    site.tick()
    assert states(site.units(second)) == {"ready": 3}
    assert pilot.run_all("h.root") == 3
    site.agents()
    site.tick()
    assert states(site.units(third)) == {"ready": 3}
    merge = pilot.acquire()
    assert [each.file.did.rsplit(".", 2)[1] for each in merge.units if each.file] == ["h"] * 3
    pilot.succeed(merge, "all.root")
    site.agents()
    assert [site.task(each).state for each in (first, second, third)] == [TaskState.DONE] * 3
    site.check_counts()


def test_stages_run_side_by_side(site: Site) -> None:
    site.world()
    make, look = site.submit(stage("make", count=2), stage("look", given=StageInput("make")))
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    site.agents()
    site.tick()
    assert {pilot.acquire().task_id for _ in range(2)} == {make, look}


# ---------------------------------------------------------------- how tasks end


def test_a_task_with_some_failures_is_finished_and_one_with_none_done_failed(site: Site) -> None:
    site.world()
    some, none = site.counter(2, max_attempts=1), 0
    pilot = site.pilot()
    pilot.succeed(pilot.acquire())
    pilot.fail(pilot.acquire(), 1305)
    none = site.counter(1, max_attempts=1)
    pilot.fail(pilot.acquire(), 1305)
    site.agents()
    assert (site.task(some).state, site.task(some).state_reason) == (TaskState.FINISHED, "1 failed")
    assert site.task(none).state == TaskState.FAILED


def test_a_stage_that_gets_nothing_is_broken(site: Site) -> None:
    site.world()
    make, look, merge = site.submit(
        stage("make", count=1, max_attempts=1),
        stage("look", given=StageInput("make")),
        stage("m", given=StageInput("look")),
    )
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), 1305)
    site.agents()
    assert [site.task(each).state for each in (make, look, merge)] == [
        TaskState.FAILED,
        TaskState.BROKEN,
        TaskState.BROKEN,
    ]


# ---------------------------------------------------------------- attempts


def test_payload_failures_come_back_last_in_smaller_company_at_the_end_alone(site: Site) -> None:
    site.world()
    task = site.counter(8, files_per_job=4, max_attempts=3)
    pilot = site.pilot()
    first = pilot.acquire()
    pilot.fail(first, 1305)
    seen = []
    while pilot_jobs := pilot.ask().jobs:
        seen.append([each.seq & 0xFF for each in pilot_jobs[0].units])
        pilot.fail(pilot_jobs[0], 1305)
    assert seen[0] == [4, 5, 6, 7]
    assert [len(each) for each in seen[1:]] == [1] * 16
    site.agents()
    assert site.task(task).state == TaskState.FAILED
    assert {(each.state, each.payload_failures) for each in site.units(task)} == {(UnitState.FAILED, 3)}
    site.check_counts()


@pytest.mark.parametrize(
    ("code", "knob", "cap"),
    [
        (ErrorCode.STAGE_IN_FAILED, "site_failures", 4),
        (ErrorCode.PREEMPTED, "preemptions", 3),
        (ErrorCode.SIGTERM, "preemptions", 2),
    ],
)
def test_other_faults_have_caps_of_their_own(site: Site, code: int, knob: str, cap: int) -> None:
    site.world()
    site.turn(knob, cap)
    task = site.counter(1, max_attempts=1)
    pilot = site.pilot()
    rounds = 0
    while found := pilot.ask().jobs:
        pilot.fail(found[0], code)
        rounds += 1
        site.tick(20)  # a site whose fault it is gets no more for a while
    unit = site.units(task)[0]
    assert (rounds, unit.state, unit.other_failures, unit.payload_failures) == (cap, UnitState.FAILED, cap, 0)
    assert unit.error_code == code


def test_lost_pilots_have_a_cap_of_their_own(site: Site) -> None:
    site.world()
    site.turn("lost_pilots", 2)
    task = site.counter(1, max_attempts=1)
    for _ in range(2):
        site.pilot().acquire()
        site.tick(3700)
        site.agents()
    unit = site.units(task)[0]
    assert (unit.state, unit.other_failures, unit.error_code) == (UnitState.FAILED, 2, ErrorCode.HEARTBEAT_LOST)
    assert site.task(task).state == TaskState.FAILED


def test_a_hopeless_error_is_not_tried_again(site: Site) -> None:
    site.world()
    task = site.counter(1, max_attempts=9)
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), ErrorCode.BAD_JOBSCRIPT)
    assert states(site.units(task)) == {"failed": 1}


def test_a_finished_job_returns_what_it_does_not_list(site: Site) -> None:
    site.world()
    task = site.counter(4, files_per_job=4)
    pilot = site.pilot()
    job = pilot.acquire()
    ids = [each.unit_id for each in job.units]
    outcomes = [UnitResult(ids[0], UnitOutcome.PROCESSED), UnitResult(ids[1], UnitOutcome.FAILED)]
    reply = pilot.finish(job, FinishRequest(JobState.FINISHED, outcomes))
    assert [reply.units[str(each)].value for each in ids] == ["done", "ready", "ready", "ready"]
    assert [each.payload_failures for each in site.units(task)] == [0, 1, 0, 0]
    site.check_counts()


def test_a_job_given_back_before_it_ran(site: Site) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.finish(job, FinishRequest(JobState.CLOSED, error_code=ErrorCode.DRAINED))
    assert site.job(job.job_id).state == JobState.CLOSED
    assert states(site.units(task)) == {"ready": 1}


# ---------------------------------------------------------------- outputs


def test_outputs_are_visible_only_when_confirmed(site: Site) -> None:
    site.world()
    task = site.counter(2)
    pilot = site.pilot()
    good, bad = pilot.acquire(), pilot.acquire()
    request = pilot.success(good, "a", "b")
    failed = pilot.record(bad, "c")
    log = pilot.record(bad, "log", role=LOG)
    assert site.outputs(task) == []
    request.outputs.pop()  # one upload is not confirmed
    pilot.finish(good, request)
    pilot.fail(bad, 1305, outputs=[*uploaded(failed), *uploaded(log)])
    assert [(each.role, each.did.rsplit(".", 1)[1]) for each in site.outputs(task)] == [("output", "a"), ("log", "log")]


def test_outputs_of_a_finished_job_without_a_done_unit_stay_invisible(site: Site) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job, "a", units=[])
    assert site.outputs(task) == []


def test_outputs_go_where_the_task_says_else_to_the_nearest(site: Site) -> None:
    from common.wire import OutputPattern

    site.world(storages=("disk", "tape"))
    site.put_site("t")
    site.put_storage("away", "t")
    site.counter(1, outputs=[OutputPattern("*", "away")])
    pilot = site.pilot()
    named = pilot.acquire()
    assert [each.storage for each in pilot.record(named, "a").destinations] == ["away"]
    site.counter(1, outputs=[OutputPattern("*")])
    job = pilot.acquire()
    assert [each.storage for each in pilot.record(job, "a").destinations] == ["disk"]
    site.put_storage("disk", "s", status="paused")
    site.put_storage("tape", "s", status="offline")
    assert [each.storage for each in pilot.record(job, "b").destinations] == ["away"]
    site.put_storage("away", "t", status="offline")
    with pytest.raises(Refused) as refused:
        pilot.record(job, "a", "c")
    assert (refused.value.status, refused.value.paths) == (422, ["$.outputs[1]"])
    assert refused.value.problem.extensions["error_code"] == ErrorCode.NO_STORAGE
    assert [each.name for each in pilot.record(job, "a").destinations] == ["a"]  # its place is reserved already


# ---------------------------------------------------------------- bad replicas


def test_bad_replicas_move_a_unit_to_other_buckets_until_it_is_lost(site: Site) -> None:
    site.world(storages=("disk", "tape"))
    task = site.submit(stage(given=files("a", "b", storages=("disk", "tape"))))[0]
    pilot = site.pilot()
    job = pilot.acquire()
    did = "data:a"
    pilot.fail(job, ErrorCode.GET_ADLER32_MISMATCH, BadReplica(did, "disk", ErrorCode.GET_ADLER32_MISMATCH))
    site.check_counts()
    assert states(site.units(task)) == {"ready": 2}
    jobs = [pilot.acquire(), pilot.acquire()]
    job = next(each for each in jobs if each.units[0].file and each.units[0].file.did == did)
    assert job.units[0].file is not None
    assert [each.storage for each in job.units[0].file.replicas] == ["tape"]
    pilot.fail(job, ErrorCode.NO_SUCH_FILE, BadReplica(did, "tape", ErrorCode.NO_SUCH_FILE))
    unit = site.units(task)[0]
    assert (unit.did, unit.state, unit.error_code) == (did, UnitState.LOST, ErrorCode.NO_SUCH_FILE)
    site.check_counts()
    pilot.succeed(next(each for each in jobs if each is not job))
    site.agents()
    assert site.task(task).state == TaskState.FINISHED
    site.command(task, "retry")
    again = pilot.acquire()
    assert again.units[0].file is not None
    assert [each.storage for each in again.units[0].file.replicas] == ["disk", "tape"]


def test_a_transfer_that_fails_is_the_sites_fault_and_no_bad_replica(site: Site) -> None:
    site.world()
    task = site.submit(stage(given=files("a")))[0]
    pilot = site.pilot()
    for code in (ErrorCode.STAGE_IN_FAILED, ErrorCode.REPLICA_NOT_FOUND):
        pilot.fail(pilot.acquire(), code, BadReplica("data:a", "disk", ErrorCode.STAGE_IN_FAILED))
        site.tick(20)
    unit = site.units(task)[0]
    assert (unit.state, unit.other_failures, unit.payload_failures) == (UnitState.READY, 2, 0)


def test_a_pilots_word_alone_does_not_lose_a_unit(site: Site) -> None:
    site.world()
    task = site.submit(stage(given=files("a")))[0]
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.fail(job, ErrorCode.NO_SUCH_FILE, units=[UnitResult(job.units[0].unit_id, UnitOutcome.LOST)])
    assert states(site.units(task)) == {"ready": 1}


def test_a_bad_replica_with_a_long_did_was_once_a_mistake_inside_the_server(site: Site) -> None:
    site.world(storages=("disk", "tape"))
    name = "n" * 500
    task = site.submit(stage(given=files(name, storages=("disk", "tape"))))[0]
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), 1103, BadReplica(f"data:{name}", "disk", 1103))
    assert states(site.units(task)) == {"ready": 1}


# ---------------------------------------------------------------- commands


def test_a_kill_reaches_ready_units_and_running_jobs(site: Site) -> None:
    site.world()
    make, look = site.submit(stage("make", count=4), stage("look", given=StageInput("make")))
    pilot, other = site.pilot(), site.pilot()
    done, running, failing = pilot.acquire(), pilot.acquire(), other.acquire()
    pilot.succeed(done, "x")
    pilot.beat(running)
    late = pilot.success(running, "y")
    view = site.command(make, "kill")
    assert (view.state, view.units) == (TaskState.ABORTED, {"done": 1, "cancelled": 3})
    site.check_counts()
    assert [(each.instruction, each.reason) for each in pilot.beat(running).jobs] == [(Instruction.KILL, "kill by u")]
    with pytest.raises(Refused) as refused:
        pilot.finish(running, late)
    assert refused.value.status == 410
    wanted = {"job_id": running.job_id, "state": "cancelled", "error_code": ErrorCode.TASK_CANCELLED}
    assert refused.value.problem.extensions == wanted
    with pytest.raises(Refused) as refused:
        pilot.finish(running, late)
    assert refused.value.status == 410
    log = other.record(failing, "log", role=LOG)
    other.finish(
        failing, FinishRequest(JobState.CANCELLED, outputs=uploaded(log), error_code=ErrorCode.KILLED_BY_SERVER)
    )
    assert site.job(failing.job_id).state == JobState.CANCELLED
    assert [each.role for each in site.outputs(make)] == ["output", "log"]
    assert pilot.ask().jobs == []
    site.agents()
    site.tick()
    assert pilot.acquire().task_id == look  # what its parent gave before it was killed
    assert site.task(look).input_closed
    site.check_counts()


def test_a_killed_job_whose_pilot_never_answers_ends_cancelled(site: Site) -> None:
    site.world()
    task = site.counter(1)
    job = site.pilot().acquire()
    site.command(task, "kill")
    site.tick(3700)
    site.agents()
    assert site.job(job.job_id).state == JobState.CANCELLED
    assert states(site.units(task)) == {"cancelled": 1}


@pytest.mark.parametrize("steps", range(3))
def test_a_kill_at_any_moment_cancels_all(site: Site, steps: int) -> None:
    """Before its input is resolved, in the middle of it, after it."""
    site.world()
    site.dispatcher.looks.get()
    request_tasks = site.submit_only(stage(count=resolve.SLICE * 2 - 1))
    for _ in range(steps):
        resolve_input(site.dispatcher)
    site.command(request_tasks[0], "kill")
    site.agents()
    made = min(resolve.SLICE * steps, resolve.SLICE * 2 - 1)
    assert site.task(request_tasks[0]).units == ({"cancelled": made} if made else {})
    site.check_counts()


@pytest.mark.parametrize("before", [0, 1, 2])
def test_pause_and_resume(site: Site, before: int) -> None:
    """Paused while defined, ready and running: nothing new, and on from there."""
    site.world()
    task = site.submit_only(stage(count=2))[0]
    pilot = site.pilot()
    first = None
    if before:
        site.agents()
    if before == 2:
        first = pilot.acquire()
        site.agents()
    state = site.task(task).state
    assert state == (TaskState.DEFINED, TaskState.READY, TaskState.RUNNING)[before]
    assert site.command(task, "pause").state == TaskState.PAUSED
    site.agents()
    site.tick()
    assert pilot.ask().jobs == []
    if first is not None:
        pilot.succeed(first)  # what runs, ends
    site.agents()
    assert site.task(task).state == TaskState.PAUSED
    assert site.command(task, "resume").state == state
    site.agents()
    pilot.run_all()
    site.agents()
    assert (site.task(task).state, site.task(task).units) == (TaskState.DONE, {"done": 2})


def test_a_stage_fed_while_paused_once_stayed_pending_for_ever(site: Site) -> None:
    site.world()
    make, look = site.submit(stage("make", count=1), stage("look", given=StageInput("make")))
    site.command(look, "pause")
    pilot = site.pilot()
    pilot.run_all("x")
    site.agents()
    assert site.task(look).units == {"ready": 1}
    assert site.command(look, "resume").state == TaskState.READY
    site.agents()
    assert pilot.run_all() == 1


def test_a_stage_fed_before_it_was_looked_at_once_stayed_pending_for_ever(site: Site) -> None:
    site.world()
    make, look, other = site.submit(
        stage("make", count=1), stage("look", given=StageInput("make")), stage("other", given=StageInput("make"))
    )
    with site.database.write() as connection:  # as if the agents ran in another order
        from sqlalchemy import update

        from server.store.schema import task

        connection.execute(update(task).where(task.c.id == other).values(state="defined"))
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    feed_next_stage(site.dispatcher)
    site.agents()
    site.tick()
    assert pilot.run_all() == 2
    site.agents()
    assert site.task(other).state == TaskState.DONE


def test_a_retry_gives_failed_units_all_their_attempts_and_company_again(site: Site) -> None:
    site.world()
    task = site.counter(4, max_attempts=2, files_per_job=4)
    pilot = site.pilot()
    while found := pilot.ask().jobs:
        pilot.fail(found[0], 1305)
    site.agents()
    assert site.task(task).state == TaskState.FAILED
    view = site.command(task, "retry")
    assert (view.state, view.units, view.ended) == (TaskState.RUNNING, {"ready": 4}, None)
    site.check_counts()
    job = pilot.acquire()
    assert [each.seq for each in job.units] == [0, 1, 2, 3]
    pilot.fail(job, 1305)
    assert states(site.units(task)) == {"ready": 4}


def test_a_retried_parent_once_fed_nobody(site: Site) -> None:
    site.world()
    make, look, merge = site.submit(
        stage("make", count=2, max_attempts=1),
        stage("look", given=StageInput("make")),
        stage("merge", given=StageInput("look"), merge=MergeRule(10, 10)),
    )
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    pilot.fail(pilot.acquire(), 1305)
    for _ in range(3):
        site.agents()
        site.tick()
        pilot.run_all("y")
    site.agents()
    wanted = [TaskState.FINISHED, TaskState.DONE, TaskState.DONE]
    assert [site.task(each).state for each in (make, look, merge)] == wanted
    site.command(make, "retry")
    for _ in range(3):
        site.agents()
        site.tick()
        pilot.run_all("y")
    site.agents()
    assert [site.task(each).state for each in (make, look, merge)] == [TaskState.DONE] * 3
    assert [site.task(each).units for each in (make, look, merge)] == [{"done": 2}] * 3
    site.check_counts()


@pytest.mark.parametrize("word", ["pause", "resume", "retry", "kill"])
def test_a_command_that_its_state_does_not_allow(site: Site, word: str) -> None:
    site.world()
    task = site.counter(1)
    if word == "retry":
        with pytest.raises(Refused) as refused:
            site.command(task, word)
        assert refused.value.status == 409
    pilot = site.pilot()
    pilot.run_all()
    site.agents()
    rows = site.row_counts()
    if word == "resume":
        assert site.command(task, word).state == TaskState.DONE  # it is not paused: obeyed already
        return
    with pytest.raises(Refused) as refused:
        site.command(task, word)
    assert refused.value.status == 409
    assert site.row_counts() == rows


def test_a_large_input_is_resolved_in_slices(site: Site) -> None:
    site.world()
    task = site.submit_only(stage(given=files(*[f"f{n}" for n in range(inputs.CHUNK + 5)], size=2**62)))[0]
    resolve_input(site.dispatcher)
    assert (site.task(task).state, site.task(task).units) == (TaskState.DEFINED, {"ready": inputs.CHUNK})
    assert site.pilot().ask().jobs == []
    site.agents()
    assert (site.task(task).state, site.task(task).units) == (TaskState.READY, {"ready": inputs.CHUNK + 5})
    views = site.units(task)
    assert [each.seq for each in views] == list(range(inputs.CHUNK + 5))
    assert [each.did for each in views] == [f"data:f{n}" for n in range(inputs.CHUNK + 5)]
    site.check_counts()


@pytest.mark.parametrize("size", [None, 0, 1, 2**20, 2**20 + 1, 2**62])
def test_a_huge_file_once_kept_the_resolver_from_all_tasks(site: Site, size: Optional[int]) -> None:
    site.world()
    huge = site.submit(stage(given=files("a", size=size)))[0]
    assert site.task(huge).units == {"ready": 1}
    assert site.task(site.counter(1)).units == {"ready": 1}


def test_a_kill_while_a_stage_is_fed_once_left_ready_units_behind(
    site: Site, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world()
    make, look = site.submit(stage("make", count=4), stage("look", given=StageInput("make")))
    pilot = site.pilot()
    for _ in range(4):
        pilot.succeed(pilot.acquire(), "x")
    other = Site(url, site.clock)  # another process: the feeder runs beside the web side
    kill = threading.Thread(target=site.command, args=(look, "kill"))
    create = units.create

    def create_late(*args: Any) -> list[int]:
        kill.start()
        kill.join(0.7)  # it comes through here, unless the feeder holds the stage
        return create(*args)

    with monkeypatch.context() as patch:
        patch.setattr(units, "create", create_late)
        feed_next_stage(other.dispatcher)
    kill.join(30)
    other.database.close()
    site.agents()
    assert (site.task(look).state, site.task(look).units) == (TaskState.ABORTED, {"cancelled": 4})
    site.check_counts()


def test_a_stage_is_closed_only_when_it_got_all_outputs_of_its_parent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "SLICE", 2)
    site.world()
    make, look = site.submit(stage("make", count=4), stage("look", given=StageInput("make")))
    pilot = site.pilot()
    for _ in range(4):
        pilot.succeed(pilot.acquire(), "x")
    advance_tasks(site.dispatcher)
    assert site.task(make).state == TaskState.DONE
    seen = []
    while feed_next_stage(site.dispatcher):
        seen.append((site.task(look).units["ready"], site.task(look).input_closed))
    assert seen == [(2, False), (4, False), (4, True)]
    assert len({each.seq for each in site.units(look)}) == 4


def test_a_retry_while_a_task_is_ended_once_left_ready_units_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world()
    task = site.counter(2, max_attempts=1)
    pilot = site.pilot()
    first = pilot.acquire()
    site.agents()
    for job in (first, pilot.acquire()):
        pilot.fail(job, 1305)
    assert (site.task(task).state, site.task(task).units) == (TaskState.RUNNING, {"failed": 2})
    judge = ending
    told: list[object] = []

    def judge_and_retry(*args: Any) -> object:
        verdict = judge(*args)
        if not told:  # the first look has happened, the write has not
            told.append(site.command(task, "retry"))
        return verdict

    with monkeypatch.context() as patch:
        patch.setattr(advancing, "ending", judge_and_retry)
        advance_tasks(site.dispatcher)
    assert (site.task(task).state, site.task(task).units) == (TaskState.RUNNING, {"ready": 2})
    assert pilot.run_all() == 2
