"""Projects: files handed out to workers outside of the pilots' slots."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from common.states import UnitState
from common.wire.projects import (
    FileOutcome,
    ProjectCopy,
    ProjectFilesRequest,
    ProjectPage,
    ProjectRequest,
    ProjectState,
    ProjectView,
    ReserveReply,
    ReserveRequest,
    RestartState,
)
from server.agents.projects import time_out_workers
from server.agents.resolve import resolve_input
from server.agents.tasks import advance_tasks
from server.dispatch import reserve_together
from server.dispatch.reserve_together import Reserving
from server.engine.projects import Outcome
from server.store.reservations import Releasing
from server.store.schema_projects import reservation
from tests.integration.server import project_tools as tools
from tests.integration.server.harness import Refused, Site, files, stage
from tests.integration.server.project_tools import (
    agents,
    command,
    done,
    failed,
    listed,
    look,
    make,
    release,
    reserve,
    restart,
    states,
    take,
)


@pytest.fixture
def here(site: Site) -> Site:
    """Two sites, each with a disk, 30 apart; and one far away."""
    site.put_site("near", distances={"far-disk": 30})
    site.put_site("far", distances={"near-disk": 30})
    site.put_storage("near-disk", "near")
    site.put_storage("far-disk", "far")
    site.put_queue("q", "near")
    return site


def names(reply: ReserveReply) -> list[str]:
    return [each.did.partition(":")[2] for each in reply.files]


# ---------------------------------------------------------------- one after another


def test_files_are_given_out_in_their_order_and_the_project_is_done(here: Site) -> None:
    project = make(here, "a", "b", "c", storages=["near-disk"])
    for name in ("a", "b", "c"):
        assert take(here, project) == name
        done(here, project, name)
    agents(here)
    assert look(here, project).state is ProjectState.DONE
    assert reserve(here, project).state is ProjectState.DONE
    here.check_counts()


def test_what_a_worker_gets(here: Site) -> None:
    project = make(
        here,
        files=listed("a", storages=["near-disk", "far-disk"], size=5, attributes={"run": 7}),
        attributes={"step": "reco"},
        file_attributes={"run": 1, "debug": True},
    )
    reply = reserve(here, project, "node1_77", cpu_site="far")
    assert reply.attributes == {"step": "reco"}
    (file,) = reply.files
    assert (file.did, file.size, file.worker, file.attempts) == ("data:a", 5, "node1_77", 1)
    assert file.attributes == {"run": 7, "debug": True}
    assert [(each.storage, each.distance, each.urls) for each in file.replicas] == [
        ("far-disk", 0, ["file:///far-disk/d/a"]),
        ("near-disk", 30, ["file:///near-disk/d/a"]),
    ]
    assert file.expires == here.clock.now() + 12 * 3600


def test_the_nearest_file_comes_first_and_those_equally_near_in_order(here: Site) -> None:
    mixed = [*listed("f1", "f2", storages=["far-disk"]), *listed("n1", storages=["near-disk"])]
    mixed += [*listed("b1", storages=["near-disk", "far-disk"]), *listed("n2", storages=["near-disk"])]
    project = make(here, files=mixed)
    assert [take(here, project, cpu_site="near") for _ in range(3)] == ["n1", "b1", "n2"]
    assert [take(here, project, cpu_site="far") for _ in range(2)] == ["f1", "f2"]


def test_without_a_site_files_come_in_the_order_of_the_list(here: Site) -> None:
    mixed = [listed(f"f{n}", storages=["far-disk" if n % 2 else "near-disk"])[0] for n in range(6)]
    project = make(here, files=mixed)
    assert [take(here, project) for _ in range(6)] == [f"f{n}" for n in range(6)]


def test_what_failed_goes_behind_everything_that_did_not_however_near(here: Site) -> None:
    project = make(here, files=[*listed("n1", "n2", storages=["near-disk"]), *listed("f1", storages=["far-disk"])])
    assert take(here, project, cpu_site="near") == "n1"
    failed(here, project, "n1")
    assert [take(here, project, cpu_site="near") for _ in range(3)] == ["n2", "f1", "n1"]
    failed(here, project, "n1")
    failed(here, project, "f1")
    assert take(here, project, cpu_site="near") == "f1"
    assert tools.files(here, project)["n1"].attempts == 2


def test_what_failed_for_good_fails_the_project(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"])
    take(here, project), take(here, project)
    failed(here, project, "a", retry=False)
    done(here, project, "b")
    agents(here)
    assert (look(here, project).state, states(here, project)) == (ProjectState.FAILED, {"failed": 1, "done": 1})


def test_several_at_once_and_outcomes_for_several(here: Site) -> None:
    mixed = [*listed("n1", "n2", storages=["near-disk"]), *listed("f1", "f2", storages=["far-disk"])]
    project = make(here, files=mixed)
    assert names(reserve(here, project, count=3, cpu_site="near")) == ["n1", "n2", "f1"]
    outcomes = release(here, project, "n1", "f1", "n2", "nothing", "f2")
    assert [(each.accepted, each.state.value if each.state else "") for each in outcomes] == [
        (True, "done"), (True, "done"), (True, "done"), (False, ""), (False, "ready"),
    ]  # fmt: skip
    here.check_counts()


def test_files_on_storages_that_cannot_be_read_wait(here: Site) -> None:
    project = make(here, files=[*listed("n", storages=["near-disk"]), *listed("b", storages=["near-disk", "far-disk"])])
    here.put_storage("near-disk", "near", status="offline")
    (file,) = reserve(here, project, cpu_site="near").files
    assert (file.did, [each.storage for each in file.replicas]) == ("data:b", ["far-disk"])
    assert reserve(here, project, cpu_site="near").files == []
    shown = tools.files(here, project, "cpu_site=near")["b"].replicas
    assert {each.storage: each.available for each in shown} == {"near-disk": False, "far-disk": True}
    here.put_storage("near-disk", "near")
    here.dispatcher.projects.forget(project)
    assert take(here, project) == "n"


def test_a_virtual_project_asks_for_no_replicas(here: Site) -> None:
    project = make(here, "a", "b", storages=[], virtual=True)
    assert take(here, project, cpu_site="near") == "a"
    with pytest.raises(Refused) as error:
        make(here, "a", storages=[])
    assert error.value.paths == ["$.files[0].replicas"]


def test_reserving_begins_before_all_files_are_known(here: Site) -> None:
    request = ProjectRequest(files=listed(*(f"f{n:04d}" for n in range(2500)), storages=["near-disk"]))
    project = here.user("POST", "/v1/projects", request, ProjectView).id
    resolve_input(here.dispatcher)
    assert look(here, project).open
    assert take(here, project) == "f0000"
    agents(here)
    assert sum(look(here, project).files.values()) == 2500


# ---------------------------------------------------------------- said again


def test_the_same_request_gets_the_same_files(here: Site) -> None:
    project = make(here, "a", "b", "c", storages=["near-disk"])
    first = reserve(here, project, request_id="request-1", count=2)
    assert reserve(here, project, request_id="request-1", count=2).files == first.files
    assert names(reserve(here, project, "other", request_id="request-1")) == ["c"]
    assert reserve(here, project, request_id="request-1", count=2).files == first.files, "also when none is left"
    here.check_counts()


@pytest.mark.parametrize("outcome", FileOutcome)
def test_a_release_may_be_repeated(here: Site, outcome: FileOutcome) -> None:
    project = make(here, "a", storages=["near-disk"])
    take(here, project)
    first = release(here, project, "a", outcome=outcome)
    assert release(here, project, "a", outcome=outcome) == first
    assert first[0].accepted
    here.check_counts()
    assert tools.files(here, project)["a"].attempts == 1


def test_a_worker_releases_nothing_that_it_does_not_hold(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"])
    take(here, project, "mine")
    assert not release(here, project, "a", worker="other")[0].accepted
    assert not release(here, project, "b", worker="mine")[0].accepted
    assert states(here, project) == {"reserved": 1, "ready": 1}
    done(here, project, "a", worker="mine")
    (late,) = release(here, project, "a", worker="mine", outcome=FileOutcome.FAILED)
    assert (late.accepted, late.state and late.state.value) == (False, "done")


def test_a_file_named_twice_is_refused(here: Site) -> None:
    project = make(here, "a", storages=["near-disk"])
    take(here, project)
    with pytest.raises(Refused) as error:
        release(here, project, "a", "a")
    assert error.value.paths == ["$.files[1].did"]
    assert states(here, project) == {"reserved": 1}


def test_a_project_is_made_once_for_one_request(here: Site) -> None:
    request = ProjectRequest(files=listed("a", storages=["near-disk"]), request_id="request-1")
    ids = {here.user("POST", "/v1/projects", request, ProjectView).id for _ in range(2)}
    assert len(ids) == 1


# ---------------------------------------------------------------- time


def test_a_silent_worker_loses_its_file(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"], worker_timeout_s=100.0)
    assert take(here, project, "silent") == "a"
    here.tick(99)
    assert not time_out_workers(here.dispatcher)
    here.tick(2)
    agents(here)
    assert states(here, project) == {"ready": 2}
    (late,) = release(here, project, "a", worker="silent")
    assert (late.accepted, late.reason) == (False, "the worker held it for too long: it was taken away")
    assert [take(here, project) for _ in range(2)] == ["b", "a"]
    assert not release(here, project, "a", worker="silent")[0].accepted
    file = tools.files(here, project)["a"]
    assert (file.worker, file.attempts, file.timeouts) == ("w", 2, 1)
    here.check_counts()


def test_a_time_out_may_be_final(here: Site) -> None:
    project = make(here, "a", storages=["near-disk"], worker_timeout_s=100.0, retry_on_timeout=False)
    take(here, project)
    here.tick(101)
    agents(here)
    assert (states(here, project), look(here, project).state) == ({"failed": 1}, ProjectState.FAILED)


def test_without_a_time_out_a_worker_may_take_for_ever(here: Site) -> None:
    project = make(here, "a", storages=["near-disk"], worker_timeout_s=None, idle_timeout_s=None)
    take(here, project)
    here.clock.advance(1e7)  # type: ignore[attr-defined]
    agents(here)
    assert (states(here, project), look(here, project).state) == ({"reserved": 1}, ProjectState.ACTIVE)
    done(here, project, "a")


def idle(here: Site, project: int, seconds: float = 1001) -> None:
    here.clock.advance(seconds)  # type: ignore[attr-defined]
    agents(here)
    assert look(here, project).state is ProjectState.ABANDONED


def test_an_idle_project_is_abandoned_and_comes_back_with_a_reservation(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"], idle_timeout_s=1000.0)
    idle(here, project)
    assert take(here, project) == "a"
    assert look(here, project).state is ProjectState.ACTIVE
    here.clock.advance(999)  # type: ignore[attr-defined]
    agents(here)
    assert look(here, project).state is ProjectState.ACTIVE


def test_an_abandoned_project_comes_back_with_a_release_or_by_command(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"], idle_timeout_s=1000.0, worker_timeout_s=None)
    take(here, project)
    idle(here, project)
    done(here, project, "a")
    assert look(here, project).state is ProjectState.ACTIVE
    idle(here, project)
    assert command(here, project, "activate").state is ProjectState.ACTIVE
    assert take(here, project) == "b"


def test_a_project_that_is_worked_on_is_not_abandoned(here: Site) -> None:
    project = make(here, *(f"f{n:03d}" for n in range(100)), storages=["near-disk"], idle_timeout_s=1000.0)
    for _ in range(20):
        done(here, project, take(here, project))
        here.clock.advance(500)  # type: ignore[attr-defined]
        agents(here)
        assert look(here, project).state is ProjectState.ACTIVE


# ---------------------------------------------------------------- commands


def test_restart_by_state(here: Site) -> None:
    project = make(here, "a", "b", "c", "d", storages=["near-disk"])
    reserve(here, project, count=3)
    done(here, project, "a")
    failed(here, project, "b", retry=False)
    assert states(here, project) == {"done": 1, "failed": 1, "reserved": 1, "ready": 1}
    restart(here, project, RestartState.FAILED)
    assert states(here, project) == {"done": 1, "reserved": 1, "ready": 2}
    restart(here, project, RestartState.RESERVED, RestartState.DONE)
    assert states(here, project) == {"ready": 4}
    assert not release(here, project, "c")[0].accepted
    assert names(reserve(here, project, count=4)) == ["a", "b", "c", "d"]
    generations = {each.did: each.generation for each in here.units(project)}
    assert generations == {"data:a": 1, "data:b": 0, "data:c": 0, "data:d": 0}
    here.check_counts()


def test_restart_by_name_brings_a_project_back(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"])
    reserve(here, project, count=2)
    done(here, project, "a", "b")
    agents(here)
    assert look(here, project).state is ProjectState.DONE
    assert restart(here, project, dids=["b"]).state is ProjectState.ACTIVE
    agents(here)
    assert take(here, project) == "b"
    done(here, project, "b")
    agents(here)
    assert look(here, project).state is ProjectState.DONE
    with pytest.raises(Refused) as error:
        restart(here, project, dids=["z"])
    assert error.value.paths == ["$.dids"]
    here.check_counts()


def test_a_large_restart_goes_on_in_slices(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.dispatch.projects.SLICE", 3)
    project = make(here, *(f"f{n:02d}" for n in range(10)), storages=["near-disk"])
    got = names(reserve(here, project, count=10))
    done(here, project, *got)
    agents(here)
    restart(here, project, RestartState.DONE)
    assert states(here, project) == {"ready": 3, "done": 7}
    agents(here)
    assert states(here, project) == {"ready": 10}
    assert look(here, project).state is ProjectState.ACTIVE
    here.check_counts()


def test_a_cancelled_project_gives_nothing_and_takes_nothing(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"], worker_timeout_s=100.0)
    take(here, project)
    assert command(here, project, "cancel").state is ProjectState.CANCELLED
    assert command(here, project, "cancel").state is ProjectState.CANCELLED
    reply = reserve(here, project)
    assert (reply.files, reply.state) == ([], ProjectState.CANCELLED)
    assert not release(here, project, "a")[0].accepted
    here.tick(200)
    agents(here)
    assert states(here, project) == {"cancelled": 2}
    assert time_out_workers(here.dispatcher) == 0
    for word in ("activate", "restart"):
        body = {"states": ["failed"]} if word == "restart" else None
        result = here.raw("POST", f"/v1/projects/{project}:{word}", body, here.token("user", "u"))
        assert result.status_code == 409, word
    here.check_counts()


def test_a_copy_has_the_same_files_with_other_attributes(here: Site) -> None:
    project = make(
        here,
        files=[*listed("a", storages=["near-disk"], attributes={"x": 1, "y": 1}), *listed("b", storages=["far-disk"])],
        attributes={"step": "one", "kept": True},
        worker_timeout_s=50.0,
    )
    body = ProjectCopy(attributes={"step": "two"}, file_attributes={"x": 2}, worker_timeout_s=None)
    copied = here.user("POST", f"/v1/projects/{project}:copy", body, ProjectView)
    agents(here)
    view = look(here, copied.id)
    assert (view.attributes, view.worker_timeout_s) == ({"step": "two", "kept": True}, None)
    assert (view.open, view.copied_from, view.files) == (False, project, {"ready": 2})
    found = tools.files(here, copied.id)
    assert (found["a"].attributes, found["b"].attributes) == ({"x": 2, "y": 1}, {"x": 2})
    assert take(here, copied.id, cpu_site="far") == "b"


def test_a_large_copy_is_made_in_slices(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.agents.projects.COPY_SLICE", 3)
    project = make(here, *(f"f{n:02d}" for n in range(10)), storages=[], virtual=True)
    copied = here.user("POST", f"/v1/projects/{project}:copy", ProjectCopy(), ProjectView).id
    result = here.raw("DELETE", f"/v1/projects/{project}", token=here.token("user", "u"))
    assert result.status_code == 409, "its files are being copied"
    agents(here)
    assert names(reserve(here, copied, count=20)) == [f"f{n:02d}" for n in range(10)]


def test_more_files_come_later(here: Site) -> None:
    project = make(here, "a", storages=["near-disk"], open=True)
    take(here, project)
    done(here, project, "a")
    agents(here)
    assert look(here, project).state is ProjectState.ACTIVE
    body = ProjectFilesRequest(listed("a", "b", storages=["near-disk"]))
    here.user("POST", f"/v1/projects/{project}/files", body, ProjectView)
    agents(here)
    assert take(here, project) == "b"
    done(here, project, "b")
    here.user("POST", f"/v1/projects/{project}/files:close", reply=ProjectView)
    agents(here)
    assert look(here, project).state is ProjectState.DONE


def test_a_deleted_project_leaves_nothing(here: Site) -> None:
    before = here.row_counts()
    project = make(here, "a", "b", storages=["near-disk"], attributes={"step": 1})
    take(here, project)
    assert here.raw("DELETE", f"/v1/projects/{project}", token=here.token("user", "u")).status_code == 202
    from server.dispatch.cloning import delete_workflows

    agents(here)
    while delete_workflows(here.dispatcher):
        agents(here)
    assert here.raw("GET", f"/v1/projects/{project}", token=here.token("user", "u")).status_code == 404
    after = here.row_counts()
    for table in ("project", "project_file", "project_attribute", "reservation", "unit", "unit_detail", "task"):
        assert after[table] == before[table], table


def test_search_by_attributes(here: Site) -> None:
    first = make(here, "a", storages=["near-disk"], attributes={"step": "reco", "version": 3, "final": True})
    second = make(here, "a", storages=["near-disk"], attributes={"step": "sim", "version": 12})
    cases = {
        "step=reco": [first],
        "step=reco,version>=3": [first],
        "version>3": [second],
        "version=3": [first],
        "version!=3": [second],
        "final=true": [first],
        "step!=none": [first, second],
        "step=reco,version>3": [],
    }
    for where, expected in cases.items():
        result = here.raw("GET", "/v1/projects", token=here.token("user", "u"), params={"where": where})
        found = msgspec.json.decode(result.content, type=ProjectPage)
        assert [each.id for each in found.items] == expected, where
    result = here.raw("GET", "/v1/projects", token=here.token("user", "u"), params={"where": "step>abc"})
    assert result.status_code == 400
    command(here, first, "cancel")
    result = here.raw("GET", "/v1/projects", token=here.token("user", "u"), params={"state": "active,done"})
    assert [each["id"] for each in result.json["items"]] == [second]


# ---------------------------------------------------------------- who may


def test_who_may_work_on_a_project(here: Site) -> None:
    project = make(here, *"abcdef", storages=["near-disk"], users=["friend"], roles=["dune", "outside_worker"])
    tokens: dict[str, Any] = {
        "friend": here.token("user", "friend"),
        "member": here.issuer.mint("member", ["user"], 1e6, groups=["dune"]),
        "worker": here.token("outside_worker", "cron"),
        "admin": here.token("admin"),
    }
    for name, token in tokens.items():
        assert reserve(here, project, name, token=token).files, name
    with pytest.raises(Refused) as error:
        reserve(here, project, "stranger", token=here.token("user", "stranger"))
    assert error.value.status == 403
    with pytest.raises(Refused) as error:
        release(here, project, "a", worker="friend", token=here.token("user", "stranger"))
    assert error.value.status == 403
    with pytest.raises(Refused) as error:
        command(here, project, "cancel", name="friend")
    assert error.value.status == 403
    own = make(here, "a", storages=["near-disk"])
    with pytest.raises(Refused) as error:
        reserve(here, own, "cron", token=here.token("outside_worker", "cron"))
    assert error.value.status == 403


def test_projects_are_kept_apart_where_people_are(here: Site) -> None:
    project = make(here, "a", storages=["near-disk"], users=["friend"])
    here.turn("isolation", "group")
    assert look(here, project, name="friend").id == project
    result = here.raw("GET", f"/v1/projects/{project}", token=here.token("user", "stranger"))
    assert result.status_code == 404
    result = here.raw("GET", "/v1/projects", token=here.token("user", "stranger"))
    assert result.json.get("items", []) == []


def test_the_tasks_own_commands_don_t_touch_a_project(here: Site) -> None:
    project = make(here, "a", storages=["near-disk"])
    with pytest.raises(Refused) as error:
        here.command(project, "pause")
    assert error.value.status == 409
    assert "project" in error.value.problem.detail


# ---------------------------------------------------------------- beside pilots


def test_pilots_get_nothing_of_projects_and_projects_nothing_of_theirs(here: Site) -> None:
    project = make(here, "a", "b", storages=["near-disk"])
    pilot = here.pilot()
    assert not pilot.ask().jobs
    task = here.submit(stage(given=files("x", "y", storages=["near-disk"])))[0]
    given = pilot.acquire()
    assert given.task_id == task
    result = here.raw("GET", f"/v1/projects/{task}", token=here.token("user", "u"))
    assert result.status_code == 404
    assert names(reserve(here, project, count=5)) == ["a", "b"]
    here.check_counts()


def test_a_query_is_asked_of_its_catalogue(here: Site) -> None:
    for body in ({"query": "x"}, {"catalog": "nobody", "query": "x"}, {}):
        result = here.raw("POST", "/v1/projects", body, here.token("user", "u"))
        assert result.status_code == 400, body


# ---------------------------------------------------------------- races


def test_many_workers_never_get_the_same_file(here: Site) -> None:
    count, workers = 300, 8
    half = count // 2
    mixed = listed(*(f"n{n}" for n in range(half)), storages=["near-disk"])
    mixed += listed(*(f"f{n}" for n in range(half)), storages=["far-disk"])
    project = make(here, files=mixed)
    given: Counter[str] = Counter()
    mutex = threading.Lock()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        worker, failures = f"w{number}", 0
        try:
            while True:
                got = names(reserve(here, project, worker, cpu_site=("near", "far")[number % 2], count=1 + number % 3))
                if not got:
                    return
                fail = failures < 10 and number % 2
                failures += bool(fail)
                if fail:
                    failed(here, project, *got, worker=worker)
                    continue
                done(here, project, *got, worker=worker)
                with mutex:
                    given.update(got)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    # Whoever finds nothing while others hold the last files leaves; the rest is for one more.
    here.dispatcher.projects.forget(project)
    while got := names(reserve(here, project, count=100)):
        done(here, project, *got)
        given.update(got)
    assert set(given.values()) == {1}
    assert len(given) == count
    while advance_tasks(here.dispatcher):
        pass
    assert look(here, project).state is ProjectState.DONE
    here.check_counts()


def test_one_request_at_the_same_moment_gets_one_set_of_files(here: Site) -> None:
    project = make(here, *(f"f{n}" for n in range(50)), storages=["near-disk"])
    barrier = threading.Barrier(6)
    answers: list[list[str]] = []

    def ask() -> None:
        barrier.wait(240)
        for _ in range(3):
            answers.append(names(reserve(here, project, request_id="the-same-one", count=2)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 18
    assert len({tuple(each) for each in answers}) == 1
    assert states(here, project) == {"reserved": 2, "ready": 48}
    here.check_counts()


def test_requests_of_one_batch_get_what_each_would_get_alone(here: Site) -> None:
    """On PostgreSQL requests that come together share a transaction; on SQLite each is told that it goes alone."""
    far = listed("z0", storages=["far-disk"])
    first = make(here, *(f"a{n}" for n in range(4)), storages=["near-disk"], files=far, worker_timeout_s=100.0)
    other = make(here, "b0", storages=["near-disk"])
    held = take(here, first, "w1", cpu_site="near")
    again, moved = take(here, first, "w2", cpu_site="near"), take(here, other, "w3")
    dispatcher, now = here.dispatcher, here.clock.now()
    if dispatcher.database.is_sqlite:
        assert reserve_together.reserve(dispatcher, _wish(here, first, "w4", 1)) == []
        return
    replies = reserve_together.carry_out(
        dispatcher,
        [
            _wish(here, first, "w4", 1),
            Releasing(first, "w1", {f"data:{held}": Outcome.DONE}, now),
            _wish(here, other, "w4", 1),  # it has no file but the one that comes back below
            Releasing(first, "w1", {f"data:{again}": Outcome.DONE}, now),  # another's
            _wish(here, first, "w5", 2),  # of which one is left nearby
            _wish(here, first, "w6", 1),  # which is found in the next bucket
            Releasing(other, "w3", {f"data:{moved}": Outcome.RETRY}, now),
            Releasing(first, "w1", {f"data:{held}": Outcome.DONE}, now),  # once more
        ],
    )
    one, finished, returned, foreign, fewer, farther, back, twice = replies
    assert [(each.did, each.attempts) for each in one] == [("data:a2", 1)]
    assert [each.did for each in fewer] == ["data:a3"]
    assert [each.did for each in farther] == ["data:z0"]
    assert [(each.did, each.attempts) for each in returned] == [("data:b0", 2)]
    assert foreign == {}
    # The same said twice at once: it counts once, and whoever is left out is told how it stands.
    (gone,) = [each for each in (finished, twice) if each]
    assert [(did, each.state) for did, each in gone.items()] == [(f"data:{held}", UnitState.DONE)]
    assert back[f"data:{moved}"].state is UnitState.READY
    assert states(here, first) == {"done": 1, "reserved": 4} and states(here, other) == {"reserved": 1}
    with dispatcher.database.read() as connection:
        expiring = connection.execute(select(reservation.c.expires).where(reservation.c.worker == "w5")).scalars().all()
    assert expiring == [now + 100.0]
    here.check_counts()


def _wish(here: Site, project: int, worker: str, count: int) -> Reserving:
    dispatcher = here.dispatcher
    facts = dispatcher.projects.facts(dispatcher.database, project)
    assert facts is not None
    request = ReserveRequest(request_id=f"request-of-{worker}", worker=worker, cpu_site="near", count=count)
    reach = dispatcher.projects.reach(dispatcher.looks.get().world, "near")
    return Reserving(facts, request, reach, here.clock.now())
