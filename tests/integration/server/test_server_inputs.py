"""All kinds of input: lists of files, datasets, outputs of several stages, ranges of events, streams beside the units,
input that comes later, and files on tape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from common.errors import ErrorCode
from common.states import TaskState
from common.wire import (
    BadReplica,
    DatasetInput,
    Endpoint,
    FilesInput,
    InputsRequest,
    MergeRule,
    OutputPattern,
    SecondaryInput,
    StageInput,
    StageSource,
    StorageSpec,
    TaskView,
)
from server.agents.resolve import resolve_input
from server.agents.stage_tape import RETRY_S, release_tape, stage_tape
from server.catalogs.base import CatalogUnavailable
from server.catalogs.fake import FakeCatalog
from server.config import ServerConfig
from server.dispatch.cloning import delete_workflows
from server.plugins import Plugins
from server.stagers.fake import FakeStager
from server.store import inputs
from server.store.schema import bucket, task
from server.store.schema_inputs import task_feed, task_file, task_input, task_source
from tests.integration.server.harness import Refused, Site, file, files, stage, states

PLUGINS = ServerConfig(
    catalogs={"cat": {"plugin": "fake", "datasets": {"mu": 25, "empty": 0}, "page": 10}},
    stagers={"robot": {"plugin": "fake", "polls": 2}},
)


@pytest.fixture
def world(site: Site) -> Iterator[Site]:
    """A world with a disk and a tape, a catalogue and a tape system."""
    site.dispatcher.plugins = Plugins(PLUGINS)
    site.world(storages=("disk", "disk2"))
    put_tape(site, "tape", stager="robot")
    yield site
    site.check_counts()


def put_tape(site: Site, name: str, stager: str | None) -> None:
    spec = StorageSpec(name=name, site="s", endpoints=[Endpoint(f"file:///{name}")], tape=True, stager=stager)
    site.admin("PUT", f"/v1/storages/{name}", spec)


def rows(site: Site, *tables: Any) -> list[int]:
    with site.database.read() as connection:
        return [int(connection.execute(select(func.count()).select_from(each)).scalar_one()) for each in tables]


def add(site: Site, task_id: int, *names: str, **more: Any) -> TaskView:
    body = InputsRequest([file(name, "disk", **more) for name in names])
    return site.user("POST", f"/v1/tasks/{task_id}/inputs", body, TaskView)


def close(site: Site, task_id: int) -> TaskView:
    return site.user("POST", f"/v1/tasks/{task_id}/inputs:close", reply=TaskView)


def dids(site: Site, task_id: int) -> list[str | None]:
    return [unit.did for unit in site.units(task_id)]


def paths(caught: pytest.ExceptionInfo[Refused]) -> list[str]:
    return caught.value.paths


# ---------------------------------------------------------------- lists of files


def test_a_file_list_lies_beside_the_task_until_its_units_are_made(
    world: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "CHUNK", 10)
    names = [f"f{n:03}" for n in range(35)]
    task_id = world.submit_only(stage(given=files(*names)))[0]
    with world.database.read() as connection:
        spec = connection.execute(select(task.c.spec).where(task.c.id == task_id)).scalar_one()
    assert "f001" not in spec and len(spec) < 1000
    assert rows(world, task_input, task_source, task_file) == [4, 1, 0]
    for made in (10, 20, 30):
        resolve_input(world.dispatcher)
        view = world.task(task_id)
        assert (view.state, sum(view.units.values()), view.input_closed) == (TaskState.DEFINED, made, False)
    world.agents()
    assert (world.task(task_id).state, world.task(task_id).input_closed) == (TaskState.READY, True)
    assert dids(world, task_id) == [f"data:{name}" for name in names]
    assert [unit.seq for unit in world.units(task_id)] == list(range(35))
    assert rows(world, task_input, task_source, task_file) == [0, 0, 0]


def test_limit_and_pattern(world: Site) -> None:
    given = FilesInput([file(f"{kind}{n}.root", "disk") for n in range(6) for kind in "ab"], pattern="a*.root", limit=4)
    task_id = world.submit(stage(given=given))[0]
    assert dids(world, task_id) == [f"data:a{n}.root" for n in range(4)]
    assert rows(world, task_input, task_source) == [0, 0]
    pilot = world.pilot()
    assert pilot.run_all() == 4
    world.agents()
    assert world.task(task_id).state == TaskState.DONE


def test_a_limit_ends_a_long_list_early(world: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "CHUNK", 10)
    given = FilesInput([file(f"f{n}", "disk") for n in range(50)], limit=15)
    task_id = world.submit(stage(given=given))[0]
    assert sum(world.task(task_id).units.values()) == 15
    assert rows(world, task_input, task_source) == [0, 0]


def test_per_file_attributes_reach_the_pilot(world: Site) -> None:
    world.submit(stage(given=FilesInput([file("a", "disk", attributes={"run": 7})])))
    unit = world.pilot().acquire().units[0]
    assert unit.file is not None and unit.file.attributes == {"run": 7}


def test_what_is_left_of_an_input_is_kept_for_clones_and_goes_with_its_workflow(
    world: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "CHUNK", 10)
    killed = world.submit_only(stage(given=files(*[f"f{n}" for n in range(30)])))[0]
    resolve_input(world.dispatcher)
    world.command(killed, "kill")
    world.agents()
    assert rows(world, task_input, task_source) == [2, 0]  # lists of files, which nobody looks at any more
    assert sum(world.task(killed).units.values()) == 10
    workflow = world.task(killed).workflow_id
    assert world.raw("DELETE", f"/v1/workflows/{workflow}", token=world.token("user", "u")).status_code < 300
    while delete_workflows(world.dispatcher):
        pass
    assert rows(world, task_input, task_source) == [0, 0]


def test_a_paused_task_is_resolved_when_it_goes_on(world: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "CHUNK", 10)
    task_id = world.submit_only(stage(given=files(*[f"f{n}" for n in range(30)])))[0]
    resolve_input(world.dispatcher)
    world.command(task_id, "pause")
    world.agents()
    assert sum(world.task(task_id).units.values()) == 10
    world.command(task_id, "resume")
    world.agents()
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.READY, {"ready": 30})


# ---------------------------------------------------------------- ranges of events


def test_a_large_file_is_cut_into_ranges_of_events(world: Site) -> None:
    given = FilesInput([file("a", "disk", events=2500, size=10), file("b", "disk", events=1000)], events_per_unit=1000)
    task_id = world.submit(stage(given=given, files_per_job=4))[0]
    told = [(unit.did, unit.first_event, unit.events) for unit in world.units(task_id)]
    assert told == [
        ("data:a", 0, 1000), ("data:a", 1000, 1000), ("data:a", 2000, 500), ("data:b", 0, 1000),
    ]  # fmt: skip
    job = world.pilot().acquire()
    ranges = [(unit.file and unit.file.did, unit.first_event, unit.events) for unit in job.units]
    assert ranges == told


def test_files_without_an_event_count_cannot_be_cut(world: Site) -> None:
    given = FilesInput([file("a", "disk", events=1), file("b", "disk")], events_per_unit=1)
    with pytest.raises(Refused) as caught:
        world.submit(stage(given=given))
    assert paths(caught) == ["$.stages[0].input.files[1].events"]


def test_outputs_without_an_event_count_are_lost_and_say_why(world: Site) -> None:
    make, look = world.submit(stage("make"), stage("look", given=StageInput("make", events_per_unit=10)))
    world.pilot().run_all("a.root")
    world.agents()
    (unit,) = world.units(look)
    assert unit.state.value == "lost" and "number of events is not known" in unit.error_detail
    assert world.task(look).state == TaskState.FAILED


def test_a_job_takes_units_by_their_events(world: Site) -> None:
    given = FilesInput([file(f"f{n}", "disk", events=40) for n in range(5)])
    world.submit(stage(given=given, events_per_job=100, scouts=False))
    pilot = world.pilot()
    assert [len(pilot.acquire().units) for _ in range(3)] == [2, 2, 1]


# ---------------------------------------------------------------- stages


def test_a_stage_takes_the_outputs_of_several_stages(world: Site) -> None:
    given = StageInput(stages=[StageSource("a", "*.root"), StageSource("b", "x*")])
    last, first, second = world.submit(stage("last", given=given), stage("a", count=2), stage("b", count=1))
    assert last > max(first, second)  # whoever feeds has the lower id: locks go with the flow
    assert rows(world, task_feed) == [2]
    pilot = world.pilot()
    job = pilot.acquire()
    assert job.stage == "a"
    pilot.succeed(job, "one.root", "one.txt")
    world.agents()
    assert (world.task(last).state, world.task(last).input_closed) == (TaskState.READY, False)
    done: set[str] = set()
    while len(done) < 2:
        job = pilot.acquire()
        if job.stage == "last":
            pilot.succeed(job)
        else:
            pilot.succeed(job, "x.root", "y.root")
            done.add(job.stage + str(job.job_id))
        world.agents()
    assert (world.task(first).state, world.task(second).state) == (TaskState.DONE, TaskState.DONE)
    assert world.task(last).input_closed
    pilot.run_all()
    world.agents()
    assert (world.task(last).state, world.task(last).units) == (TaskState.DONE, {"done": 4})


def test_a_stage_stays_open_while_any_of_its_parents_runs(world: Site) -> None:
    given = StageInput(stages=[StageSource("a"), StageSource("b")])
    a, b, last = world.submit(stage("a"), stage("b"), stage("last", given=given))
    world.command(a, "kill")
    world.agents()
    assert not world.task(last).input_closed
    world.command(b, "kill")
    world.agents()
    assert (world.task(last).state, world.task(last).input_closed) == (TaskState.BROKEN, True)


def test_a_diamond_ends(world: Site) -> None:
    top, left, right, end = world.submit(
        stage("top", count=3),
        stage("left", given=StageInput("top", "l*")),
        stage("right", given=StageInput("top", "r*")),
        stage("end", given=StageInput(stages=[StageSource("left"), StageSource("right")])),
    )
    pilot = world.pilot()
    for _ in range(40):
        reply = pilot.ask()
        for job in reply.jobs:
            pilot.succeed(job, *{"top": ("l1", "r1", "r2"), "left": ("a",), "right": ("b",), "end": ()}[job.stage])
        world.agents()
    views = {name: world.task(each) for name, each in zip("tlre", (top, left, right, end))}
    assert {view.state for view in views.values()} == {TaskState.DONE}
    assert [views[name].units["done"] for name in "tlre"] == [3, 3, 6, 9]


def test_a_workflow_with_wrong_inputs_is_refused_with_every_field(world: Site) -> None:
    put_tape(world, "lone", stager=None)
    put_tape(world, "odd", stager="nobody")
    bad = [
        stage("a", given=StageInput("b")),
        stage("b", given=StageInput(stages=[StageSource("a"), StageSource("nope")])),
        stage("c", given=DatasetInput(catalog="nope", query="x")),
        stage("d", given=files("x", "y", storages=("lone",)), sites=["s", "t"], exclude_sites=["s"]),
        stage(
            "e",
            given=FilesInput([file("x", "odd")]),
            common_input=[file("z", "tape")],
            files_per_job=2,
            events_per_job=9,
        ),
        stage("f", secondary_inputs=[SecondaryInput(name="p"), SecondaryInput(name="q", stage="zz")]),
        stage("g", given=StageInput()),
    ]
    before = world.row_counts()
    with pytest.raises(Refused) as caught:
        world.submit_only(*bad)
    assert sorted(paths(caught)) == sorted(
        [
            "$.stages",  # the circle
            "$.stages[1].input.stages[1].stage",
            "$.stages[2].input.catalog",
            "$.stages[3].input.files[0].replicas",
            "$.stages[3].input.files[1].replicas",
            "$.stages[3].sites[1]",
            "$.stages[3].exclude_sites",
            "$.stages[4].input.files[0].replicas",
            "$.stages[4].common_input[0].replicas",
            "$.stages[4].events_per_job",
            "$.stages[4].events_per_job",
            "$.stages[5].secondary_inputs[0]",
            "$.stages[5].secondary_inputs[1].stage",
            "$.stages[6].input",
        ]
    )
    assert world.row_counts() == before


# ---------------------------------------------------------------- secondary inputs


def test_secondary_files_go_round(world: Site) -> None:
    listed = [file(f"mb{n}", "disk") for n in range(3)]
    stream = SecondaryInput(name="pileup", files=listed, per_job=2)
    world.submit(stage(count=3, secondary_inputs=[stream]))
    pilot = world.pilot()
    got = []
    for n in range(3):
        reply = pilot.ask(request_id=f"request-again-{n}")
        again = pilot.ask(request_id=f"request-again-{n}")
        assert reply.jobs == again.jobs
        got += [each.did for each in reply.jobs[0].secondary["pileup"]]
    assert sorted(got) == [f"data:mb{n}" for n in range(3) for _ in range(2)]
    assert all(each.replicas for each in reply.jobs[0].secondary["pileup"])


def test_a_task_waits_for_the_stages_of_its_secondary_inputs(world: Site) -> None:
    stream = SecondaryInput(name="calib", stage="calibrate", pattern="*.db", per_job=5)
    work, calibrate = world.submit(stage("work", count=2, secondary_inputs=[stream]), stage("calibrate", count=2))
    assert world.task(work).state == TaskState.PENDING and "stage calibrate" in world.task(work).state_reason
    world.command(work, "pause")
    world.command(work, "resume")
    world.agents()
    assert world.task(work).state == TaskState.PENDING
    pilot = world.pilot()
    for _ in range(2):
        job = pilot.acquire()
        assert job.stage == "calibrate"
        pilot.succeed(job, "a.db", "b.txt")
    world.agents()
    assert world.task(work).state == TaskState.READY
    job = pilot.acquire()
    assert [each.did.endswith("a.db") for each in job.secondary["calib"]] == [True, True]
    pilot.succeed(job)
    pilot.run_all()
    world.agents()
    assert world.task(work).state == TaskState.DONE
    assert world.task(calibrate).state == TaskState.DONE


def test_a_secondary_stage_that_gives_nothing_breaks_the_task(world: Site) -> None:
    stream = SecondaryInput(name="calib", stage="calibrate", pattern="*.db")
    work, _ = world.submit(stage("work", secondary_inputs=[stream]), stage("calibrate"))
    world.pilot().run_all("a.txt")
    world.agents()
    assert world.task(work).state == TaskState.BROKEN
    assert world.task(work).state_reason == "secondary input calib has no files"


# ---------------------------------------------------------------- merging


def test_a_merge_keeps_groups_apart(world: Site) -> None:
    listed = [file(f"f{n}", "disk", attributes={"run": n % 2}) for n in range(8)]
    rule = MergeRule(1, 100, group_by="attribute:run")
    world.submit(stage(given=FilesInput(listed), merge=rule))
    pilot = world.pilot()
    jobs = [pilot.acquire() for _ in range(2)]
    runs = [{unit.file.attributes["run"] for unit in job.units if unit.file} for job in jobs]
    assert sorted(map(sorted, runs)) == [[0], [1]] and [len(job.units) for job in jobs] == [4, 4]


def test_a_merge_by_site_joins_the_storages_of_a_site(world: Site) -> None:
    listed = [file("a", "disk"), file("b", "disk2")]
    apart = world.submit(stage(given=FilesInput(listed), merge=MergeRule(1, 100)))[0]
    joined = world.submit(stage(given=FilesInput(listed), merge=MergeRule(1, 100, group_by="site")))[0]
    with world.database.read() as connection:
        query = select(bucket.c.task_id, bucket.c.locations).order_by(bucket.c.id)
        found = [(row.task_id, row.locations) for row in connection.execute(query)]
    assert found == [(apart, "disk"), (apart, "disk2"), (joined, "@s")]


def test_a_bad_replica_keeps_a_unit_in_its_group(world: Site) -> None:
    listed = [file(f"f{n}", "disk", "disk2", attributes={"run": n}) for n in range(2)]
    world.submit(stage(given=FilesInput(listed), merge=MergeRule(1, 9, group_by="attribute:run")))
    pilot = world.pilot()
    job = pilot.acquire()
    assert job.units[0].file is not None
    pilot.fail(
        job, int(ErrorCode.NO_SUCH_FILE), BadReplica(job.units[0].file.did, "disk", int(ErrorCode.NO_SUCH_FILE), "")
    )
    with world.database.read() as connection:
        keys = {tuple(row) for row in connection.execute(select(bucket.c.locations, bucket.c.grouping))}
    assert ("disk2", str(job.units[0].file.attributes["run"])) in keys


# ---------------------------------------------------------------- datasets


def dataset(query: str = "mu", **more: Any) -> DatasetInput:
    return DatasetInput(catalog="cat", query=query, **more)


def test_a_dataset_becomes_units_page_by_page(world: Site) -> None:
    task_id = world.submit_only(stage(given=dataset(), files_per_job=1))[0]
    resolve_input(world.dispatcher)
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.DEFINED, {"ready": 10})
    world.agents()
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.READY, {"ready": 25})
    assert rows(world, task_source, task_file) == [0, 0]


def test_limit_pattern_and_ranges_of_a_dataset(world: Site) -> None:
    given = dataset(pattern="mu.1?", limit=3, events_per_unit=400)
    task_id = world.submit(stage(given=given))[0]
    assert sorted(set(filter(None, dids(world, task_id)))) == [f"fake:mu.{n}" for n in (10, 11, 12)]
    assert len(world.units(task_id)) == 9


def test_an_unknown_dataset_breaks_the_task_with_the_reason(world: Site) -> None:
    task_id = world.submit(stage(given=dataset("nope")))[0]
    view = world.task(task_id)
    assert view.state == TaskState.BROKEN
    assert view.state_reason == "catalogue cat: there is no dataset 'nope'; known: mu, empty"
    assert rows(world, task_source) == [0]


def test_an_empty_dataset_breaks_the_task(world: Site) -> None:
    task_id = world.submit(stage(given=dataset("empty")))[0]
    assert (world.task(task_id).state, "no file" in world.task(task_id).state_reason) == (TaskState.BROKEN, True)


def test_a_catalogue_that_is_down_is_asked_again_with_growing_waits(
    world: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def down(*args: object) -> None:
        calls.append(world.clock.now())
        raise CatalogUnavailable("it sleeps")

    with monkeypatch.context() as patch:
        patch.setattr(FakeCatalog, "files", down)
        task_id = world.submit(stage(given=dataset()))[0]
        assert (world.task(task_id).state, world.task(task_id).state_reason) == (
            TaskState.PENDING,
            "catalogue cat: it sleeps",
        )
        for _ in range(60):
            world.tick(2.0)
            world.agents()
    gaps = [round(after - before) for before, after in zip(calls, calls[1:])]
    assert gaps == [2, 4, 8, 16, 32]
    world.tick(900)
    world.agents()
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.READY, {"ready": 25})


def test_a_page_that_two_agents_fetch_is_taken_once(world: Site) -> None:
    task_id = world.submit_only(stage(given=dataset()))[0]
    catalog = world.dispatcher.plugins.catalogs["cat"]
    real = catalog.files

    def twice(query: str, after: str) -> Any:
        page = real(query, after)
        catalog.files = real  # type: ignore[method-assign]
        resolve_input(world.dispatcher)
        return page

    catalog.files = twice  # type: ignore[method-assign]
    world.agents()
    assert world.task(task_id).units == {"ready": 25}
    assert len(set(dids(world, task_id))) == 25


def test_files_of_a_catalogue_that_cannot_be_read_are_lost_and_say_why(world: Site) -> None:
    world.dispatcher.plugins = Plugins(
        ServerConfig(catalogs={"cat": {"plugin": "fake", "datasets": {"mu": 2}, "storage": "unheard-of"}})
    )
    task_id = world.submit(stage(given=dataset()))[0]
    assert states(world.units(task_id)) == {"lost": 2}
    assert "known storage: unheard-of" in world.units(task_id)[0].error_detail
    assert world.task(task_id).state == TaskState.FAILED


# ---------------------------------------------------------------- input that comes later


def test_an_open_input_takes_files_until_it_is_closed(world: Site) -> None:
    task_id = world.submit(stage(given=FilesInput([file("a", "disk")], open=True)))[0]
    pilot = world.pilot()
    assert pilot.run_all() == 1
    world.agents()
    assert world.task(task_id).state == TaskState.RUNNING and not world.task(task_id).input_closed
    add(world, task_id, "b", "a", "c")
    add(world, task_id, "b", "c", "d")  # a repeat, and one more
    world.agents()
    assert dids(world, task_id) == [f"data:{name}" for name in "abcd"]
    assert pilot.run_all() == 3
    close(world, task_id)
    close(world, task_id)
    world.agents()
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.DONE, {"done": 4})


def test_an_open_input_may_begin_empty(world: Site) -> None:
    task_id = world.submit(stage(given=FilesInput(open=True)))[0]
    assert (world.task(task_id).state, "open" in world.task(task_id).state_reason) == (TaskState.PENDING, True)
    add(world, task_id, "a")
    world.agents()
    assert world.task(task_id).state == TaskState.READY


def test_an_open_input_closed_without_any_file_breaks_the_task(world: Site) -> None:
    task_id = world.submit(stage(given=FilesInput(open=True)))[0]
    close(world, task_id)
    world.agents()
    assert world.task(task_id).state == TaskState.BROKEN


def test_new_files_bring_a_done_task_back_and_the_stage_behind_it(world: Site) -> None:
    given = FilesInput([file("a", "disk")], open=True)
    first, second = world.submit(stage("first", given=given), stage("second", given=StageInput("first")))
    close(world, first)
    pilot = world.pilot()
    for _ in range(3):
        pilot.run_all("o.root")
        world.agents()
    assert (world.task(first).state, world.task(second).state) == (TaskState.DONE, TaskState.DONE)
    assert add(world, first, "b").state == TaskState.PENDING
    assert world.task(second).state == TaskState.PENDING
    world.agents()
    close(world, first)
    for _ in range(3):
        pilot.run_all("o.root")
        world.agents()
    assert [world.task(each).units for each in (first, second)] == [{"done": 2}, {"done": 2}]
    assert (world.task(first).state, world.task(second).state) == (TaskState.DONE, TaskState.DONE)


def test_a_dataset_that_grows_is_followed(world: Site) -> None:
    task_id = world.submit(stage(given=dataset(open=True)))[0]
    assert world.task(task_id).units == {"ready": 25}
    world.dispatcher.plugins = Plugins(
        ServerConfig(catalogs={"cat": {"plugin": "fake", "datasets": {"mu": 27}, "page": 10}})
    )
    world.agents()
    assert world.task(task_id).units == {"ready": 25}
    world.tick(301)
    world.agents()
    assert world.task(task_id).units == {"ready": 27}
    close(world, task_id)
    world.agents()
    assert world.task(task_id).input_closed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (FilesInput([file("a", "disk")]), "not open"),
        (FilesInput([file("a", "disk")], open=True, limit=1), "the 1 files"),
        (DatasetInput(catalog="cat", query="mu", open=True), "dataset"),
    ],
)
def test_files_for_an_input_that_takes_none_are_refused(world: Site, given: Any, words: str) -> None:
    task_id = world.submit(stage(given=given))[0]
    with pytest.raises(Refused, match=words) as caught:
        add(world, task_id, "b")
    assert caught.value.status == 409


def test_wrong_files_for_an_open_input_are_named_and_none_is_taken(world: Site) -> None:
    task_id = world.submit(stage(given=FilesInput(open=True, events_per_unit=5)))[0]
    body = InputsRequest([file("a", "nowhere", events=1), file("b", "disk")])
    with pytest.raises(Refused) as caught:
        world.user("POST", f"/v1/tasks/{task_id}/inputs", body, TaskView)
    assert paths(caught) == ["$.files[0].replicas[0].storage", "$.files[1].events"]
    assert rows(world, task_input) == [0]


def test_only_its_owner_may_add_files(world: Site) -> None:
    task_id = world.submit(stage(given=FilesInput(open=True)))[0]
    body = InputsRequest([file("a", "disk")])
    for call in (lambda: world.user("POST", f"/v1/tasks/{task_id}/inputs", body, TaskView, "eve"),
                 lambda: world.user("POST", f"/v1/tasks/{task_id}/inputs:close", None, TaskView, "eve")):  # fmt: skip
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.status == 403


# ---------------------------------------------------------------- tape


def robot(site: Site) -> FakeStager:
    found = site.dispatcher.plugins.stagers["robot"]
    assert isinstance(found, FakeStager)
    return found


def recall_all(site: Site, seconds: float = 61.0) -> None:
    stage_tape(site.dispatcher)
    site.tick(seconds)
    stage_tape(site.dispatcher)
    site.agents()


def test_files_on_tape_are_recalled_pinned_and_let_go(world: Site) -> None:
    task_id = world.submit(stage(given=files("a", "b", storages=("tape",))))[0]
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.PENDING, {"pending": 2})
    assert "tape" in world.task(task_id).state_reason
    pilot = world.pilot()
    assert not pilot.ask().jobs
    stage_tape(world.dispatcher)
    assert robot(world).requested == [["d/a", "d/b"]]
    world.tick(61)
    stage_tape(world.dispatcher)  # the first poll: not yet
    assert world.task(task_id).units == {"pending": 2}
    world.tick(61)
    stage_tape(world.dispatcher)
    world.agents()
    assert (world.task(task_id).state, world.task(task_id).units) == (TaskState.READY, {"ready": 2})
    job = pilot.acquire()
    assert job.units[0].file is not None and job.units[0].file.replicas[0].storage == "tape"
    pilot.succeed(job)
    release_tape(world.dispatcher)
    assert robot(world).released == ["d/a"]
    pilot.run_all()
    world.agents()
    assert world.task(task_id).state == TaskState.DONE
    release_tape(world.dispatcher)
    assert robot(world).released == ["d/a", "d/b"] and robot(world).requested == [["d/a", "d/b"]]


def test_a_copy_on_disk_is_taken_before_one_on_tape(world: Site) -> None:
    task_id = world.submit(stage(given=files("a", storages=("disk", "tape"))))[0]
    assert world.task(task_id).units == {"ready": 1}
    unit = world.pilot().acquire().units[0]
    assert unit.file is not None and [each.storage for each in unit.file.replicas] == ["disk"]


def test_ranges_of_one_file_are_one_recall_and_its_pin_lasts_to_the_last(world: Site) -> None:
    given = FilesInput([file("a", "tape", events=30)], events_per_unit=10)
    world.submit(stage(given=given, files_per_job=1))
    for _ in range(3):
        recall_all(world)
    assert robot(world).requested == [["d/a"]]
    pilot = world.pilot()
    for left in (2, 1, 0):
        pilot.succeed(pilot.acquire())
        release_tape(world.dispatcher)
        assert robot(world).released == ([] if left else ["d/a"])


def test_a_file_that_the_tape_system_gives_up_is_asked_for_again_and_then_lost(world: Site) -> None:
    world.dispatcher.plugins = Plugins(ServerConfig(stagers={"robot": {"plugin": "fake", "broken": "d/b"}}))
    task_id = world.submit(stage(given=files("a", "b", storages=("tape",))))[0]
    for _ in range(12):
        recall_all(world)
    assert states(world.units(task_id)) == {"ready": 1, "lost": 1}
    lost = next(unit for unit in world.units(task_id) if unit.state.value == "lost")
    assert lost.error_detail == "it could not be recalled from tape: storage tape: the tape is torn"
    assert [len(each) for each in robot(world).requested] == [2, 1, 1]
    world.pilot().run_all()
    world.agents()
    assert world.task(task_id).state == TaskState.FINISHED


def test_a_retry_of_a_lost_recall_waits_for_the_tape_again(world: Site) -> None:
    world.dispatcher.plugins = Plugins(ServerConfig(stagers={"robot": {"plugin": "fake", "broken": "d/b"}}))
    task_id = world.submit(stage(given=files("b", storages=("tape",))))[0]
    for _ in range(12):
        recall_all(world)
    assert world.task(task_id).state == TaskState.FAILED
    world.dispatcher.plugins = Plugins(ServerConfig(stagers={"robot": {"plugin": "fake"}}))
    world.command(task_id, "retry")
    assert not world.pilot().ask().jobs
    recall_all(world)
    assert world.task(task_id).units == {"ready": 1}


def test_a_tape_system_that_is_down_loses_nothing(world: Site) -> None:
    task_id = world.submit(stage(given=files("a", storages=("tape",))))[0]
    world.dispatcher.plugins = Plugins(ServerConfig(stagers={"robot": {"plugin": "fake", "down": True}}))
    for _ in range(5):
        recall_all(world)
    assert world.task(task_id).units == {"pending": 1}
    world.dispatcher.plugins = Plugins(PLUGINS)
    world.tick(RETRY_S + 1)
    for _ in range(3):
        recall_all(world)
    assert world.task(task_id).units == {"ready": 1}


def test_a_killed_task_lets_go_of_its_tapes(world: Site) -> None:
    asked = world.submit(stage(given=files("a", storages=("tape",))))[0]
    stage_tape(world.dispatcher)
    never = world.submit(stage(given=files("b", storages=("tape",))))[0]
    for task_id in (asked, never):
        world.command(task_id, "kill")
    world.tick(61)
    world.agents()
    release_tape(world.dispatcher)
    assert robot(world).released == ["d/a"]
    stage_tape(world.dispatcher)
    assert robot(world).requested == [["d/a"]]


def test_a_recall_that_takes_too_long_is_given_up(world: Site) -> None:
    world.turn("recall_timeout_s", 1000)
    world.turn("recall_attempts", 1)
    world.dispatcher.plugins = Plugins(ServerConfig(stagers={"robot": {"plugin": "fake", "polls": 10_000}}))
    task_id = world.submit(stage(given=files("a", storages=("tape",))))[0]
    for _ in range(30):
        recall_all(world)
    (unit,) = world.units(task_id)
    assert unit.state.value == "lost" and "after 1000 s" in unit.error_detail
    world.agents()
    assert world.task(task_id).state == TaskState.FAILED


def test_outputs_on_tape_are_recalled_for_the_next_stage(world: Site) -> None:
    make = stage("make", outputs=[OutputPattern("*", storage="tape")])
    _, look = world.submit(make, stage("look", given=StageInput("make")))
    world.pilot().run_all("a.root")
    world.agents()
    assert world.task(look).units == {"pending": 1}
    for _ in range(3):
        recall_all(world)
    assert world.task(look).units == {"ready": 1}


# ---------------------------------------------------------------- as it was submitted


def test_a_task_can_be_told_as_it_was_submitted(world: Site) -> None:
    stream = SecondaryInput(name="p", files=[file("m", "disk")])
    listed = [file("a", "disk", events=25, size=7, attributes={"run": 1}), file("b", "disk", "disk2", events=5)]
    original = stage(given=FilesInput(listed, events_per_unit=10), secondary_inputs=[stream])
    task_id = world.submit_only(original)[0]
    for _ in range(2):
        with world.database.read() as connection:
            spec = connection.execute(select(task.c.spec).where(task.c.id == task_id)).scalar_one()
            told = inputs.restored(connection, task_id, msgspec.json.decode(spec))
        assert msgspec.convert(told, type(original)) == original
        world.agents()


def test_units_were_once_lost_for_a_storage_that_was_described_a_moment_before(world: Site) -> None:
    agents = Site(world.database.url.render_as_string(hide_password=False), world.clock)  # another process
    agents.dispatcher.looks.get()
    world.put_storage("new", "s")
    (task,) = world.submit_only(stage(given=FilesInput([file("a", "new")])))
    resolve_input(agents.dispatcher)
    assert states(world.units(task)) == {"ready": 1}
