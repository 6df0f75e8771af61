"""Commands to tasks and workflows: what each does, what it refuses, and that it may be repeated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from common.problem import decode_problem
from common.states import JobState, TaskState, UnitState
from common.wire import (
    CloneRequest,
    DeletionView,
    FinishRequest,
    Instruction,
    StageInput,
    TaskChange,
    TaskCommand,
    TaskView,
    UnitOutcome,
    UnitResult,
    UnitsReleaseReply,
    UnitsReleaseRequest,
    WorkflowCommandReply,
    WorkflowView,
)
from server.agents import tasks as advancing
from server.agents.duties import recount
from server.agents.tasks import advance_all, advance_tasks, pause_problem_tasks
from server.dispatch import cloning, commands
from server.dispatch.cloning import delete_workflows
from server.store import moves, tasks, workflows
from server.store.schema import unit
from server.store.schema_commands import task_move, task_touched
from tests.integration.server.harness import Refused, Site, stage


def tell(site: Site, task: int, word: str, **more: object) -> TaskView:
    return site.user("POST", f"/v1/tasks/{task}:command", TaskCommand(word, **more), TaskView)  # type: ignore[arg-type]


def tell_workflow(site: Site, workflow: int, word: str, **more: object) -> WorkflowCommandReply:
    body = TaskCommand(word, **more)  # type: ignore[arg-type]
    return site.user("POST", f"/v1/workflows/{workflow}:command", body, WorkflowCommandReply)


def why_not(site: Site, task: int, word: str, **more: object) -> str:
    with pytest.raises(Refused) as refused:
        tell(site, task, word, **more)
    assert refused.value.status == 409
    return refused.value.problem.detail


def workflow_of(site: Site, task: int) -> int:
    return site.task(task).workflow_id


# ---------------------------------------------------------------- finish


def test_a_soft_finish_lets_running_jobs_end_and_starts_nothing_new(site: Site) -> None:
    site.world()
    task = site.counter(4)
    pilot = site.pilot()
    running, dying = pilot.acquire(), pilot.acquire()
    for _ in range(2):  # the second time it is obeyed already
        view = tell(site, task, "finish")
        assert (view.state, view.units) == (TaskState.FINISHING, {"reserved": 2, "cancelled": 2})
        site.check_counts()
    assert pilot.ask().jobs == []
    assert {each.instruction for each in pilot.beat(running, dying).jobs} == {Instruction.CONTINUE}
    site.agents()
    assert site.task(task).state == TaskState.FINISHING
    pilot.succeed(running, "x")
    pilot.fail(dying, 1305)  # its unit is ready again, for nobody
    site.agents()
    view = site.task(task)
    assert (view.state, view.units) == (TaskState.FINISHED, {"done": 1, "cancelled": 3})
    assert [each.did.rpartition(".")[2] for each in site.outputs(task)] == ["x"]
    assert tell(site, task, "finish").state == TaskState.FINISHED
    site.check_counts()


def test_a_hard_finish_kills_running_jobs_and_keeps_what_is_done(site: Site) -> None:
    site.world()
    task = site.counter(3)
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    running = pilot.acquire()
    tell(site, task, "finish")
    view = tell(site, task, "finish", hard=True)  # a soft one may be hardened
    assert (view.state, view.units) == (TaskState.FINISHING, {"done": 1, "cancelled": 2})
    assert [each.instruction for each in pilot.beat(running).jobs] == [Instruction.KILL]
    site.agents()
    assert site.task(task).state == TaskState.FINISHED
    with pytest.raises(Refused) as refused:
        pilot.succeed(running)
    assert refused.value.status == 410
    site.check_counts()


def test_a_task_told_to_finish_takes_no_more_input(site: Site) -> None:
    site.world()
    make, look = site.submit(stage("make", count=2), stage("look", given=StageInput("make")))
    pilot = site.pilot()
    pilot.succeed(pilot.acquire(), "x")
    site.agents()
    assert tell(site, look, "finish").units == {"cancelled": 1}
    pilot.run_all("y")
    site.agents()
    view = site.task(look)
    assert (view.state, view.units, view.input_closed) == (TaskState.FAILED, {"cancelled": 1}, True)


def test_a_finish_before_anything_was_resolved(site: Site) -> None:
    site.world()
    task = site.submit_only(stage(count=5))[0]
    assert tell(site, task, "finish").state == TaskState.FINISHING
    site.agents()
    assert (site.task(task).state, site.task(task).units) == (TaskState.FAILED, {})


# ---------------------------------------------------------------- retry, restart, avalanche


def test_a_stage_broken_by_its_parents_failure_comes_back_with_it(site: Site) -> None:
    site.world()
    make, look, last = site.submit(
        stage("make", count=1, max_attempts=1),
        stage("look", given=StageInput("make")),
        stage("last", given=StageInput("look")),
    )
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), 1305)
    for _ in range(3):
        site.agents()
    states = [site.task(each).state for each in (make, look, last)]
    assert states == [TaskState.FAILED, TaskState.BROKEN, TaskState.BROKEN]
    assert "the stage before gave no input" in why_not(site, look, "retry")
    assert tell(site, make, "retry").state == TaskState.RUNNING
    assert [site.task(each).state for each in (look, last)] == [TaskState.PENDING] * 2
    for _ in range(4):
        pilot.run_all("x")
        site.agents()
        site.tick()
    assert [site.task(each).state for each in (make, look, last)] == [TaskState.DONE] * 3
    site.check_counts()


def test_a_restart_opens_the_next_generation_and_retires_the_outputs_of_the_last(site: Site) -> None:
    site.world()
    task = site.counter(4, files_per_job=2)
    pilot = site.pilot()
    pilot.run_all("x")
    site.agents()
    first = {each.did for each in site.outputs(task)}
    assert site.task(task).state == TaskState.DONE and len(first) == 2
    unit_id = site.units(task)[0].id
    view = tell(site, task, "restart", units=[unit_id])  # with the other unit of its job: their output is one
    assert (view.state, view.units) == (TaskState.RUNNING, {"ready": 2, "done": 2})
    assert sorted(each.generation for each in site.units(task)) == [0, 0, 1, 1]
    kept = {each.did for each in site.outputs(task)}
    assert len(kept) == 1 and kept < first
    assert pilot.run_all("x") == 1
    site.agents()
    assert site.task(task).state == TaskState.DONE
    assert len(site.outputs(task)) == 2 and {each.did for each in site.outputs(task)} & first == kept
    assert tell(site, task, "restart").units == {"ready": 4}
    assert site.outputs(task) == []
    site.check_counts()


def test_outputs_that_a_later_stage_took_cannot_be_unmade(site: Site) -> None:
    site.world()
    make, look = site.submit(stage("make", count=1), stage("look", given=StageInput("make")))
    pilot = site.pilot()
    pilot.run_all("x")
    for _ in range(2):
        site.agents()
        pilot.run_all("x")
    site.agents()
    assert "input of a later stage" in why_not(site, make, "restart")
    assert tell(site, look, "restart").state == TaskState.RUNNING


def test_an_avalanche_ends_scouting(site: Site) -> None:
    site.world()
    task = site.counter(2)
    assert "only a task that is scouting" in why_not(site, task, "avalanche")
    with site.database.write() as connection:
        row = workflows.get_task(connection, task)
        assert row is not None
        workflows.move(connection, row, TaskState.SCOUTING, site.clock.now())
    for _ in range(2):
        assert tell(site, task, "avalanche").state == TaskState.RUNNING


def test_an_exhausted_task_goes_on_when_resumed(site: Site) -> None:
    site.world()
    task = site.counter(2)
    pilot = site.pilot()
    pilot.acquire()
    site.agents()
    with site.database.write() as connection:
        brief = tasks.hold(connection, task)
        assert brief is not None
        workflows.move(connection, brief, TaskState.EXHAUSTED, site.clock.now())
    assert pilot.ask().jobs == []
    assert tell(site, task, "resume").state == TaskState.RUNNING
    site.tick()
    pilot.acquire()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (TaskCommand("dance"), "$.command"),
        (TaskCommand("kill", hard=True), "$.hard"),
        (TaskCommand("retry", units=[1]), "$.units"),
    ],
)
def test_a_command_that_makes_no_sense(site: Site, body: TaskCommand, path: str) -> None:
    site.world()
    task = site.counter(1)
    with pytest.raises(Refused) as refused:
        site.user("POST", f"/v1/tasks/{task}:command", body, TaskView)
    assert (refused.value.status, refused.value.paths) == (400, [path])


# ---------------------------------------------------------------- moves in slices


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SLICE", 3)
    monkeypatch.setattr(commands, "SLICES_AT_ONCE", 1)


@pytest.mark.usefixtures("small")
def test_a_large_task_is_moved_in_slices_and_claimed_by_nobody_meanwhile(site: Site) -> None:
    site.world()
    task = site.counter(10)
    pilot = site.pilot()
    running = pilot.acquire()
    view = tell(site, task, "kill")
    assert (view.state, view.units) == (TaskState.ABORTED, {"cancelled": 3, "ready": 7})
    assert pilot.ask().jobs == []
    assert tell(site, task, "kill").state == TaskState.ABORTED  # obeyed already; it carries a slice on
    site.agents()
    assert site.task(task).units == {"cancelled": 10}
    with pytest.raises(Refused) as refused:
        pilot.succeed(running)
    assert refused.value.status == 410
    site.check_counts()
    with site.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(task_move)).scalar_one() == 0


@pytest.mark.usefixtures("small")
def test_a_retry_that_is_half_way_does_not_end_its_task(site: Site) -> None:
    site.world()
    task = site.counter(8, max_attempts=1, files_per_job=8)
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), 1305)
    site.agents()
    assert tell(site, task, "retry").units == {"ready": 3, "failed": 5}
    job = pilot.acquire()
    pilot.succeed(job)
    assert site.task(task).units == {"done": 3, "failed": 5}  # all final, but five are still to be moved
    with site.database.write() as connection:
        assert not advancing._advance(connection, task, site.clock.now())
    assert advance_tasks(site.dispatcher)
    assert site.task(task).state == TaskState.RUNNING
    site.agents()
    assert site.task(task).units == {"done": 3, "ready": 5}
    assert tell(site, task, "kill").units == {"done": 3, "cancelled": 3, "ready": 2}
    site.agents()
    assert site.task(task).units == {"done": 3, "cancelled": 5}
    site.check_counts()


def test_a_unit_claimed_between_the_two_looks_of_a_slice_waits_for_the_next_pass(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world()
    task = site.counter(2)
    job = site.pilot().acquire()
    real = moves._lock_jobs
    blind: list[int] = []

    def miss_once(connection: object, ids: list[int]) -> dict[int, bool]:
        if not blind:
            blind.append(1)
            return {}  # as if the claim were committed only after this look
        return real(connection, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(moves, "_lock_jobs", miss_once)
    assert tell(site, task, "kill").units == {"cancelled": 1, "reserved": 1}
    site.agents()
    assert site.task(task).units == {"cancelled": 2}
    assert job.job_id
    site.check_counts()


def test_a_failed_unit_of_a_job_that_goes_on_is_retried_after_that_job(site: Site) -> None:
    site.world()
    task = site.counter(2, max_attempts=1, files_per_job=2)
    pilot = site.pilot()
    job = pilot.acquire()
    body = UnitsReleaseRequest([UnitResult(job.units[0].unit_id, UnitOutcome.FAILED)])
    pilot.post(f"/v1/jobs/{job.job_id}/units:release", body, UnitsReleaseReply)
    site.agents()
    assert tell(site, task, "retry").units == {"failed": 1, "reserved": 1}
    pilot.succeed(job, units=[job.units[1].unit_id])
    site.agents()
    assert site.task(task).units == {"ready": 1, "done": 1}
    assert pilot.run_all() == 1
    site.agents()
    assert site.task(task).state == TaskState.DONE


# ---------------------------------------------------------------- workflows


def test_a_workflow_is_commanded_stage_by_stage(site: Site) -> None:
    site.world()
    make, look = site.submit(stage("make", count=1), stage("look", given=StageInput("make")))
    workflow = workflow_of(site, make)
    pilot = site.pilot()
    pilot.run_all("x")
    site.agents()
    reply = tell_workflow(site, workflow, "pause")
    assert [each.state for each in reply.workflow.tasks] == [TaskState.DONE, TaskState.PAUSED]
    assert [(each.task_id, each.stage) for each in reply.refused] == [(make, "make")]
    assert tell_workflow(site, workflow, "resume").workflow.tasks[1].state == TaskState.READY
    assert tell_workflow(site, workflow, "kill").workflow.tasks[1].state == TaskState.ABORTED
    with pytest.raises(Refused) as refused:
        tell_workflow(site, workflow, "avalanche")
    assert refused.value.status == 409 and "make" not in refused.value.problem.detail.split(";")[1]
    with pytest.raises(Refused) as refused:
        tell_workflow(site, 999, "kill")
    assert refused.value.status == 404


def test_what_may_change_of_a_live_task(site: Site) -> None:
    site.world()
    one, other = site.counter(1, priority=5), site.counter(1)
    pilot = site.pilot()
    change = TaskChange(priority=-5, max_attempts=1, exclude_sites=[], reason="it can wait")
    view = site.user("PATCH", f"/v1/tasks/{one}", change, TaskView)
    assert (view.priority, view.state) == (-5, TaskState.READY)
    first = pilot.acquire()
    assert first.task_id == other
    job = pilot.acquire()
    assert job.task_id == one
    pilot.fail(job, 1305)
    assert site.task(one).units == {"failed": 1}  # one attempt is all it has now
    site.agents()
    for task, body, status, path in (
        (one, TaskChange(priority=1), 409, None),
        (other, TaskChange(share="nobodys"), 400, "$.share"),
        (other, TaskChange(sites=["nowhere"]), 400, "$.sites"),
        (other, TaskChange(), 400, "$"),
        (other, b'{"owner": "me"}', 400, "$"),
    ):
        with pytest.raises(Refused) as refused:
            site.user("PATCH", f"/v1/tasks/{task}", body, TaskView)
        assert refused.value.status == status
        assert path is None or refused.value.paths == [path]
    with pytest.raises(Refused) as refused:
        site.user("PATCH", f"/v1/tasks/{other}", TaskChange(priority=1), TaskView, name="bob")
    assert refused.value.status == 403


def test_a_clone_is_the_same_but_for_what_changes(site: Site) -> None:
    site.world()
    make, _ = site.submit(
        stage("make", count=3, environment={"A": "1", "B": "2"}, max_attempts=2),
        stage("look", given=StageInput("make")),
        labels={"run": "7"},
    )
    workflow = workflow_of(site, make)
    request = CloneRequest(
        overrides={"*": {"max_attempts": None}, "make": {"input": {"count": 5}, "environment": {"A": "9", "B": None}}},
        request_id="clone-1",
    )
    views = [site.user("POST", f"/v1/workflows/{workflow}:clone", request, WorkflowView) for _ in range(2)]
    assert views[0] == views[1]
    view = views[0]
    assert view.id != workflow and view.labels == {"run": "7", "cloned_from": str(workflow)}
    site.agents()
    assert [each.stage for each in view.tasks] == ["make", "look"]
    assert site.task(view.tasks[0].id).units == {"ready": 5}
    tell(site, make, "kill")
    job = site.pilot().acquire()
    assert job.environment == {"A": "9"}
    wrong: list[tuple[dict[str, dict[str, Any]], str]] = [
        ({"nobody": {}}, "$.overrides.nobody"),
        ({"make": {"files_per_job": 0}}, "$.overrides.make"),
        ({"make": {"colour": "red"}}, "$.overrides.make"),
    ]
    for overrides, path in wrong:
        with pytest.raises(Refused) as refused:
            site.user("POST", f"/v1/workflows/{workflow}:clone", CloneRequest(overrides=overrides), WorkflowView)
        assert (refused.value.status, refused.value.paths) == (400, [path])


def test_a_patch_of_a_spec_changes_tables_field_by_field() -> None:
    old = {"input": {"kind": "counter", "count": 3}, "tags": [1], "needs": {"cores": 1, "disk_mb": 2}}
    changes = {"input": {"kind": "single"}, "needs": {"cores": 4}, "tags": [2]}
    assert cloning.merged(old, changes) == {
        "input": {"kind": "single"}, "tags": [2], "needs": {"cores": 4, "disk_mb": 2}
    }  # fmt: skip
    assert old["needs"] == {"cores": 1, "disk_mb": 2}


# ---------------------------------------------------------------- deletion


def delete(site: Site, workflow: int, force: bool = False, name: str = "u") -> DeletionView:
    query = "force=true" if force else ""
    result = site.raw("DELETE", f"/v1/workflows/{workflow}", token=site.token("user", name), query_string=query)
    if result.status_code >= 400:
        kind = result.headers["content-type"]
        raise Refused(result.status_code, decode_problem(result.content, result.status_code, kind))
    return msgspec.json.decode(result.content, type=DeletionView)


def test_a_workflow_that_is_over_can_be_taken_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "DELETE_SLICE", 2)
    site.world()
    kept = site.counter(1)
    make, look = site.submit(stage("make", count=5), stage("look", given=StageInput("make")))
    workflow = workflow_of(site, make)
    with pytest.raises(Refused, match="kill or finish"):
        delete(site, workflow)
    pilot = site.pilot()
    for _ in range(3):
        pilot.run_all("x")
        site.agents()
    with pytest.raises(Refused, match="10 outputs"):
        delete(site, workflow)
    with pytest.raises(Refused) as refused:
        delete(site, workflow, force=True, name="bob")
    assert refused.value.status == 403
    asked = delete(site, workflow, force=True)
    assert asked.ended is None and delete(site, workflow) == asked
    assert "being deleted" in why_not(site, make, "retry")
    while delete_workflows(site.dispatcher):
        pass
    with pytest.raises(Refused) as refused:
        site.task(look)
    assert refused.value.status == 404
    assert delete(site, workflow).ended is not None  # a repeat is answered alike
    assert site.task(kept).state == TaskState.DONE
    with site.database.read() as connection:
        left = connection.execute(select(unit.c.task_id).distinct()).scalars().all()
    assert left == [kept]
    rows = site.row_counts()
    assert (rows["workflow"], rows["task"], rows["unit"], rows["unit_detail"], rows["output"]) == (1, 1, 1, 1, 1)
    site.check_counts()


def test_files_that_are_yet_to_be_swept_keep_their_rows(site: Site) -> None:
    site.world()
    task = site.counter(1, max_attempts=1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.record(job, "x")
    pilot.fail(job, 1305)
    site.agents()
    delete(site, workflow_of(site, task))
    assert delete_workflows(site.dispatcher) == 0
    assert site.row_counts()["output"] == 1


# ---------------------------------------------------------------- moving on at scale


def test_tasks_that_nothing_happens_to_are_not_looked_at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.world()
    ids = [site.counter(1) for _ in range(3)]
    looked: list[int] = []
    real = tasks.briefs

    def spy(connection: object, found: set[int]) -> object:
        looked.extend(found)
        return real(connection, found)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "briefs", spy)
    assert advance_tasks(site.dispatcher) == 0
    looked.clear()
    advance_tasks(site.dispatcher)
    assert looked == []
    pilot = site.pilot()
    job = pilot.acquire()
    site.agents()
    assert set(looked) == {job.task_id} < set(ids)
    assert site.task(job.task_id).state == TaskState.RUNNING


def test_the_slow_pass_finds_what_was_never_touched(site: Site) -> None:
    site.world()
    done, ready = site.counter(1), site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job)
    recount(site.dispatcher)
    with site.database.write() as connection:
        connection.execute(task_touched.delete())
    assert advance_tasks(site.dispatcher) == 0
    assert site.task(done).state == TaskState.READY
    assert advance_all(site.dispatcher) == 1
    assert [site.task(each).state for each in (done, ready)] == [TaskState.DONE, TaskState.READY]


# ---------------------------------------------------------------- problem tasks


def bad_jobs(site: Site, number: int, code: int = 1305) -> None:
    pilot = site.pilot()
    for _ in range(number):
        pilot.fail(pilot.acquire(), code, exit_code=1)


def test_a_task_whose_jobs_go_wrong_in_the_same_way_is_paused(site: Site) -> None:
    site.world()
    task = site.counter(40, max_attempts=50)
    bad_jobs(site, 9)
    assert pause_problem_tasks(site.dispatcher) == 0
    bad_jobs(site, 1)
    assert pause_problem_tasks(site.dispatcher) == 1
    view = site.task(task)
    assert view.state == TaskState.PAUSED
    assert "10 of its last 10 jobs went wrong; in 10 of them the jobscript ended with an error" in view.state_reason
    assert site.pilot().ask().jobs == []
    assert tell(site, task, "resume").state == TaskState.RUNNING
    bad_jobs(site, 9)  # a person has looked: it counts from the beginning
    assert pause_problem_tasks(site.dispatcher) == 0


def test_faults_of_sites_pause_nobody(site: Site) -> None:
    site.world()
    site.turn("site_failures", 100)
    task = site.counter(1)
    for _ in range(12):
        pilot = site.pilot()
        pilot.fail(pilot.acquire(), 1099)
        site.tick(1000)
    assert pause_problem_tasks(site.dispatcher) == 0
    assert site.task(task).state in (TaskState.READY, TaskState.RUNNING)


def test_the_pause_can_be_turned_off(site: Site) -> None:
    site.world()
    site.turn("problem_jobs", 0)
    site.counter(40, max_attempts=50)
    bad_jobs(site, 12)
    assert pause_problem_tasks(site.dispatcher) == 0


def test_a_cancelled_job_has_not_gone_wrong(site: Site) -> None:
    site.world()
    site.counter(40)
    pilot = site.pilot()
    for _ in range(12):
        pilot.finish(pilot.acquire(), FinishRequest(JobState.CANCELLED))
    assert pause_problem_tasks(site.dispatcher) == 0


def test_units_of_all_states_are_accounted_for(site: Site) -> None:
    assert {state for kind in moves.MoveKind for state in kind.sources} == set(UnitState) - {UnitState.CANCELLED}
