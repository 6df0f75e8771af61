"""Submitting and commanding tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from common.states import FINAL_TASK_STATES, TaskState
from common.wire import TaskChange, TaskCommand, WorkflowView
from server.api.routing import Call, Raw
from server.compat.bodies import Body
from server.compat.panda_client.answers import RETRIED_WITH_OPTIONS, Code, Declined, SubmitCode, done
from server.compat.panda_client.asked import asked, decoded
from server.compat.panda_client.job_line import Wrong
from server.compat.panda_client.needs import sites_of
from server.compat.panda_client.show import existing
from server.compat.panda_client.tasks import RUN, translate
from server.compat.panda_client.values import Values
from server.dispatch import commands, rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, TooLarge
from server.dispatch.submit import submit
from server.store import panda_client, workflows
from server.store.database import Connection
from server.store.panda_client import PandaTask

AGAIN = frozenset({TaskState.FAILED, TaskState.BROKEN, TaskState.ABORTED})
"""Tasks in one of these give their names to others."""
MOST_ATTEMPTS = 100
MOST_PARAMETERS = 16 * 1024 * 1024
"""Bytes of a task's parameters, which are kept."""
RETRY_OPTIONS = ("site", "includedSite", "excludedSite", "maxAttempt")
"""What a retry may change."""


def submit_task(dispatcher: Dispatcher, call: Call) -> Raw:
    """A new task. One of the same name that lives, or did something, is a duplicate."""
    body = call.body
    assert isinstance(body, Body)
    given = body.json()
    parameters = given.get("task_parameters") if isinstance(given, dict) else None
    if isinstance(parameters, str):
        parameters = decoded(parameters, "task_parameters")
    if not isinstance(parameters, dict):
        raise Invalid("task_parameters is no JSON object", [("task_parameters", "give an object")])
    if given.get("parent_tid"):
        raise Invalid("parent_tid: submit when the parent task is over, and name its output dataset with --inDS")
    text = json.dumps(parameters)
    if len(text) > MOST_PARAMETERS:
        raise TooLarge(f"task parameters have at most {MOST_PARAMETERS} bytes: name datasets in place of their files")
    made = translate(dispatcher, call.caller, parameters)
    rights.check_submission(dispatcher, call.caller, made.request)
    owner = call.caller.name
    if parameters.get("uniqueTaskName"):
        with dispatcher.database.read() as connection:
            earlier = panda_client.newest(connection, owner, made.name)
        if earlier is not None and earlier[1] not in AGAIN:
            raise _duplicate(made.name, *earlier)
        # Of two submissions at the same moment both find the same last task, and the second gets that of the first.
        last = 0 if earlier is None else earlier[0]
        made.request.request_id = f"panda {last} {hashlib.sha256(made.name.encode()).hexdigest()}"

    def also(connection: Connection, view: WorkflowView) -> None:
        task_id = _task_id(view)
        panda_client.keep_task(connection, task_id, view.id, owner, made.name, text)
        outputs = enumerate(made.request.stages[-1].outputs, 1)
        names = {number: output.dataset for number, output in outputs if output.dataset is not None}
        panda_client.keep_datasets(connection, task_id, owner, names)

    task_id = _task_id(submit(dispatcher, owner, made.request, also))
    return done(task_id, f"succeeded. new jediTaskID={task_id}")


def _task_id(view: WorkflowView) -> int:
    return next(task.id for task in view.tasks if task.stage == RUN)


def _duplicate(name: str, task_id: int, state: TaskState) -> Declined:
    words = f"jediTaskID={task_id} of the same name {name} is {state.value}"
    remedy = "choose another --outDS, or give --allowTaskDuplication"
    if state not in FINAL_TASK_STATES:
        remedy = f"kill it first, {remedy}"
    return Declined(f"duplicated: {words}: {remedy}", SubmitCode.DUPLICATE)


def _tell(dispatcher: Dispatcher, call: Call, task: PandaTask, request: TaskCommand) -> None:
    """Command a task, with the build that it waits for if there is one."""
    if task.parameters is None:
        commands.command(dispatcher, call.caller, task.task_id, request)
    else:
        commands.command_workflow(dispatcher, call.caller, task.workflow_id, request)


def _asked_task(dispatcher: Dispatcher, call: Call) -> PandaTask:
    return existing(dispatcher, call.caller, asked(call).number("task_id"))


def _simple(dispatcher: Dispatcher, call: Call, word: str) -> Raw:
    task = _asked_task(dispatcher, call)
    _tell(dispatcher, call, task, TaskCommand(word))
    return done(int(Code.REGISTERED), f"command {word} is carried out for task {task.task_id}")


def kill(dispatcher: Dispatcher, call: Call) -> Raw:
    """Nothing more, and what runs is killed."""
    task = _asked_task(dispatcher, call)
    _tell(dispatcher, call, task, TaskCommand("kill"))
    return done(f"task {task.task_id} is aborted, and its jobs are being killed")


