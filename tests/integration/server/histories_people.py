"""What people do in the random histories: submit, add, command, change, clone, delete; admins turn what they may."""

from __future__ import annotations

from functools import partial
from typing import Any, Optional

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import (
    CloneRequest,
    CounterInput,
    FilesInput,
    InputsRequest,
    LimitRetry,
    MergeRule,
    MoreMemory,
    NoRetry,
    Registration,
    RetryAction,
    RetryCondition,
    RetryRule,
    SecondaryInput,
    StageInput,
    StageSource,
    StageSpec,
    TaskChange,
    TaskCommand,
    TaskView,
    WorkflowCommandReply,
    WorkflowRequest,
    WorkflowView,
)
from server.engine.inputs import sources_of
from tests.integration.server.harness import Refused, file, files, stage
from tests.integration.server.histories_model import MAX_TASKS, Model

COMMANDS = [
    {"command": "pause"},
    {"command": "resume"},
    {"command": "retry"},
    {"command": "avalanche"},
    {"command": "restart"},
    {"command": "kill"},
    {"command": "finish"},
    {"command": "finish", "hard": True},
]
RULES: dict[str, RetryAction] = {
    "never": NoRetry(),
    "twice": LimitRetry(2),
    "memory": MoreMemory(cap_mb=3000, factor=1.5),
}
ENDS = FINAL_TASK_STATES | {TaskState.FINISHING}


