"""Tasks that are ended before all of their input became units: no file is forgotten, and none is said to be done."""

from __future__ import annotations

from typing import Any

import pytest

from common.states import TaskState
from common.wire import CloneRequest, InputsRequest, TaskCommand, TaskView, WorkflowView
from server.agents.resolve import resolve_input
from tests.integration.server.harness import Site, file, files, stage


def clone_of(site: Site, task: int) -> int:
    path = f"/v1/workflows/{site.task(task).workflow_id}:clone"
    return site.user("POST", path, CloneRequest(), WorkflowView).tasks[0].id


@pytest.mark.parametrize("words", [{"command": "kill"}, {"command": "finish"}, {"command": "finish", "hard": True}])
def test_a_clone_of_a_task_that_was_ended_early_has_all_its_files(site: Site, words: dict[str, Any]) -> None:
    """Who sees a mistake at once, kills and clones with a change, found the clone without the files."""
    site.world()
    (task,) = site.submit_only(stage(given=files("a", "b")))
    site.user("POST", f"/v1/tasks/{task}:command", TaskCommand(**words), TaskView)
    site.agents()
    assert site.task(task).units == {}
    clone = clone_of(site, task)
    site.agents()
    assert {each.did for each in site.units(clone)} == {"data:a", "data:b"}


def test_a_clone_of_a_task_that_was_ended_while_files_came_has_those_too(site: Site) -> None:
    site.world()
    given = files("a")
    given.open = True
    (task,) = site.submit(stage(given=given))
    site.user("POST", f"/v1/tasks/{task}/inputs", InputsRequest([file("b", "disk")]), TaskView)
    site.command(task, "kill")
    site.agents()
    clone = clone_of(site, task)
    site.agents()
    assert {each.did for each in site.units(clone)} == {"data:a", "data:b"}


def test_a_task_told_to_finish_before_all_of_its_files_were_units_is_not_done(site: Site) -> None:
    site.world()
    given = files("a")
    given.open = True
    (task,) = site.submit(stage(given=given))
    pilot = site.pilot()
    job = pilot.acquire()
    site.user("POST", f"/v1/tasks/{task}/inputs", InputsRequest([file("b", "disk")]), TaskView)
    site.command(task, "finish")
    pilot.succeed(job)
    site.agents()
    view = site.task(task)
    assert (view.state, view.units) == (TaskState.FINISHED, {"done": 1})
    assert "before all of its input" in view.state_reason


def test_a_counter_told_to_finish_before_all_of_it_was_units_has_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.agents.resolve.SLICE", 2)
    site.world()
    (task,) = site.submit_only(stage(count=3))
    pilot = site.pilot()
    resolve_input(site.dispatcher)
    site.command(task, "finish")
    site.agents()
    assert pilot.ask().jobs == []
    assert (site.task(task).state, site.task(task).units) == (TaskState.FAILED, {"cancelled": 2})


def test_a_task_told_to_finish_with_all_its_input_taken_is_done(site: Site) -> None:
    site.world()
    (task,) = site.submit(stage(given=files("a")))
    pilot = site.pilot()
    job = pilot.acquire()
    site.command(task, "finish")
    pilot.succeed(job)
    site.agents()
    assert site.task(task).state == TaskState.DONE
