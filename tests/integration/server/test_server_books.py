"""Datasets, provenance, accounting, traces: written once, whatever dies, and there for years."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from sqlalchemy import delete

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    AccountingReport,
    DatasetPage,
    FinishRequest,
    Metrics,
    OutputPage,
    OutputPattern,
    ProvenanceView,
    StageInput,
    TracePage,
    UnitOutcome,
    UnitResult,
)
from server.agents.accounting import keep_books
from server.dispatch import books
from server.store import accounting, datasets, provenance
from server.store.all_tables import metadata
from server.store.schema import job, unit
from tests.integration.server.harness import LOG, Refused, Site, files, stage, uploaded

NUMBERED = OutputPattern("*", max_files_per_dataset=3, lifetime_days=7)


def report(site: Site, query: str = "", name: str = "u") -> AccountingReport:
    return get(site, f"/v1/accounting?{query}", AccountingReport, name)


def get(site: Site, path: str, kind: type[Any], name: str = "u", role: str = "user") -> Any:
    route, _, query = path.partition("?")
    result = site.raw("GET", route, token=site.token(role, name), query_string=query)
    assert result.status_code == 200, result.text
    import msgspec

    return msgspec.json.decode(result.content, type=kind)


def all_datasets(site: Site, query: str = "") -> dict[str, int]:
    return {each.did: each.files for each in get(site, f"/v1/datasets?{query}", DatasetPage).items}


def members(site: Site, did: str) -> list[str]:
    return [each.did for each in get(site, f"/v1/datasets/{did}/files?limit=1000", OutputPage).items]


# ---------------------------------------------------------------- datasets


def test_outputs_find_their_datasets(site: Site) -> None:
    site.world(storages=("disk",))
    task = site.submit(stage("reco", outputs=[NUMBERED], count=7))[0]
    pilot = site.pilot()
    for number in range(7):
        pilot.succeed(pilot.acquire(), "o")
        if number in (1, 4):
            keep_books(site.dispatcher)
    keep_books(site.dispatcher)
    assert all_datasets(site) == {
        "user.u:w1.reco.p1": 7,
        "user.u:w1.reco.p1-disk": 7,
        "user.u:w1.reco.p1.000001": 3,
        "user.u:w1.reco.p1.000002": 3,
        "user.u:w1.reco.p1.000003": 1,
    }
    everything = [each.did for each in site.outputs(task)]
    assert members(site, "user.u:w1.reco.p1") == everything
    assert members(site, "user.u:w1.reco.p1.000002") == everything[3:6]
    one = next(each for each in get(site, "/v1/datasets?kind=storage", DatasetPage).items)
    assert (one.storage, one.lifetime_days, one.bytes, one.task_id) == ("disk", 7, 7, task)
    assert one.expires == pytest.approx(one.created + 7 * 86400)
    assert get(site, f"/v1/datasets/{one.did}", type(one)) == one


def test_only_what_is_visible_and_no_log_is_in_a_dataset(site: Site) -> None:
    site.world()
    site.submit(stage("one", outputs=[OutputPattern("*")], count=2))
    pilot = site.pilot()
    job = pilot.acquire()
    request = pilot.success(job, "good")
    pilot.record(job, "never-uploaded")
    request.outputs += uploaded(pilot.record(job, "log.tgz", role=LOG))
    pilot.finish(job, request)
    failed = pilot.acquire()
    pilot.record(failed, "lost")
    pilot.fail(failed, int(ErrorCode.PAYLOAD_FAILED))
    keep_books(site.dispatcher)
    assert members(site, "user.u:w1.one.p1") == [f"user.u:1.{job.job_id}.good"]
    assert set(all_datasets(site).values()) == {1}


def test_two_stages_may_fill_one_dataset_and_do_not_overfill_it(site: Site) -> None:
    site.world()
    mine = OutputPattern("*", dataset="mc.{name}", max_files_per_dataset=2)
    site.submit(stage("one", outputs=[mine], count=3), stage("two", outputs=[mine], count=2), scope="dune")
    site.pilot().run_all("o")
    keep_books(site.dispatcher)
    assert all_datasets(site, "scope=dune&kind=numbered") == {
        "dune:mc.w.000001": 2,
        "dune:mc.w.000002": 2,
        "dune:mc.w.000003": 1,
    }
    assert len(members(site, "dune:mc.w")) == 5
    assert all_datasets(site, "scope=other") == {}


def test_a_dataset_name_that_cannot_be_is_refused_at_submission(site: Site) -> None:
    site.world()
    with pytest.raises(Refused) as error:
        site.submit_only(stage(outputs=[OutputPattern("*", dataset="{run}.x")]))
    assert error.value.paths == ["$.stages[0].outputs[0].dataset"]


def test_a_dataset_that_is_not_there(site: Site) -> None:
    for path in ("/v1/datasets/s:x", "/v1/datasets/s:x/files", "/v1/datasets/x"):
        assert site.raw("GET", path, token=site.token("user")).status_code == 404


# ---------------------------------------------------------------- the books are written once


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (accounting, "take_ended"),
        (books, "attach_outputs"),
        (datasets, "attach"),
        (provenance, "record_tasks"),
        (provenance, "record_jobs"),
        (accounting, "add"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bookkeeper_that_dies_has_written_nothing_or_all(
    site: Site, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: str
) -> None:
    site.world()
    site.submit(stage(outputs=[NUMBERED], count=4))
    assert site.pilot().run_all("o") == 4
    original = getattr(module, name)

    def die(*args: Any, **more: Any) -> Any:
        if when == "after":
            original(*args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, die)
        with pytest.raises(KeyboardInterrupt):
            keep_books(site.dispatcher)
    assert report(site).items == []
    assert report(site).waiting == 4
    keep_books(site.dispatcher)
    keep_books(site.dispatcher)
    assert report(site).items[0].jobs_ok == 4
    assert report(site).waiting == 0
    assert sorted(all_datasets(site).values()) == [1, 3, 4, 4]


# ---------------------------------------------------------------- accounting


def test_what_was_used_is_told_by_whatever_one_asks_for(site: Site) -> None:
    site.world(queues=("q", "big"))
    site.put_queue("big", core_power=20.0)
    site.submit(stage(count=3), name="alice", group="dune")
    site.submit(stage(count=1), name="bob")
    day = int(site.clock.now() // 86400)
    for queue in ("q", "big", "q", "q"):
        pilot = site.pilot(queue)
        work = pilot.acquire()
        site.tick(3600)
        request = pilot.success(work)
        request.metrics = Metrics(wall_s=3600, cpu_s=1800, energy_j=3.6e6)
        pilot.finish(work, request)
    keep_books(site.dispatcher)

    total = report(site).items
    assert [(each.jobs_ok, each.jobs_failed, each.wall_core_h, each.cpu_h, each.energy_kwh) for each in total] == [
        (4, 0, 4.0, 2.0, 4.0)
    ]
    assert total[0].wall_hs23_h == pytest.approx(3 * 10 + 20)
    by_queue = {each.key["queue"]: each for each in report(site, "by=queue").items}
    assert (by_queue["big"].wall_hs23_h, by_queue["big"].cpu_hs23_h) == (20.0, 10.0)
    by_user = {(each.key["user"], each.key["group"]): each.jobs_ok for each in report(site, "by=user,group").items}
    assert by_user == {("alice", "dune"): 3, ("bob", ""): 1}
    assert [each.jobs_ok for each in report(site, "user=alice&queue=q").items] == [2]
    assert report(site, "user=nobody").items == []
    days = report(site, "by=day").items
    assert sum(each.jobs_ok for each in days) == 4
    from server.engine.accounting import day_words

    assert days[0].key == {"day": day_words(day)}
    assert report(site, f"to={day_words(day - 1)}").items == []
    assert report(site, f"from={day_words(day)}&to={day_words(day + 1)}").items == total


def test_failed_jobs_are_told_apart(site: Site) -> None:
    site.world()
    site.submit(stage(count=2))
    pilot = site.pilot()
    work = pilot.acquire()
    site.tick(100)
    pilot.fail(work, int(ErrorCode.PAYLOAD_FAILED), metrics=Metrics(wall_s=90, cpu_s=45))
    keep_books(site.dispatcher)
    found = report(site, "by=site,task").items[0]
    assert (found.key, found.jobs_ok, found.jobs_failed) == ({"site": "s", "task": "1"}, 0, 1)
    assert found.wall_core_h == pytest.approx(90 / 3600)


def test_a_job_that_ends_late_is_counted_too(site: Site) -> None:
    site.world()
    site.submit(stage(count=2))
    first, second = site.pilot(), site.pilot()
    early, late = first.acquire(), second.acquire()
    second.succeed(late)
    keep_books(site.dispatcher)
    assert report(site).items[0].jobs_ok == 1
    first.succeed(early)  # of a lower number
    keep_books(site.dispatcher)
    assert report(site).items[0].jobs_ok == 2


def test_accounting_as_csv(site: Site) -> None:
    site.world()
    site.submit(stage(count=1), name="=cmd()")
    site.pilot().run_all()
    keep_books(site.dispatcher)
    result = site.raw("GET", "/v1/accounting", token=site.token("user"), query_string="by=user,site&format=csv")
    assert result.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(result.text)))
    assert [(row["user"], row["site"], row["jobs_ok"]) for row in rows] == [("'=cmd()", "s", "1")]


def test_a_month_for_apel(site: Site) -> None:
    site.world()
    site.submit(stage(count=2), group="dune")
    site.pilot().run_all()
    keep_books(site.dispatcher)
    from datetime import datetime, timezone

    month = datetime.fromtimestamp(site.clock.now(), timezone.utc).strftime("%Y-%m")
    token = site.token("admin")
    query = f"month={month}&host=pilotage.example.org"
    result = site.raw("GET", "/v1/accounting/apel", token=token, query_string=query)
    assert result.status_code == 200, result.text
    assert result.text.startswith("APEL-normalised-summary-message: v0.4\nSite: s\n")
    assert "\nNumberOfJobs: 2\n%%\n" in result.text
    assert "\nVO: dune\n" in result.text
    empty = site.raw("GET", "/v1/accounting/apel", token=token, query_string="month=1999-01")
    assert empty.text == "APEL-normalised-summary-message: v0.4\n"


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/v1/accounting", "by=colour", "by"),
        ("/v1/accounting", "from=yesterday", "from"),
        ("/v1/accounting", "format=xml", "format"),
        ("/v1/accounting/apel", "month=2026-13", "month"),
        ("/v1/accounting/apel", "", "month"),
        ("/v1/accounting/apel", "month=2026-01&host=a%0Ab", "host"),
        ("/v1/trace", "", "host"),
        ("/v1/trace", "host=n&from=now", "from"),
    ],
)
def test_a_wrong_question_names_its_field(site: Site, path: str, query: str, field: str) -> None:
    result = site.raw("GET", path, token=site.token("admin"), query_string=query)
    assert result.status_code == 400, result.text
    assert field in [each["path"] for each in result.json["errors"]]


# ---------------------------------------------------------------- provenance


def test_an_output_tells_where_it_comes_from_now_and_when_all_else_is_gone(site: Site) -> None:
    site.world()
    script = "#!/bin/sh\necho hello\n"
    common = files("geometry").files
    first = stage(
        "sim", given=files("a", "b"), jobscript=script, command=None, files_per_job=2, common_input=common,
        outputs=[OutputPattern("*")], image="/cvmfs/image.sif",
    )  # fmt: skip
    site.submit(first, stage("merge", given=StageInput("sim")), group="dune", labels={"campaign": "c1"})
    pilot = site.pilot()
    work = pilot.acquire()
    site.tick(10)
    request = pilot.success(work, "o.root")
    request.metrics = Metrics(wall_s=9.0, cpu_s=8.0)
    pilot.finish(work, request)
    did = request.outputs[0].did

    now = get(site, f"/v1/outputs/{did}/provenance", ProvenanceView)
    keep_books(site.dispatcher)
    with site.database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            if not table.name.startswith("trace_"):
                connection.execute(delete(table))
    later = get(site, f"/v1/outputs/{did}/provenance", ProvenanceView)
    assert later == now

    assert (later.output["checksum"], later.output["size"], later.output["storage"]) == ("adler32:00000001", 1, "disk")
    assert [each["did"] for each in later.job["units"]] == ["data:a", "data:b"]
    assert {each["state"] for each in later.job["units"]} == {"done"}
    told = {name: later.job[name] for name in ("job", "site", "queue", "host", "pilot_id", "worker", "harvester")}
    assert told == {
        "job": work.job_id, "site": "s", "queue": "q", "host": "node", "pilot_id": pilot.id, "worker": pilot.worker,
        "harvester": "h",
    }  # fmt: skip
    assert (later.job["wall_s"], later.job["cpu_s"], later.job["cores"]) == (9.0, 8.0, 1)
    assert later.job["claimed"] < later.job["ended"]
    assert later.task["definition"]["jobscript"] == script
    assert len(later.task["jobscript_sha256"]) == 64
    assert later.task["image"] == "/cvmfs/image.sif"
    assert later.task["common_input"] == [{"did": "data:geometry", "checksum": None}]
    assert (later.task["owner"], later.task["group"], later.task["stage"]) == ("u", "dune", "sim")
    assert later.task["workflow"]["labels"] == {"campaign": "c1"}
    assert later.task["requirements"]["memory_mb"] == 1000


def test_provenance_is_told_of_visible_outputs_only(site: Site) -> None:
    site.world()
    site.submit(stage(count=1))
    pilot = site.pilot()
    work = pilot.acquire()
    did = pilot.record(work, "o").destinations[0].did
    for name in (did, "user.u:1.99.o", "user.u:o", "nonsense"):
        assert site.raw("GET", f"/v1/outputs/{name}/provenance", token=site.token("user")).status_code == 404


def test_one_definition_is_kept_once_however_many_jobs(site: Site) -> None:
    site.world()
    site.submit(stage(count=5))
    pilot = site.pilot()
    for _ in range(5):
        pilot.succeed(pilot.acquire(), "o")
        keep_books(site.dispatcher)
        site.agents()  # the task's row changes, its definition does not
    counts = site.row_counts()
    assert (counts["trace_task"], counts["trace_job"]) == (1, 5)


# ---------------------------------------------------------------- traces


def trace(site: Site, query: str) -> TracePage:
    return get(site, f"/v1/trace?{query}", TracePage, role="admin", name="root")


def test_from_a_payload_to_its_node_and_its_user_and_back(site: Site) -> None:
    site.world()
    site.submit(stage(count=3), name="alice", group="dune")
    site.submit(stage(count=1), name="bob")
    start = site.clock.now()
    mark, secret = site.worker()
    from tests.integration.server.harness import Pilot

    elsewhere = Pilot(site, site.register(mark, secret, host="other"), site.pilot().offer, mark)
    first = site.pilot()
    gone = first.acquire()
    site.tick(100)
    first.succeed(gone)
    keep_books(site.dispatcher)
    fresh = first.acquire()
    first.succeed(fresh)  # not in the books yet
    alive, abroad = first.acquire(), elsewhere.acquire()
    with site.database.write() as connection:
        connection.execute(delete(unit).where(unit.c.job_id == gone.job_id))
        connection.execute(delete(job).where(job.c.id == gone.job_id))

    found = trace(site, "host=node").items
    assert [each.id for each in found] == [gone.job_id, fresh.job_id, alive.job_id]
    assert {(each.owner, each.group, each.host, each.queue) for each in found} == {("alice", "dune", "node", "q")}
    assert {each.worker for each in found} == {first.worker}
    assert [each.state for each in found] == [JobState.FINISHED, JobState.FINISHED, JobState.SENT]
    assert [each.ended is None for each in found] == [False, False, True]
    assert [each.id for each in trace(site, "user=bob").items] == [abroad.job_id]
    assert [each.id for each in trace(site, "user=alice&host=other").items] == []
    pages = [trace(site, f"host=node&limit=1&after={after}") for after in (0, gone.job_id, fresh.job_id)]
    assert [page.items[0].id for page in pages] == [each.id for each in found]
    assert trace(site, "host=node&site=nowhere").items == []
    from datetime import datetime, timezone

    def words(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")

    assert trace(site, f"host=node&to={words(start - 10)}").items == []
    assert gone.job_id not in [each.id for each in trace(site, f"host=node&from={words(start + 110)}").items]
    assert [each.id for each in trace(site, f"host=node&to={words(start + 50)}").items] == [gone.job_id]


def test_a_trace_is_for_admins(site: Site) -> None:
    assert site.raw("GET", "/v1/trace", token=site.token("user"), query_string="host=n").status_code == 403


def test_the_books_survive_a_job_that_was_deleted_before(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.world()
    site.submit(stage(count=2))
    pilot = site.pilot()
    work = pilot.acquire()
    pilot.finish(work, FinishRequest(JobState.FINISHED, [UnitResult(work.units[0].unit_id, UnitOutcome.PROCESSED)]))
    pilot.succeed(pilot.acquire())
    with site.database.write() as connection:
        connection.execute(delete(unit).where(unit.c.job_id == work.job_id))
        connection.execute(delete(job).where(job.c.id == work.job_id))
    keep_books(site.dispatcher)
    assert report(site).items[0].jobs_ok == 1
    assert "deleted before they were written into the books" in caplog.text