def finish(dispatcher: Dispatcher, call: Call) -> Raw:
    """Nothing more; running jobs end in their own time if that is asked for (soft), else they are killed."""
    fields = asked(call)
    task = existing(dispatcher, call.caller, fields.number("task_id"))
    soft = fields.flag("soft")
    _tell(dispatcher, call, task, TaskCommand("finish", hard=not soft))
    how = "running jobs go on to their end" if soft else "running jobs are being killed"
    return done(f"task {task.task_id} finishes: {how}")


def pause(dispatcher: Dispatcher, call: Call) -> Raw:
    """No new jobs for a while."""
    return _simple(dispatcher, call, "pause")


def resume(dispatcher: Dispatcher, call: Call) -> Raw:
    """On again."""
    return _simple(dispatcher, call, "resume")


def avalanche(dispatcher: Dispatcher, call: Call) -> Raw:
    """All jobs at once, without waiting for the scouts."""
    return _simple(dispatcher, call, "avalanche")


def reactivate(dispatcher: Dispatcher, call: Call) -> Raw:
    """What failed once more; the same as a retry without options."""
    return _simple(dispatcher, call, "retry")


def retry(dispatcher: Dispatcher, call: Call) -> Raw:
    """What failed once more, perhaps at other sites."""
    fields = asked(call)
    task = existing(dispatcher, call.caller, fields.number("task_id"))
    options = fields.fields.get("new_parameters") or {}
    if isinstance(options, str):
        options = decoded(options, "new_parameters")
    if not isinstance(options, dict):
        raise Invalid("new_parameters is no JSON object", [("new_parameters", "give an object")])
    change = _change(dispatcher, options)
    _tell(dispatcher, call, task, TaskCommand("retry"))
    if change is not None:
        commands.change(dispatcher, call.caller, task.task_id, change)
    # The client takes another code for success when it has sent options, empty ones too.
    code = RETRIED_WITH_OPTIONS if options else int(Code.REGISTERED)
    return done(code, f"task {task.task_id} tries again what failed")


def _change(dispatcher: Dispatcher, options: Mapping[str, Any]) -> TaskChange | None:
    """What a retry changes of its task; None: nothing. Raises Invalid, and nothing was done yet."""
    values = Values(options)
    given = sorted(name for name in options if values.raw(name) is not None)
    unknown = [name for name in given if name not in RETRY_OPTIONS]
    if unknown:
        raise Invalid(
            f"{unknown[0][:60]} cannot be changed by a retry: only {', '.join(RETRY_OPTIONS)}; or submit again"
        )
    if not given:
        return None
    world = dispatcher.looks.fresh().world
    try:
        sites = [*sites_of([*values.texts("site"), *values.texts("includedSite")], world, "site")]
        excluded = [*sites_of(values.texts("excludedSite"), world, "excludedSite")]
        tries = values.number("maxAttempt")
    except Wrong as error:
        raise Invalid("; ".join(f"{name}: {words}" for name, words in error.problems)) from error
    return TaskChange(
        sites=sites or None,
        exclude_sites=excluded or None,
        max_attempts=None if tries is None else min(tries, MOST_ATTEMPTS),
        reason="retried with other options",
    )


def increase_attempts(dispatcher: Dispatcher, call: Call) -> Raw:
    """More attempts for each unit."""
    fields = asked(call)
    task = existing(dispatcher, call.caller, fields.number("task_id"))
    more = fields.maybe_number("increase")
    with dispatcher.database.read() as connection:
        row = workflows.get_task(connection, task.task_id)
    before = row.spec.max_attempts if row is not None else 0
    after = min(MOST_ATTEMPTS, before + (3 if more is None else more))
    if after != before:
        commands.change(dispatcher, call.caller, task.task_id, TaskChange(max_attempts=after, reason="more attempts"))
    return done(int(Code.REGISTERED), f"units of task {task.task_id} are tried {after} times now")


def change_priority(dispatcher: Dispatcher, call: Call) -> Raw:
    """Another priority."""
    fields = asked(call)
    task = existing(dispatcher, call.caller, fields.number("task_id"))
    priority = fields.number("priority")
    if priority > 10_000:
        raise Invalid("priority is too high", [("priority", "give at most 10000")])
    commands.change(dispatcher, call.caller, task.task_id, TaskChange(priority=priority))
    return done(int(Code.REGISTERED), f"task {task.task_id} has priority {priority} now")


def reload_input(dispatcher: Dispatcher, call: Call) -> Raw:
    """Not here: the files of a dataset were found when the task was submitted."""
    task = _asked_task(dispatcher, call)
    raise Declined(
        f"task {task.task_id} has the files that its datasets had when it was submitted: submit again for others, "
        "with --inputFileList to leave out those that are done",
        Code.WRONG_STATE,
    )
