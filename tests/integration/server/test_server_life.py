"""Lives of jobs, units and tasks, from submission to their ends."""

from __future__ import annotations

from common.states import TaskState
from common.wire import MergeRule, StageInput
from tests.integration.server.harness import Site, stage, states


def test_a_task_lives_from_submission_to_done(site: Site) -> None:
    site.world()
    task = site.counter(5, files_per_job=2)
    assert site.task(task).state == TaskState.READY
    pilot = site.pilot()
    assert pilot.run_all("out.root") == 3
    site.agents()
    view = site.task(task)
    assert (view.state, view.units, view.jobs) == (TaskState.DONE, {"done": 5}, {"finished": 3})
    assert len(site.outputs(task)) == 3
    site.check_counts()


def test_three_stages_feed_one_another(site: Site) -> None:
    site.world()
    first, second, third = site.submit(
        stage("make", count=3),
        stage("look", given=StageInput("make", "*.root")),
        stage("merge", given=StageInput("look"), merge=MergeRule(10, 10)),
    )
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
    assert len(merge.units) == 3
    pilot.succeed(merge, "all.root")
    site.agents()
    assert [site.task(each).state for each in (first, second, third)] == [TaskState.DONE] * 3
    site.check_counts()