class People(Model):
    """Users and admins."""

    def submitted(self, request: WorkflowRequest) -> None:
        request.request_id = f"submit-{self.site.number():06d}"
        self.taken(self.twice(lambda: self.site.user("POST", "/v1/workflows", request, WorkflowView)), request)

    def taken(self, view: WorkflowView, request: WorkflowRequest) -> None:
        """A workflow is there; its tasks have the input of ``request``."""
        self.workflows.append(view.id)
        self.tasks += [task.id for task in view.tasks]
        ids = {each.name: task.id for task, each in zip(view.tasks, request.stages, strict=True)}
        for task, each in zip(view.tasks, request.stages, strict=True):
            if isinstance(each.input, CounterInput):
                self.inputs[task.id] = each.input.count
            elif isinstance(each.input, FilesInput):
                self.inputs[task.id] = len(each.input.files) * (3 if each.input.events_per_unit else 1)
                if each.input.open:
                    self.opened.add(task.id)
                    self.open[task.id] = {one.did.removeprefix("data:") for one in each.input.files}
            elif isinstance(each.input, StageInput):
                self.parents[task.id] = [ids[one.stage] for one in sources_of(each.input)]
        self.requests[view.id] = request

    @precondition(lambda self: len(self.tasks) < MAX_TASKS)
    @rule(
        count=st.integers(1, 9),
        per_job=st.integers(1, 4),
        attempts=st.integers(1, 3),
        shape=st.sampled_from(["one", "one", "merge", "groups", "chain", "both", "beside"]),
        booked=st.sampled_from([None, None, Registration.SERVER]),
        scouts=st.booleans(),
    )
    def new_task(
        self, count: int, per_job: int, attempts: int, shape: str, booked: Optional[Registration], scouts: bool
    ) -> None:
        more: dict[str, Any] = {"max_attempts": attempts, "registration": booked}
        stages = [stage("make", count=count, files_per_job=per_job, **{**more, "scouts": scouts})]
        if shape in ("merge", "groups", "chain"):
            merge = MergeRule(2, 4, group_by="storage" if shape == "groups" else None)
            stages.append(stage("merge", given=StageInput("make"), merge=merge, **more))
        if shape == "chain":
            stages.append(stage("look", given=StageInput("merge"), files_per_job=per_job, **more))
        if shape == "both":
            stages.append(stage("more", count=per_job, **more))
            both = StageInput(stages=[StageSource("make"), StageSource("more")])
            stages.append(stage("look", given=both, files_per_job=2, **more))
        if shape == "beside":
            stages.append(self._beside(count, more))
        self.submitted(WorkflowRequest(name="w", stages=stages))

    def _beside(self, count: int, more: dict[str, Any]) -> StageSpec:
        """A stage that takes the outputs of another beside its units."""
        stream = SecondaryInput(name="noise", stage="make", per_job=2)
        return stage("beside", count=count, secondary_inputs=[stream], **more)

    @precondition(lambda self: len(self.tasks) < MAX_TASKS)
    @rule(count=st.integers(1, 5), per_job=st.integers(1, 3), more=st.booleans(), ranges=st.booleans())
    def new_task_over_files(self, count: int, per_job: int, more: bool, ranges: bool) -> None:
        names = [f"f{n}" for n in range(count)]
        given = files(*names, storages=("disk", "tape"), size=2**20, events=25 if ranges else None)
        given.open, given.events_per_unit = more, 10 if ranges else None
        self.submitted(WorkflowRequest(name="w", stages=[stage(given=given, files_per_job=per_job)]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), names=st.sets(st.sampled_from([f"f{n}" for n in range(12)]), min_size=1))
    def add_files(self, data: st.DataObject, names: set[str]) -> None:
        task = data.draw(st.sampled_from(sorted(self.open)))
        per_file = self.inputs[task] // len(self.open[task])
        listed = [file(each, "disk", size=2**20, events=25 if per_file > 1 else None) for each in sorted(names)]
        body = InputsRequest(listed)
        if self.conflicts(lambda: self.site.user("POST", f"/v1/tasks/{task}/inputs", body, TaskView)):
            assert self.before.tasks[task] in ENDS
            return
        self.open[task] |= names
        self.inputs[task] = per_file * len(self.open[task])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close_input(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.open)))
        self.conflicts(lambda: self.site.user("POST", f"/v1/tasks/{task}/inputs:close", None, TaskView))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), words=st.sampled_from(COMMANDS))
    def command(self, data: st.DataObject, words: dict[str, Any]) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        body = TaskCommand(**words)
        if words["command"] in ("kill", "finish"):
            self.cut.add(task)
        if words["command"] == "restart" and data.draw(st.booleans()):
            mine = [each for each, unit in self.before.units.items() if unit.task == task]
            body.units = data.draw(st.lists(st.sampled_from(mine), min_size=1, unique=True)) if mine else []
        self.conflicts(lambda: self.site.user("POST", f"/v1/tasks/{task}:command", body, TaskView))

    @precondition(lambda self: self.workflows)
    @rule(data=st.data(), words=st.sampled_from(COMMANDS))
    def command_all(self, data: st.DataObject, words: dict[str, Any]) -> None:
        """The same to all tasks of a workflow."""
        workflow = data.draw(st.sampled_from(self.workflows))
        body, path = TaskCommand(**words), f"/v1/workflows/{workflow}:command"
        if words["command"] in ("kill", "finish"):
            view = self.site.user("GET", f"/v1/workflows/{workflow}", reply=WorkflowView)
            self.cut |= {each.id for each in view.tasks}
        try:
            first = self.site.user("POST", path, body, WorkflowCommandReply)
        except Refused as refused:
            assert refused.status == 409, refused
            return
        self.swap()
        again = self.site.user("POST", path, body, WorkflowCommandReply)
        assert [each.state for each in again.workflow.tasks] == [each.state for each in first.workflow.tasks]

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), priority=st.integers(-10, 10), attempts=st.integers(1, 4))
    def change(self, data: st.DataObject, priority: int, attempts: int) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        body = TaskChange(priority=priority, max_attempts=attempts)
        self.conflicts(lambda: self.site.user("PATCH", f"/v1/tasks/{task}", body, TaskView))

    @precondition(lambda self: self.workflows and len(self.tasks) < MAX_TASKS)
    @rule(data=st.data())
    def clone(self, data: st.DataObject) -> None:
        workflow = data.draw(st.sampled_from(self.workflows))
        body = CloneRequest(request_id=f"clone-{self.site.number():06d}")
        view = self.twice(lambda: self.site.user("POST", f"/v1/workflows/{workflow}:clone", body, WorkflowView))
        before = self.site.user("GET", f"/v1/workflows/{workflow}", reply=WorkflowView).tasks
        self.taken(view, self.requests[workflow])
        for old, new in zip(before, view.tasks, strict=True):
            if old.id in self.opened:
                self.opened.add(new.id)
            if old.id in self.inputs:
                self.inputs[new.id] = self.inputs[old.id]  # files that were added since are cloned, too
            if old.id in self.open:
                self.open[new.id] = set(self.open[old.id])

    @precondition(lambda self: self.workflows)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        workflow = data.draw(st.sampled_from(self.workflows))
        ids = {each.id for each in self.site.user("GET", f"/v1/workflows/{workflow}", reply=WorkflowView).tasks}
        path = f"/v1/workflows/{workflow}"
        call = partial(self.site.raw, "DELETE", path, token=self.site.token("user", "u"), query_string="force=true")
        answers = [call(), call()]
        assert answers[0].status_code == answers[1].status_code
        if answers[0].status_code == 409:
            assert any(self.before.tasks[each] not in FINAL_TASK_STATES for each in ids)
            return
        assert answers[0].status_code < 300, answers[0].text
        assert answers[0].content == answers[1].content
        self.workflows.remove(workflow)
        self.tasks = [each for each in self.tasks if each not in ids]
        for each in ids:
            self.open.pop(each, None)
        self.deleted |= ids

    # ------------------------------------------------------------ admins

    @rule(data=st.data(), name=st.sampled_from([*RULES, "q", "r"]))
    def admin(self, data: st.DataObject, name: str) -> None:
        """Retry rules come and go, queues are paused and opened again."""
        if name not in RULES:
            status = data.draw(st.sampled_from(["online", "online", "online", "paused", "draining", "offline"]))
            self.site.put_queue(name, status=status)
            return
        path = f"/v1/retry-rules/{name}"
        if data.draw(st.booleans()):
            when = RetryCondition(error_codes=[data.draw(st.sampled_from(["1305", "1..9999"]))])
            body = RetryRule(name=name, action=RULES[name], when=when)
            self.twice(lambda: self.site.admin("PUT", path, body, RetryRule))
        else:
            assert self.site.raw("DELETE", path, token=self.site.token("admin")).status_code in (204, 404)
